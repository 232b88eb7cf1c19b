"""Which effect tables are stored, how they are named, and how pages and reports read them.

An *estimate* is an estimator with its settings; it has one name, ``coarse-replay 1/4`` say, which
stands in controls, in links, in reports and in cache keys. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pandas as pd

from . import noise, summary
from .contracts import Behaviour
from .results import Result, ResultFacts, StageTrust, stored_results
from .runs.run import Run
from .standing import may_lean_on
from .verification import settles

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


@dataclass(frozen=True)
class Effects:
    """An effect table as pages and reports use it.

    Attributes:
        estimator: How the counterfactuals were obtained, as :func:`estimate_name` writes it.
        table: With rows for accuracy where the set has labels.
        behaviours: Accuracy first, then as the result lists them.
        trust: What is known of each stage's counterfactual.
    """

    estimator: str
    table: pd.DataFrame
    behaviours: Mapping[str, Behaviour]
    trust: Mapping[str, StageTrust]


def as_effects(estimate: str, result: Result, orders: pd.DataFrame | None) -> Effects:
    """A stored effect table, with accuracy and with what is known of the training noise.

    Args:
        estimate: Its name.
        result: The table, with what was verified of it.
        orders: ``noise.load_orders``; None where the noise is not known.
    """
    table = noise.marked(summary.with_accuracy(result.table), orders)
    behaviours = dict(result.behaviours)
    if (table["behaviour"] == summary.ACCURACY.name).any():
        behaviours = {summary.ACCURACY.name: summary.ACCURACY, **behaviours}
    return Effects(estimate, table, behaviours, result.trust)


def best_known(chosen: Effects, others: Sequence[Effects]) -> Effects:
    """Per stage the numbers that most is known of: by replay, else what may be leaned on.

    Where no other table of a stage may be leaned on, its numbers are those that were chosen.
    """
    taken = {stage: _best_for(stage, [chosen, *others]) for stage in chosen.trust}
    rows = [one.table[one.table["stage"] == stage] for stage, one in taken.items()]
    trust = {stage: one.trust[stage] for stage, one in taken.items()}
    table = pd.concat(rows, ignore_index=True)
    return Effects(chosen.estimator, table, chosen.behaviours, trust)


def _best_for(stage: str, tables: Sequence[Effects]) -> Effects:
    of = [table for table in tables if stage in table.trust]
    settled = [table for table in of if settles(table.trust[stage])]
    leaned_on = [table for table in of if may_lean_on(table.trust[stage])]
    return [*settled, *leaned_on, *of][0]
