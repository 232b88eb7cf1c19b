"""How long estimates should take on a run, predicted from the seconds that were recorded.

Training a stage once tells what replaying it costs. Predictions are of wall time without other
load, and are meant to be right within a factor of two. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagelens.runs.run import Stage

from .results import ResultFacts

STARTING = 4.0
"""Seconds until a process has loaded what it needs, and measured the models."""

_COARSE_OVERHEAD = 0.005
"""Seconds that a coarse step takes beside its gradient: on small networks most of its time."""

_TANGENT = 3.0
"""A step with its tangent, in steps."""

_SWEEP = 3.0
"""A step with its transpose and the shares of its examples, in steps."""


def replay_seconds(stages: Sequence[Stage]) -> float | None:
    """How long replaying without every stage should take.

    For each stage but the last, all later ones run again; and every later one runs once more as it
    was, to see whether replay is bit for bit. None where a stage did not record its seconds.
    """
    once = _once(stages)
    return None if once is None else once + sum(s.facts.seconds or 0.0 for s in stages[1:])


def _once(stages: Sequence[Stage]) -> float | None:
    """Seconds of replaying the later stages once for each stage that is left out."""
    if any(stage.facts.seconds is None for stage in stages[1:]):
        return None
    return sum(number * (stage.facts.seconds or 0.0) for number, stage in enumerate(stages))


def estimate_seconds(
    stages: Sequence[Stage], estimator: str, settings: Mapping[str, Any]
) -> float | None:
    """How long an estimator should take for the counterfactuals of all stages.

    It is what ``StageTrust.seconds`` add up to: for replay without the check, see
    :func:`replay_seconds`. None where nothing was recorded to tell it from.

    Args:
        stages: Of the run, in training order.
        estimator: Its name.
        settings: Its settings; ``budget`` counts.
    """
    once = _once(stages)
    if estimator == "task-vector":
        return 0.0
    if once is None:
        return None
    if estimator == "replay":
        return once
    if estimator == "unrolled-jump":
        return _TANGENT * once
    if estimator == "unrolled-scale":  # it goes through the stage itself as well
        return _TANGENT * (once + sum(stage.facts.seconds or 0.0 for stage in stages[:-1]))
    overhead = sum(n * stage.steps * _COARSE_OVERHEAD for n, stage in enumerate(stages))
    return float(settings.get("budget", 0.25)) * (once + overhead)


def coarse_saves_time(stages: Sequence[Stage], budget: float) -> bool:
    """Whether a coarse replay should take less than half of the time that replay takes."""
    replay = replay_seconds(stages)
    coarse = estimate_seconds(stages, "coarse-replay", {"budget": budget})
    return replay is None or coarse is None or STARTING + coarse < 0.5 * (STARTING + replay)


def verify_seconds(
    stages: Sequence[Stage],
    wanted: Sequence[tuple[str, Mapping[str, Any]]],
    orders: int,
    stored: Sequence[ResultFacts],
) -> float | None:
    """How long a verification should take; None where nothing was recorded to tell it from.

    Args:
        stages: Of the run.
        wanted: Estimators with their settings.
        orders: Other orders of the batches for the noise floor.
        stored: Effect tables of the set; what stands there costs nothing.
    """
    once = _once(stages)
    if once is None:
        return None
    there = [(facts.estimator, facts.settings) for facts in stored]
    missing = [each for each in wanted if (each[0], dict(each[1])) not in there]
    total = STARTING + sum(estimate_seconds(stages, *each) or 0.0 for each in missing)
    replayed = [facts for facts in stored if facts.estimator == "replay"]
    if replayed:
        once = sum(stage.seconds for stage in replayed[0].stages) or once
    else:
        total += replay_seconds(stages) or 0.0
    return total + 2 * orders * once


def contributions_seconds(stages: Sequence[Stage]) -> float | None:
    """How long the sweep for contributions should take; None where no seconds were recorded."""
    if any(stage.facts.seconds is None for stage in stages):
        return None
    return STARTING + _SWEEP * sum(stage.facts.seconds or 0.0 for stage in stages)
