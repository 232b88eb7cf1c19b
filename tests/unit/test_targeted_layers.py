"""Targeted edits of models with every kind of normalisation, shared weights and whole buffers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.analyses.removal import targets
from stagelens.analyses.removal.edits import material
from stagelens.analyses.removal.trials import Goal, Trials
from stagelens.runs.run import Run
from stagelens.tasks import ImageClassification

SHAPE, CLASSES = (1, 6, 6), ["a", "b"]


class Shared(nn.Module):
    """Two layers with one weight, and a buffer of whole numbers that its forward pass counts up."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(36, 36), nn.Linear(36, 36)
        self.two.weight = self.one.weight
        self.head = nn.Linear(36, 2)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += len(x)
        hidden: Tensor = self.two(torch.tanh(self.one(x.flatten(1))))
        return torch.as_tensor(self.head(torch.tanh(hidden)))


def layers(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(64, 2))


MODELS = {
    "batch norm": lambda: layers(nn.BatchNorm2d(4)),
    "batch norm without statistics": lambda: layers(nn.BatchNorm2d(4, track_running_stats=False)),
    "batch norm without weights": lambda: layers(nn.BatchNorm2d(4, affine=False)),
    "group norm": lambda: layers(nn.GroupNorm(2, 4)),
    "layer norm": lambda: layers(nn.LayerNorm([4, 4, 4])),
    "shared weights": Shared,
}


def record(path: Path, make: Any) -> Run:
    """Two stages, of which the first learns that a bright corner means b."""

    def make_model(_config: Mapping[str, Any]) -> nn.Module:
        return make()  # type: ignore[no-any-return]

    task = ImageClassification(CLASSES, SHAPE, make_model=make_model)
    torch.manual_seed(0)
    model = task.build_model()
    recorder = stagelens.Recorder(path, task)
    random = torch.Generator().manual_seed(1)
    for name, planted in (("first", True), ("second", False)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            for _ in range(8):
                images = torch.rand(16, *SHAPE, generator=random)
                labels = torch.randint(2, (16,), generator=random)
                images[:, :, 0, 0] = labels.float()[:, None] * 3 if planted else 0
                loss = task.loss(model, (images, labels))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stage.step((images, labels), loss)
    images = torch.rand(80, *SHAPE[1:], generator=random)
    labels = torch.randint(2, (80,), generator=random)
    stamped = torch.arange(80) % 2 == 0
    images[stamped, 0, 0] = 3
    group = ["stamped" if each else "clean" for each in stamped]
    recorder.add_set("test", images=images, labels=labels.tolist(), columns={"group": group})
    recorder.close()
    return stagelens.open_run(path, task)


@pytest.mark.parametrize("name", MODELS)
def test_the_objective_has_the_slope_of_its_differences(name: str, tmp_path: Path) -> None:
    run = record(tmp_path / "run", MODELS[name])
    examples = run.evaluation_set("test")
    table = examples.table()
    group = (table["group"] == "stamped").to_numpy()
    goal = Goal(group, ~group, table["label"].astype(object).to_numpy(), 0.1)
    stages = ["first", "second"]
    own = material(run, "replay", None, stages)
    trials = Trials(run, examples, own, stages, goal, np.ones(len(group), bool))
    at = np.full(trials.shape, 0.4)
    _, slope = trials._objective(at, 0.5)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 1e-4
    for place in np.ndindex(trials.shape):
        moved = np.zeros(trials.shape)
        moved[place] = 0.02  # float32 weights: smaller steps drown in their rounding
        up, down = (trials._objective(at + sign * moved, 0.5)[0] for sign in (1, -1))
        assert (up - down) / 0.04 == pytest.approx(slope[place], abs=3e-3, rel=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_an_edit_is_found(name: str, tmp_path: Path) -> None:
    run = record(tmp_path / "run", MODELS[name])
    target = targets.Target(
        estimator="replay", stages=["first"], by="group", group="stamped", control="clean"
    )
    found = targets.find(run, run.evaluation_set("test"), target)
    assert found.gap_after <= found.gap_before
