"""How long a selection should take. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from stagelens.estimators.durations import STARTING, Pace

from .outcomes import Wanted

SWEEP = 28.0
"""What ordering by one horizon takes, in replays of the stage: 18 to 22 on the small network of the
digits demo for one target, and 1.3 to 1.45 times that for both of its halves."""


def selection_seconds(wanted: Wanted, paces: Sequence[Pace]) -> float | None:
    """How long a selection should take; None where no seconds are known.

    Args:
        wanted: What is asked.
        paces: Of the stage and all later ones, in training order.
    """
    if any(pace.seconds is None for pace in paces):
        return None
    seconds = [pace.seconds or 0.0 for pace in paces]
    ordering = SWEEP * len(wanted.horizons) * seconds[0]
    return STARTING + ordering + wanted.replays * sum(seconds)
