"""What a recording of the calibration bench trains: drawn from its family and number alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

LONG = 30
"""The first number of recordings that train eight times as long."""
OPTIMIZERS = ("momentum", "AdamW", "Nesterov", "Adam", "AdamW", "SGD")


@dataclass(frozen=True)
class Family:
    """Recordings that are alike in network and data; families are left out as a whole.

    Attributes:
        name: Unique.
        network: What :func:`~tests.benchmarks.calibration.works.work` builds.
        data: Its data set.
        adam: Smallest and largest peak learning rate under Adam, from gentle to unstable.
        sgd: The same under SGD with momentum 0.9; None where it is not trained by SGD.
        steps: Fewest and most steps of a stage.
        recordings: How many there are.
        long: How many more train eight times as long, in at most four stages.
    """

    name: str
    network: str
    data: str
    adam: tuple[float, float]
    sgd: tuple[float, float] | None
    steps: tuple[int, int] = (24, 120)
    recordings: int = 19
    long: int = 0

    @property
    def numbers(self) -> list[int]:
        """Of its recordings."""
        return [*range(self.recordings), *range(LONG, LONG + self.long)]


@dataclass(frozen=True)
class StagePlan:
    """One stage: its length and rates, and what is planted in its data."""

    steps: int
    peak: float
    schedule: str
    warm_up: int
    planted: str

    def rates(self) -> Iterator[float]:
        """The learning rate of every step."""
        for step in range(self.steps):
            warm = min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0
            done = step / self.steps
            down = {
                "cosine": 0.5 * (1 + math.cos(math.pi * done)),
                "linear": 1 - done,
                "constant": 1.0,
            }[self.schedule]
            yield self.peak * warm * down


@dataclass(frozen=True)
class Recipe:
    """How one recording trains."""

    family: Family
    number: int
    optimizer: str
    weight_decay: float
    carried: bool
    clip_norm: float | None
    batch: int
    dropout: float
    width: float
    stages: tuple[StagePlan, ...]

    @property
    def name(self) -> str:
        return f"{self.family.name}-{self.number}"

    @property
    def seed(self) -> int:
        return 1000 + self.number

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of the first stage, and of every stage that does not carry it on."""
        peak, decay = self.stages[0].peak, self.weight_decay
        if self.optimizer in ("Adam", "AdamW"):
            kind: Any = getattr(torch.optim, self.optimizer)
            return kind(model.parameters(), peak, weight_decay=decay)
        momentum = 0.0 if self.optimizer == "SGD" else 0.9
        nesterov = self.optimizer == "Nesterov"
        return torch.optim.SGD(
            model.parameters(), peak, momentum=momentum, nesterov=nesterov, weight_decay=decay
        )


PLANTED = ("shortcut", "noise", "swapped", "narrow")


def recipe(family: Family, number: int) -> Recipe:
    """The recording of that number; the same every time."""
    random = np.random.default_rng([number, *family.name.encode()])
    names = [n for n in OPTIMIZERS if family.sgd is not None or n in ("Adam", "AdamW")]
    optimizer = names[number % len(names)]
    low, high = family.adam
    if optimizer not in ("Adam", "AdamW"):
        assert family.sgd is not None
        low, high = family.sgd
        if optimizer == "SGD":  # a momentum of 0.9 multiplies steps by up to ten
            low, high = 5 * low, 5 * high
    # Learning rates are spread evenly over the range, whatever the number of recordings.
    place = (number * 0.618 + 0.1 * random.random()) % 1
    peak = low * (high / low) ** place
    count = int(random.choice([3, 4, 4, 5, 6] if family.steps[1] > 60 else [3, 4]))
    planted_at = int(random.integers(0, count))
    also = int(random.integers(0, count)) if random.random() < 0.3 else planted_at
    later = float(random.choice([1.0, 0.5, 0.25]))
    schedule = str(random.choice(["cosine", "linear", "constant"]))
    few, most = family.steps
    stages = []
    for index in range(count):
        steps = round(few * (most / few) ** random.random())
        planted = str(random.choice(PLANTED)) if index in (planted_at, also) else "none"
        own = peak if index == 0 else peak * later
        warm_up = steps // 8 if random.random() < 0.5 else 0
        stages.append(StagePlan(steps, own, schedule, warm_up, planted))
    if number >= LONG:
        stages = [replace(s, steps=8 * s.steps, warm_up=8 * s.warm_up) for s in stages[:4]]
    return Recipe(
        family,
        number,
        optimizer,
        weight_decay=float(random.choice([0.0, 5e-4, 1e-2])),
        carried=bool(random.random() < 0.3),
        clip_norm=1.0 if random.random() < 0.2 else None,
        batch=int(random.choice([16, 32])) if few > 12 else 8,
        dropout=float(random.choice([0.0, 0.1])),
        width=float(random.choice([0.5, 1.0, 1.0])),
        stages=tuple(stages),
    )


_WIDE = {"adam": (2e-4, 6e-3), "sgd": (3e-3, 1e-1)}
_BATCH_NORM = {"adam": (2e-4, 8e-3), "sgd": (3e-3, 2e-1)}

FAMILIES = {
    f.name: f
    for f in (
        Family("mlp-digits", "mlp", "digits", **_WIDE),
        Family("mlp-mnist", "mlp", "mnist", **_WIDE, long=3),
        Family("mlp-fashion", "mlp", "fashion", **_WIDE, long=3),
        Family("cnn-mnist", "cnn", "mnist", **_WIDE, long=3),
        Family("cnn-fashion", "cnn", "fashion", **_WIDE, long=3),
        Family("cnn-batch-mnist", "cnn batch", "mnist", **_BATCH_NORM),
        Family("cnn-batch-fashion", "cnn batch", "fashion", **_BATCH_NORM, long=3),
        Family("cnn-group-fashion", "cnn group", "fashion", **_WIDE, long=3),
        Family(
            "residual-batch-fashion", "residual batch", "fashion", **_BATCH_NORM, steps=(20, 90)
        ),
        Family("residual-group-mnist", "residual group", "mnist", **_WIDE, steps=(20, 90)),
        Family("residual-batch-digits", "residual batch", "digits", **_BATCH_NORM, steps=(20, 90)),
        Family("vit-fashion", "vit", "fashion", (2e-4, 4e-3), (3e-3, 6e-2), (20, 90)),
        Family("vit-mnist", "vit", "mnist", (2e-4, 4e-3), (3e-3, 6e-2), (20, 90)),
        Family("bert-emotions", "bert", "emotions", (1e-4, 3e-3), (5e-3, 1e-1), (16, 48)),
        Family("bert-hate", "bert", "hate", (1e-4, 3e-3), (5e-3, 1e-1), (16, 48)),
        Family("gpt-wikitext", "gpt", "wikitext", (2e-4, 4e-3), (5e-3, 1e-1), (16, 48)),
        Family("encoder-hate", "encoder", "hate", (1e-5, 2e-4), None, (12, 20), 6),
    )
}
