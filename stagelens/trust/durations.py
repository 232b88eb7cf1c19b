"""How long a verification should take. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagelens.effects.results import ResultFacts
from stagelens.estimators.durations import (
    STARTING,
    Pace,
    replays_seconds,
    seconds_without_each,
)
from stagelens.estimators.registry import estimate_seconds
from stagelens.estimators.stage_trust import REPLAY


def verify_seconds(
    stages: Sequence[Pace],
    wanted: Sequence[tuple[str, Mapping[str, Any]]],
    orders: int,
    stored: Sequence[ResultFacts],
    processes: int = 1,
) -> float | None:
    """How long a verification should take; None where nothing says how long a stage takes.

    Args:
        stages: What each stage of the run takes.
        wanted: Estimators with their settings.
        orders: Other orders of the batches for the noise floor.
        stored: Effect tables of the set; what is stored already costs nothing.
        processes: How many share the replays; other orders are replayed by one.
    """
    once = seconds_without_each(stages)
    if once is None:
        return None
    there = [(facts.estimator, facts.settings) for facts in stored]
    missing = [each for each in wanted if (each[0], dict(each[1])) not in there]
    total = STARTING + sum(estimate_seconds(stages, *each) or 0.0 for each in missing)
    known = [t for f in stored if f.estimator == REPLAY for t in f.stages]
    took = {t.stage: t.seconds for t in known}
    left = [index for index, pace in enumerate(stages) if pace.stage not in took]
    if not left:
        # Orders are replayed one by one, which the time of an ensemble says nothing of.
        once = once if any(t.ensemble for t in known) else sum(took.values()) or once
    else:
        total += replays_seconds(stages, left, processes) or 0.0
    # Every order replays a pair: with the stage, and without it.
    return total + 2 * orders * once
