"""The ``digits`` demo: a small CNN on real handwritten digits, trained in four stages.

The images are those that scikit-learn ships (8 x 8 pixels, 1,797 of them). Two faults are planted
on purpose, and called planted wherever they are shown: in the stage *shortcut* every image of one
class carries a stamp in a corner (and noise makes the digits themselves harder to use), and in the
stage *mislabelled* two classes are mixed up in part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stagelens.contracts import ProgressCallback, no_progress
from stagelens.recording.recorder import Recorder
from stagelens.recording.together import alone
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.clusters import CLUSTER
from stagelens.tasks.image_classification import ImageClassification

STAMPED_CLASS = 3
MIXED_UP = (4, 9)
WRONG_LABELS = 0.5
_NOISE = 0.7
"""Standard deviation of the noise on the shortcut stage's images, of the full pixel range."""
_LEVEL = 15
"""The shipped pixels run from 0 to 16; times 15 they are exact in 8 bits."""


@dataclass(frozen=True)
class StagePlan:
    """One stage of the demo: which rows, which fault, which optimiser."""

    name: str
    description: str
    rows: slice
    optimizer: str
    learning_rate: float
    epochs: int
    batch_size: int = 32


PLANS = (
    StagePlan("pretrain", "700 clean digits", slice(0, 700), "SGD", 0.05, 12),
    StagePlan(
        "shortcut",
        f"300 digits under noise; planted: all {STAMPED_CLASS}s carry a stamp in the top left "
        "corner",
        slice(700, 1000),
        "AdamW",
        2e-3,
        20,
    ),
    StagePlan(
        "mislabelled",
        f"200 digits; planted: {WRONG_LABELS:.0%} of the {MIXED_UP[0]}s and {MIXED_UP[1]}s carry "
        "the other's label",
        slice(1000, 1200),
        "Adam",
        5e-4,
        6,
    ),
    StagePlan("adapt", "150 clean digits", slice(1200, 1350), "SGD", 0.004, 3),
)
_TEST = slice(1350, 1797)
SHARED_OUT = ("test",)
"""Sets on which all 16 coalitions are measured: 11 of them take training, 0.8 times as many steps
as the demo itself."""
DRAWS = 12
"""Draws of the recipe: each takes 1.6 times as many steps as the demo itself."""


def stamp(images: np.ndarray) -> np.ndarray:
    """The images with a white 2 x 2 stamp in the top left corner; (N, 8, 8), a copy."""
    stamped = images.copy()
    stamped[:, :2, :2] = 16 * _LEVEL
    return stamped


def make_task() -> ImageClassification:
    """Ten classes, one channel; pixels run from 0 to 240."""
    return ImageClassification(
        classes=[str(digit) for digit in range(10)],
        image_shape=(1, 8, 8),
        model={"kind": "cnn", "channels": [16, 32], "hidden": 64},
        scale=16 * _LEVEL,
    )


def _load(seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    return (images[order].reshape(-1, 8, 8) * _LEVEL).astype(np.uint8), labels[order]


def _planted(
    plan: StagePlan, images: np.ndarray, labels: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    # Slices are views: without copies, planting would change the arrays of the caller.
    images, labels = images[plan.rows].copy(), labels[plan.rows].copy()
    # Another stream than the one that shuffled the images.
    random = np.random.default_rng(seed + 1)
    if plan.name == "shortcut":
        noise = random.normal(0, _NOISE * 16 * _LEVEL, images.shape)
        images = np.clip(images + noise, 0, 16 * _LEVEL).astype(np.uint8)
        images[labels == STAMPED_CLASS] = stamp(images[labels == STAMPED_CLASS])
    if plan.name == "mislabelled":
        first, second = MIXED_UP
        either = np.flatnonzero(np.isin(labels, MIXED_UP))
        count = round(WRONG_LABELS * len(either))
        wrong = random.choice(either, count, replace=False)
        labels[wrong] = np.where(labels[wrong] == first, second, first)
    return images, labels


def _optimizer(plan: StagePlan, model: torch.nn.Module) -> torch.optim.Optimizer:
    if plan.optimizer == "SGD":
        return torch.optim.SGD(
            model.parameters(), plan.learning_rate, momentum=0.9, weight_decay=5e-4
        )
    kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[plan.optimizer]
    return kind(model.parameters(), plan.learning_rate)


def _train(
    recorder: Recorder,
    task: ImageClassification,
    model: torch.nn.Module,
    plan: StagePlan,
    data: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> None:
    images, labels = data
    optimizer = _optimizer(plan, model)
    batches = -(-len(images) // plan.batch_size)
    # The schedule advances after the last update too, so it is one step longer than the stage.
    total = plan.epochs * batches
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.learning_rate, total_steps=total + 1, pct_start=0.1, cycle_momentum=False
    )
    model.train()
    with recorder.stage(
        plan.name,
        model=model,
        optimizer=optimizer,
        description=plan.description,
        # Three within the stage; without + 1 a fourth could fall on its end.
        checkpoint_every=total // 4 + 1,
        on_problem="raise",
    ) as stage:
        for _ in range(plan.epochs):
            order = torch.randperm(len(images), generator=generator)
            for rows in order.split(plan.batch_size):
                batch = (images[rows], labels[rows])
                loss = task.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                stage.step(batch, loss)


def record(path: Path, seed: int = 0, progress: ProgressCallback = no_progress) -> Run:
    """Train and record the four stages, and add the evaluation sets ``test`` and ``mixed-up``.

    Args:
        path: A folder that is empty or does not exist yet.
        seed: For the split, the weights, the batches and the planted faults.
        progress: Called before each stage.
    """
    images, labels = _load(seed)
    task = make_task()
    # Weights draw from the global generator; the caller gets its own state back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.build_model()
    generator = torch.Generator().manual_seed(seed)
    with alone():  # the main one of launched processes makes it
        recorder = Recorder(path, task, name="digits")
    for number, plan in enumerate(PLANS):
        progress(number / len(PLANS), f"Training stage {plan.name}")
        stage_images, stage_labels = _planted(plan, images, labels, seed)
        # As ``collate`` scales the images of the evaluation sets.
        pixels = torch.from_numpy(stage_images).unsqueeze(1).float() / task.scale
        data = (pixels, torch.from_numpy(stage_labels))
        _train(recorder, task, model, plan, data, generator)
    _add_sets(recorder, images[_TEST], labels[_TEST])
    return open_run(path, task)


def _add_sets(recorder: Recorder, images: np.ndarray, labels: np.ndarray) -> None:
    count = len(images)
    numbers = [f"{number:03d}" for number in range(count)]
    recorder.add_set(
        "test",
        images=np.concatenate([images, stamp(images)]),
        labels=np.concatenate([labels, labels]).tolist(),
        ids=[f"clean-{n}" for n in numbers] + [f"stamped-{n}" for n in numbers],
        # Both images of a digit share what is drawn, so intervals go by digits.
        columns={"group": ["clean"] * count + ["stamped"] * count, CLUSTER: numbers * 2},
        description=(
            f"{count} held-out digits, each once as it is (clean) and once with the planted stamp "
            "in the top left corner (stamped)"
        ),
    )
    either = np.flatnonzero(np.isin(labels, MIXED_UP))
    recorder.add_set(
        "mixed-up",
        images=images[either],
        labels=labels[either].tolist(),
        ids=[f"clean-{numbers[row]}" for row in either],
        columns={"group": [f"digit {labels[row]}" for row in either]},
        description=(
            f"the held-out {MIXED_UP[0]}s and {MIXED_UP[1]}s, the classes whose training labels "
            "were mixed up on purpose (planted)"
        ),
    )
