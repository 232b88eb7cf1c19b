"""Small runs and evaluation sets that are unusual, each in one way, all of a built-in task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stagelens
from stagelens.effects.computing import attribute, boundaries
from stagelens.runs.files import sealed
from stagelens.runs.run import Run
from stagelens.runs.sets.writer import write_set
from stagelens.tasks import ImageClassification
from stagelens.trust.verification import verify

SHAPE = (1, 4, 4)
CLASSES = ("a", "b", "c")
COUNT = 24
"""Examples of a set, but for the one that has a single one."""


def task(classes: tuple[str, ...] = CLASSES) -> ImageClassification:
    """A classifier of small images that every process can build."""
    return ImageClassification(classes, SHAPE, model={"kind": "mlp", "hidden": [6]})


def images(count: int = COUNT, seed: int = 0) -> np.ndarray:
    """Random images."""
    return np.random.default_rng(seed).normal(size=(count, *SHAPE[1:])).astype(np.float32)


def one_step(
    stage: Any,
    task: ImageClassification,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """One recorded step of training."""
    loss = task.loss(model, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    stage.step(batch, loss)


def record(
    path: Path, stages: Mapping[str, tuple[int, float]], spoilt: tuple[str, ...] = ()
) -> Run:
    """Record a small run with the evaluation set ``test``.

    Args:
        path: The run folder.
        stages: Name to steps and learning rate of AdamW.
        spoilt: Stages whose third batch holds a NaN, as a broken input file can.
    """
    torch.manual_seed(0)
    own = task()
    model = own.build_model()
    recorder = stagelens.Recorder(path, own)
    generator = torch.Generator().manual_seed(1)
    for name, (steps, rate) in stages.items():
        optimizer = torch.optim.AdamW(model.parameters(), rate)
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            for step in range(steps):
                x = torch.randn(8, *SHAPE, generator=generator)
                y = torch.randint(len(CLASSES), (8,), generator=generator)
                if name in spoilt and step == 2:
                    x[0, 0, 0, 0] = torch.nan
                one_step(stage, own, model, optimizer, (x, y))
    recorder.close()
    labels = [CLASSES[number % 3] for number in range(COUNT)]
    groups = {"group": ["left", "right"] * (COUNT // 2)}
    write_set(path, own, "test", images=images(), labels=labels, columns=groups)
    return stagelens.open_run(path)


def add_odd_sets(run: Run) -> list[str]:
    """Sets of one example, of one class, and with labels for some and for none of the examples."""
    labels: dict[str, list[str | None] | None] = {
        "one-example": ["a"],
        "one-class": ["a"] * COUNT,
        "some-labels": ["a", None, "b"] * (COUNT // 3),
        "no-labels": None,
    }
    for name, own in labels.items():
        write_set(
            run.path, run.task, name, images=images(COUNT if own is None else len(own)), labels=own
        )
    return list(labels)


def many_stages(path: Path, count: int) -> Run:
    """A run of so many stages, made of a small one: its first two again and again."""
    record(path, {"even": (1, 0.05), "odd": (1, 0.05)})
    described = json.loads((path / "run.json").read_text())
    first = [
        json.loads((path / one["folder"] / "stage.json").read_text()) for one in described["stages"]
    ]
    listed = []
    for number in range(count):
        facts: dict[str, Any] = {**first[number % 2], "name": f"stage {number:03d}"}
        if number:
            facts["boundary"] = first[1]["boundary"]
        folder = f"stages/{number:03d}-many"
        (path / folder).mkdir()
        content = json.dumps(sealed(facts)).encode()
        (path / folder / "stage.json").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        listed.append({"name": facts["name"], "folder": folder, "sha256": sha256})
    (path / "run.json").write_text(json.dumps(sealed({**described, "stages": listed})))
    return stagelens.open_run(path)


def measure_all(run: Run, set_name: str) -> None:
    """Everything that pages show of a set: boundaries, two estimates, a replay and its noise."""
    boundaries(run, set_name)
    attribute(run, set_name, "task-vector")
    estimates = [("coarse-replay", {"budget": 0.25})]
    verify(run, set_name, estimates, lambda share, text: None, orders=1)
