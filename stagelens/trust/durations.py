"""How long a verification should take. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagelens.effects.results import ResultFacts
from stagelens.estimators.durations import STARTING, replay_seconds, seconds_without_each
from stagelens.estimators.registry import estimate_seconds
from stagelens.estimators.stage_trust import REPLAY
from stagelens.runs.run import Stage


def verify_seconds(
    stages: Sequence[Stage],
    wanted: Sequence[tuple[str, Mapping[str, Any]]],
    orders: int,
    stored: Sequence[ResultFacts],
) -> float | None:
    """How long a verification should take; None where nothing was recorded to predict it from.

    Args:
        stages: Of the run.
        wanted: Estimators with their settings.
        orders: Other orders of the batches for the noise floor.
        stored: Effect tables of the set; what is stored already costs nothing.
    """
    once = seconds_without_each(stages)
    if once is None:
        return None
    there = [(facts.estimator, facts.settings) for facts in stored]
    missing = [each for each in wanted if (each[0], dict(each[1])) not in there]
    total = STARTING + sum(estimate_seconds(stages, *each) or 0.0 for each in missing)
    replayed = [facts for facts in stored if facts.estimator == REPLAY]
    if replayed:
        once = sum(stage.seconds for stage in replayed[0].stages) or once
    else:
        total += replay_seconds(stages) or 0.0
    # Every order replays a pair: with the stage, and without it.
    return total + 2 * orders * once
