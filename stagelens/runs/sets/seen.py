"""What a task makes of a set's examples, in a few figures: another preprocessing shows in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stagelens.contracts import Example, RunError, Task

from .evaluation_set import EvaluationSet

FIRST = 4
"""How many examples are looked at."""

_ROUNDING = 1e-4


def figures(task: Task, examples: Sequence[Example]) -> list[list[float]]:
    """Number of values, mean and root mean square of each tensor of a batch; empty if unknown.

    Args:
        task: Collates the examples.
        examples: Some of a set.
    """
    from stagelens.runs.batches import flatten  # here, because it imports torch

    try:
        _, tensors = flatten(task.collate(examples))
    except Exception:  # the task's own code; measuring says what is wrong with an example
        return []
    wide = [tensor.double() for tensor in tensors if tensor.numel()]
    found = [
        [float(each.numel()), float(each.mean()), float(each.square().mean().sqrt())]
        for each in wide
    ]
    return found if all(math.isfinite(value) for each in found for value in each) else []


def check_seen(examples: EvaluationSet, task: Task) -> None:
    """Refuse to measure examples of which the task makes other inputs than when they were added.

    Raises:
        RunError: It does; says what to do.
    """
    recorded = examples.facts.seen
    if not recorded:
        return
    found = figures(task, examples.examples(0, FIRST))
    if not _alike(found, recorded):
        raise RunError(
            f"the task makes other inputs of the examples of set {examples.name!r} than when they "
            f"were added (their mean was {recorded[0][1]:.4g}, now "
            f"{found[0][1] if found else float('nan'):.4g}): open the run with the task that it "
            "was recorded with; or, if the change is meant, delete the set and add it again"
        )


def _alike(found: list[list[float]], recorded: list[list[float]]) -> bool:
    if [each[0] for each in found] != [each[0] for each in recorded]:
        return False
    return all(
        abs(a - b) <= _ROUNDING * max(own[2], old[2])
        for own, old in zip(found, recorded, strict=True)
        for a, b in zip(own[1:], old[1:], strict=True)
    )
