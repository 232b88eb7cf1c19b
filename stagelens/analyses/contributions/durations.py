"""How long a sweep for contributions should take. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from stagelens.estimators.durations import STARTING
from stagelens.runs.run import Stage

_SWEEP = 3.0
"""Time of one step of the sweep, contributions of its examples included, in recorded steps."""


def contributions_seconds(stages: Sequence[Stage]) -> float | None:
    """How long the sweep for contributions should take; None where no seconds were recorded."""
    if any(stage.facts.seconds is None for stage in stages):
        return None
    return STARTING + _SWEEP * sum(stage.facts.seconds or 0.0 for stage in stages)
