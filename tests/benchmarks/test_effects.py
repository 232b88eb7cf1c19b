"""What an effect table costs beyond the forward passes that it consists of."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stagelens
from stagelens.demos import digits
from stagelens.effects.computing import effect_table
from stagelens.estimators.protocol import Counterfactual
from stagelens.estimators.stage_trust import StageTrust
from stagelens.measuring.models import BATCH_SIZE
from stagelens.runs.run import Run
from stagelens.tasks import ImageClassification

STAGES = 4
PAIRS = 7
TARGET = 1.15


def larger_task() -> ImageClassification:
    """28 x 28 pixels, as Fashion-MNIST has them, and a network of half a million parameters."""
    model = {"kind": "cnn", "channels": [32, 64], "hidden": 128}
    return ImageClassification([str(n) for n in range(10)], (1, 28, 28), model=model)


def recorded(path: Path, task: ImageClassification, count: int) -> Run:
    """A run whose stages are one step each, and a set of ``count`` images."""
    model = task.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    recorder = stagelens.Recorder(path, task)
    shape = task.image_shape
    for number in range(STAGES):
        with recorder.stage(f"stage {number}", model=model, optimizer=optimizer) as stage:
            batch = (torch.rand(8, *shape), torch.randint(10, (8,)))
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stage.step(batch, loss)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *shape[1:]), dtype=np.uint8)
    recorder.add_set("test", images=images, labels=random.integers(0, 10, count).tolist())
    return recorder.run()


def plain_passes(run: Run, models: list[nn.Module]) -> float:
    """Seconds of one forward pass per model over the set, read and collated once."""
    examples = run.evaluation_set("test")
    began = time.perf_counter()
    with torch.inference_mode():
        for batch in examples.batches(BATCH_SIZE):
            images, _ = run.task.collate(batch)
            for model in models:
                model(images)
    return time.perf_counter() - began


def table(run: Run, without: list[Counterfactual]) -> float:
    """Seconds of the effect table of the same models."""
    examples = run.evaluation_set("test")
    began = time.perf_counter()
    effect_table(run, examples, without, "hand")
    return time.perf_counter() - began


def counterfactuals(run: Run) -> Iterator[Counterfactual]:
    for stage in run.stages:
        trust = StageTrust(stage=stage.name, estimator="hand", trust="exact", reason="Made up.")
        yield Counterfactual(stage.name, stage.start().model, trust)


def loaded(run: Run, weights: Any) -> nn.Module:
    model = run.task.build_model()
    model.load_state_dict(weights)
    return model.eval()


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("name", "task", "count"),
    [("digits CNN", digits.make_task, 20_000), ("28 x 28 CNN", larger_task, 4_000)],
    ids=["digits", "larger"],
)
def test_an_effect_table_costs_little_more_than_its_forward_passes(
    name: str, task: Callable[[], ImageClassification], count: int, tmp_path: Path
) -> None:
    run = recorded(tmp_path / "run", task(), count)
    without = list(counterfactuals(run))
    states = [run.last.end().model, *(one.weights for one in without)]
    models = [loaded(run, weights) for weights in states]
    ratios, plain = [], []
    for pair in range(PAIRS + 1):
        # In turn, so that what else the machine does falls on both alike.
        if pair % 2:
            whole, alone = table(run, without), plain_passes(run, models)
        else:
            alone, whole = plain_passes(run, models), table(run, without)
        if pair > 0:  # the first is to warm up
            ratios.append(whole / alone)
            plain.append(alone)
    print(
        f"\neffects, {name}: {statistics.median(ratios):.3f} of {STAGES + 1} plain passes over "
        f"{count:,} examples ({min(ratios):.3f} to {max(ratios):.3f}; {PAIRS} pairs, "
        f"{statistics.median(plain):.2f} s plain, {torch.get_num_threads()} thread, "
        f"load {os.getloadavg()[0]:.1f})"
    )
    assert statistics.median(ratios) <= TARGET
