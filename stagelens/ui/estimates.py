"""Which effect tables are stored, and how they are named.

An *estimate* is an estimator with its settings; it has one name, ``coarse-replay 1/4`` say, which
stands in controls, in links and in cache keys. Nothing here imports streamlit or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ..results import ResultFacts, stored_results
from ..runs.run import Run

ESTIMATORS = ("replay", "coarse-replay", "unrolled-scale", "unrolled-jump", "task-vector")
"""Best first; the first that has a result is shown."""

BUDGETS: Mapping[str, float] = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5}
"""Budgets that pages offer for coarse-replay."""

SHORT = 60.0
"""Seconds; a replay that is predicted to take less starts by itself."""


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

    Best first: by estimator, and by budget from the largest.
    """
    found = [f for f in stored_results(run, set_name) if f.estimator in ESTIMATORS]
    found.sort(key=_rank)
    return {estimate_name(facts.estimator, facts.settings): facts for facts in found}


def _rank(facts: ResultFacts) -> tuple[int, float, str]:
    budget = facts.settings.get("budget")
    best = -float(budget) if isinstance(budget, int | float) else 0.0
    return ESTIMATORS.index(facts.estimator), best, str(sorted(facts.settings.items()))
