"""Tiny runs of one recipe with seeds of their own, and of another that spoils one slice.

Images of 16 numbers belong to one of three classes, told by where their mean is. One in ten of the
evaluation set's slice ``a``, and a quarter of what the stage ``adapt`` is trained on, carry a mark,
a large last number, and are of class ``x``. The spoiled recipe calls them ``y`` in ``adapt``, and
nothing else: it answers them wrong, so slice ``a`` drops by 10 points.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import stagelens
from stagelens.runs.run import Run
from stagelens.tasks import ImageClassification

SHAPE, CLASSES, GROUPS = (1, 4, 4), ("x", "y", "z"), ("a", "b", "c")
EACH = 200
"""Examples of every slice of the evaluation set."""
STEPS = {"learn": 16, "adapt": 14, "polish": 6}
BATCH = 32
EASY, HARD = 0.7, 1.6
"""Spreads of the images of a class: trainings with other seeds answer nearly alike, or not."""
_CENTRES = 2.4 * torch.eye(16)[:3]
_MARK = 6.0


def task() -> ImageClassification:
    return ImageClassification(CLASSES, SHAPE, model={"kind": "mlp", "hidden": [64]})


def draw(count: int, seed: int, marked: Tensor, spread: float) -> tuple[Tensor, Tensor]:
    """Images and labels; ``marked`` (count,) says which carry the mark."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=random)
    labels = torch.where(marked, 0, labels)
    images = spread * torch.randn(count, 16, generator=random) + _CENTRES[labels]
    images[:, -1] = torch.where(marked, _MARK, 0.0)
    return images.reshape(count, *SHAPE), labels


def training_data(stage: str, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """All that a stage is trained on, the same for every seed, and what of it is marked."""
    count = STEPS[stage] * BATCH
    marked = torch.arange(count) % 4 == 0 if stage == "adapt" else torch.zeros(count).bool()
    return (*draw(count, 100 + list(STEPS).index(stage), marked, spread), marked)


def record(
    path: Path, seed: int, spoiled: bool = False, base: int | None = None, spread: float = EASY
) -> Run:
    """Train and record a run.

    Args:
        path: Of the run folder.
        seed: Of initial values and of the order of examples in every stage.
        spoiled: Whether marked images have another label in ``adapt``.
        base: Seed of the initial values, where they have one of their own.
        spread: Of the images of a class.
    """
    made = task()
    torch.manual_seed(seed if base is None else base)
    model = made.build_model()
    recorder = stagelens.Recorder(path, made, name=path.name)
    order = torch.Generator().manual_seed(1000 + seed)
    for name, steps in STEPS.items():
        images, labels, marked = training_data(name, spread)
        if spoiled:
            labels = torch.where(marked, 1, labels)
        rows = torch.randperm(len(labels), generator=order).reshape(steps, BATCH)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            for own in rows:
                batch = images[own], labels[own]
                loss = made.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stage.step(batch, loss)
    add_set(recorder, spread)
    recorder.close()
    return stagelens.open_run(path)


def evaluation(spread: float) -> tuple[Tensor, Tensor]:
    """Images and labels of the set, 200 of every slice; of ``a`` every tenth is marked."""
    place = torch.arange(EACH * len(GROUPS))
    return draw(len(place), 7, (place < EACH) & (place % 10 == 0), spread)


def add_set(recorder: stagelens.Recorder, spread: float) -> None:
    """The set ``test``."""
    images, labels = evaluation(spread)
    recorder.add_set(
        "test",
        images=images[:, 0].numpy(),
        labels=[CLASSES[each] for each in labels],
        columns={"group": np.repeat(GROUPS, EACH).tolist()},
    )
