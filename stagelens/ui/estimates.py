"""Which effect tables are stored, what is known of them in words, and what better ones will take.

An *estimate* is an estimator with its settings; it has one name, ``coarse-replay 1/4`` say, which
stands in controls, in links and in cache keys. Nothing here imports streamlit or torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from pydantic import ValidationError

from ..results import ResultFacts, StageTrust
from ..runs.run import Run, Stage

ESTIMATORS = ("replay", "coarse-replay", "unrolled-scale", "unrolled-jump", "task-vector")
"""Best first; the first that has a result is shown."""

BUDGETS: Mapping[str, float] = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5}
"""Budgets that pages offer for coarse-replay."""

SHORT = 60.0
"""Seconds; a replay that is predicted to take less starts by itself."""

CLOSE_R, CLOSE_ERROR = 0.9, 0.5
"""An estimate with at least this r and at most this relative error can be leaned on."""

_STARTING = 4.0
"""Seconds until a child process has loaded what it needs."""


def estimate_name(estimator: str, settings: Mapping[str, Any]) -> str:
    """The name of an estimator with its settings: ``coarse-replay 1/4``, ``replay``."""
    words = [estimator]
    for key, value in sorted(settings.items()):
        words.append(budget_text(value) if key == "budget" else f"{key}={value}")
    return " ".join(words)


def budget_text(budget: float) -> str:
    """A budget as a fraction where it is a simple one: ``1/4``."""
    near = Fraction(budget).limit_denominator(64)
    return f"{near}" if abs(float(near) - budget) < 1e-9 else f"{budget:g}"


def stored(run: Run, set_name: str) -> dict[str, ResultFacts]:
    """The effect tables that are stored for a set as it is now, by name of the estimate.

    Only the descriptions are read. Best first: by estimator, and by budget from the largest.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    digest = run.evaluation_set(set_name).digest
    found: list[ResultFacts] = []
    for path in (run.path / "results" / "tables").glob("*.parquet"):
        try:
            metadata = pq.read_schema(path).metadata or {}
            facts = ResultFacts.model_validate_json(metadata[b"stagelens"])
        except (OSError, pa.ArrowException, KeyError, ValidationError):
            continue
        if (facts.kind, facts.run_digest, facts.set_digest) == ("effects", run.digest, digest):
            found.append(facts)
    found = [facts for facts in found if facts.estimator in ESTIMATORS]
    found.sort(key=_rank)
    return {estimate_name(facts.estimator, facts.settings): facts for facts in found}


def _rank(facts: ResultFacts) -> tuple[int, float, str]:
    budget = facts.settings.get("budget")
    best = -float(budget) if isinstance(budget, int | float) else 0.0
    return ESTIMATORS.index(facts.estimator), best, str(sorted(facts.settings.items()))


def verdict(trust: StageTrust, row: Mapping[str, Any] | None) -> str:
    """What is known of one stage's numbers, in plain words.

    Args:
        trust: As the effect table says, with stored verifications joined.
        row: Of a verification table; None where there is no replay to compare with.
    """
    if trust.trust == "exact":
        return _sentence(trust.reason.removeprefix("Exact: ").removeprefix("Exact "), "exact: ")
    if trust.trust == "refused":
        return _sentence(trust.reason, "refused: ")
    if row is None or not np.isfinite(row["r"]):
        return _estimated(trust)
    opening = "verified" if trust.trust == "verified" else "compared with the stored replay"
    said = (
        f"{opening}: r {row['r']:.2f}, slope {row['slope']:.2f}, relative error "
        f"{percent(row['relative_error'])}; "
    ).replace("-", "−")
    said += "close enough to lean on" if is_close(row) else "too far off to lean on: use replay"
    expected = trust.expected_error
    if expected is not None and row["relative_error"] > max(2 * expected, expected + 0.1):
        said += f". Without the replay, only {percent(expected)} was expected"
    return said + "."


def is_close(row: Mapping[str, Any]) -> bool:
    """Whether an estimate is close enough to its replay to be leaned on."""
    return bool(row["r"] >= CLOSE_R and row["relative_error"] <= CLOSE_ERROR)


def _estimated(trust: StageTrust) -> str:
    if trust.expected_error is None:
        return "estimated; its error is not known."
    leaning = {True: "reliable", False: "not reliable without a replay", None: "not judged"}
    return f"estimated; expected error {percent(trust.expected_error)}; {leaning[trust.reliable]}."


def _sentence(reason: str, opening: str) -> str:
    text = reason.strip().rstrip(".")
    return f"{opening}{text[:1].lower()}{text[1:]}."


def percent(share: float | None) -> str:
    """``12 %``; ``n/a`` where there is no number."""
    if share is None or not np.isfinite(share):
        return "n/a"
    return f"{100 * share:.0f} %" if share < 10 else "more than 1,000 %"


# ---------------------------------------------------------------------------------- predictions


def replay_seconds(stages: Sequence[Stage]) -> float | None:
    """How long replaying without every stage should take, from the recorded seconds.

    For each stage but the last, all later ones run again; and every later one runs once more as it
    was, to see whether replay is bit for bit. None where a stage did not record its seconds.
    """
    times = [stage.facts.seconds for stage in stages[1:]]
    if any(seconds is None for seconds in times):
        return None
    return sum((number + 2) * (seconds or 0.0) for number, seconds in enumerate(times))


def verify_seconds(
    stages: Sequence[Stage],
    wanted: Sequence[tuple[str, float | None]],
    orders: int,
    done: Mapping[str, ResultFacts],
) -> float | None:
    """How long a verification should take; None where nothing was recorded to tell it from.

    Args:
        stages: Of the run.
        wanted: Estimators and, for coarse-replay, budgets.
        orders: Other orders of the batches for the noise floor.
        done: Effect tables that are stored; what stands there costs nothing.
    """
    replay = replay_seconds(stages)
    if replay is None:
        return None
    check = sum(stage.facts.seconds or 0.0 for stage in stages[1:])
    once = max(replay - check, 0.0)
    total = _STARTING + (0.0 if "replay" in done else replay)
    if "replay" in done:
        once = sum(stage.seconds for stage in done["replay"].stages) or once
    for estimator, budget in wanted:
        settings = {} if budget is None else {"budget": budget}
        if estimate_name(estimator, settings) not in done:
            total += once * _COSTS.get(estimator, budget or 0.0)
    return total + 2 * orders * once


_COSTS = {"task-vector": 0.0, "unrolled-jump": 3.0, "unrolled-scale": 3.0}
"""In replays; coarse-replay costs its budget."""


def duration(seconds: float) -> str:
    """A predicted time, no more exact than it deserves: ``about 20 seconds``, ``about 3 hours``."""
    for size, unit in ((3600.0, "hour"), (60.0, "minute")):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.0f} {unit}s"
    if seconds >= 55:
        return "about a minute"
    if seconds < 10:
        return "a few seconds"
    return f"about {5 * round(seconds / 5)} seconds"
