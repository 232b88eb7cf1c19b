"""How far the effects on single examples of a set may be off."""

from __future__ import annotations

from stagelens.contracts import Behaviour
from stagelens.wording.intervals import example_error

from .loaders import Effects, Source, effects, stage_summary


def example_errors(
    at: Source, set_name: str, found: Effects, behaviour: Behaviour
) -> dict[str, float]:
    """Stage to ``intervals.example_error`` of its effects; NaN or no entry where it is not known.

    Args:
        at: The run folder.
        set_name: The set that the effects are on.
        found: The effects.
        behaviour: On which behaviour.
    """
    stored = effects(at, set_name, found.estimator)
    # Of an own example, nothing may be stored by its estimator.
    if stored is None or behaviour.name not in stored.behaviours:
        return {}
    means = stage_summary(at, set_name, found.estimator, behaviour.name, None, None)
    errors = {
        stage: example_error(found.trust.get(stage), float(rms), behaviour.name)
        for stage, rms in zip(means["stage"], means["rms"], strict=True)
    }
    return {stage: float("nan") if error is None else error for stage, error in errors.items()}
