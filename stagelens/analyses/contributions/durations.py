"""How long a sweep for contributions should take. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from stagelens.estimators.durations import STARTING, Pace

_SWEEP = 9.0
"""Time of one step of the sweep, contributions of its examples included, in steps of a replay:
12 and 8 on the small network of the digits demo, 8 on the transformer of the comments demo."""


def contributions_seconds(stages: Sequence[Pace]) -> float | None:
    """How long the sweep for contributions should take; None where no seconds are known."""
    if any(pace.seconds is None for pace in stages):
        return None
    return STARTING + _SWEEP * sum(pace.seconds or 0.0 for pace in stages)
