"""How hard a stage trained, from its two ends and its learning rates."""

from __future__ import annotations

import math

from stagelens.runs.run import Stage

_STRAIGHTNESS = {"SGD": (0.8, 0.95), "Adam": (0.2, 0.3), "AdamW": (0.2, 0.3)}
"""Optimiser to the straightness below which training is hard, and above which it is gentle; chosen
on the benchmark's seeds 0 to 2."""

_STILL = 1e-3
"""Share of sum(lr) up to which a weight did not train: weight decay alone moves it so much."""


def hardness(stage: Stage) -> float:
    """How unsafe merging the steps of a stage is, 0 to 1, from how straight its weights moved."""
    low, high = _STRAIGHTNESS[stage.optimizer.name]
    return 1 - min(max((straightness(stage) - low) / (high - low), 0.0), 1.0)


def straightness(stage: Stage) -> float:
    """How straight the weights moved through a stage, from its two ends and learning rates.

    Adam moves a weight by about one learning rate a step, so the net movement over
    sum(lr) sqrt(P), over parameter groups, is the share of the way that was not taken back. The P
    weights are those that moved: rows of an embedding whose word never came up did not train. SGD's
    steps have no such scale; for it this is 1 - the movement relative to the weights' own size,
    where 0.1 is much.
    """
    start, end = stage.start().model, stage.end().model
    steps = stage.read_steps()
    facts = [steps.facts(number) for number in range(len(steps))]
    moved = size = way = 0.0
    for number, group in enumerate(stage.optimizer.groups):
        rates = math.fsum(float(record.groups[number]["lr"]) for record in facts)
        for name in set(group.parameters) & set(stage.facts.trainable):
            change = end[name].double() - start[name].double()
            moved += float(change.square().sum())
            size += float(start[name].double().square().sum())
            way += rates**2 * int((change.abs() > _STILL * rates).sum())
    if stage.optimizer.name == "SGD":
        return 1 - math.sqrt(moved / size) if size else 0.0
    return math.sqrt(moved / way) if way else 1.0
