"""How long sweeps for contributions, and estimates of their errors, should take.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from stagelens.estimators.durations import STARTING, Pace

_SWEEP = 9.0
"""Time of one step of the sweep, contributions of its examples included, in steps of a replay:
12 and 8 on the small network of the digits demo, 8 on the transformer of the comments demo."""


_STRETCHES, _LATER = 16.0, 6.0
"""Time of the stretches of a stage, in replays of it, and of what follows them in those of the
later stages: four gradients a step for each of 2.4 times the stage, and for the whole."""


def horizons_seconds(stages: Sequence[Pace]) -> float | None:
    """How long expected errors by horizon should take; None where no seconds are known.

    Args:
        stages: The stage, and all later ones.
    """
    if any(pace.seconds is None for pace in stages):
        return None
    own, *later = (pace.seconds or 0.0 for pace in stages)
    return STARTING + _STRETCHES * own + _LATER * sum(later)


def contributions_seconds(stages: Sequence[Pace]) -> float | None:
    """How long the sweep for contributions should take; None where no seconds are known."""
    if any(pace.seconds is None for pace in stages):
        return None
    return STARTING + _SWEEP * sum(pace.seconds or 0.0 for pace in stages)
