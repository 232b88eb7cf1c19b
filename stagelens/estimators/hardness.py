"""How hard a stage trained, judged by its two ends and its learning rates."""

from __future__ import annotations

import math

from stagelens.runs.optimizer_kinds import without_formula
from stagelens.runs.run import Stage

_STRAIGHTNESS = {"SGD": (0.8, 0.95), "Adam": (0.2, 0.3), "AdamW": (0.2, 0.3)}
"""Optimiser to the straightness below which training is hard, and above which it is gentle; chosen
on the benchmark's seeds 0 to 2."""

_STILL = 1e-3
"""Share of sum(lr) below which a weight did not train: weight decay alone moves it that far."""


def hardness(stage: Stage) -> float:
    """How unsafe it is to merge the steps of a stage, 0 to 1, by how straight its weights moved.

    1 for an optimiser of which that was never measured.
    """
    if without_formula(stage.optimizer) is not None:
        return 1.0
    low, high = _STRAIGHTNESS[stage.optimizer.name]
    return 1 - min(max((straightness(stage) - low) / (high - low), 0.0), 1.0)


def straightness(stage: Stage) -> float:
    """How straight the weights moved through a stage, from its two ends and learning rates.

    Adam moves a weight by about one learning rate a step, so the net movement over
    sum(lr) sqrt(P), over parameter groups, is the share of the way that was not taken back. The P
    weights are those that moved: embedding rows of words that never occurred did not train. SGD's
    steps have no such scale; for it this is 1 - the movement relative to the weights' own size,
    where 0.1 is much.
    """
    from stagelens.runs.streaming import side_by_side  # torch

    start, end = stage.start().model, stage.end().model
    steps = stage.read_steps()
    # Learning rates only: no batch is read, and stages that kept none can be judged too.
    facts = [steps.facts(number) for number in range(len(steps))]
    moved = size = way = 0.0
    for number, group in enumerate(stage.optimizer.groups):
        rates = math.fsum(float(record.groups[number]["lr"]) for record in facts)
        for name in set(group.parameters) & set(stage.facts.trainable):
            for began, ended in side_by_side(name, start, end):
                before = began.double()
                change = ended.double() - before
                moved += float(change.square().sum())
                size += float(before.square().sum())
                # So way is the square of sum(lr) sqrt(P), added up over groups.
                way += rates**2 * int((change.abs() > _STILL * rates).sum())
    if stage.optimizer.name == "SGD":
        return 1 - math.sqrt(moved / size) if size else 0.0
    return math.sqrt(moved / way) if way else 1.0
