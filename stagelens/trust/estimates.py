"""Which effect tables are stored, how they are named, and how pages and reports read them.

An *estimate* is an estimator with its settings; it has one name, such as ``coarse-replay 1/4``, in
controls, links, reports and cache keys alike. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import RLock

import pandas as pd

from stagelens.contracts import ACCURACY, Behaviour, RunError
from stagelens.effects import summary
from stagelens.effects.results import Result, ResultFacts, load_result, result_path, stored_results
from stagelens.estimators.registry import estimate_name, estimators, find
from stagelens.estimators.stage_trust import StageTrust, is_ground_truth
from stagelens.runs.run import Run
from stagelens.wording.trust_words import is_trustworthy

from . import noise
from .verification import trusted_facts

SHORT = 60.0
"""Seconds; a replay that is predicted to take less starts by itself."""


def stored_estimates(run: Run, set_name: str) -> dict[str, ResultFacts]:
    """The effect tables that are stored for a set as it is now, by name of the estimate.

    Best first: by estimator, and by budget from the largest.
    """
    found = [f for f in stored_results(run, set_name) if f.estimator in estimators()]
    found.sort(key=_rank)
    return {estimate_name(facts.estimator, facts.settings): facts for facts in found}


def known_trust(
    run: Run, set_name: str, estimator: str, settings: Mapping[str, object]
) -> dict[str, StageTrust]:
    """Stage to what is known of a stored effect table, verification included; else empty."""
    wanted = estimator, dict(settings)
    for facts in stored_results(run, set_name):
        if (facts.estimator, facts.settings) == wanted:
            return {stage.stage: stage for stage in trusted_facts(run, facts).stages}
    return {}


def _rank(facts: ResultFacts) -> tuple[int, float, str]:
    budget = facts.settings.get("budget")
    best = -float(budget) if isinstance(budget, int | float) else 0.0
    # The settings come last, so that the order is the same each time.
    return -find(facts.estimator).preference, best, str(sorted(facts.settings.items()))


class Effects:
    """Stage effects as pages and reports use them; shared between sessions, and never changed.

    Attributes:
        estimator: How the counterfactuals were obtained, as :func:`estimate_name` writes it.
        behaviours: By name; accuracy first where the set has labels, then as the result lists them.
        trust: What is known of each stage's counterfactual.
    """

    def __init__(
        self,
        estimator: str,
        behaviours: Mapping[str, Behaviour],
        trust: Mapping[str, StageTrust],
        read: Callable[[str], pd.DataFrame],
    ) -> None:
        """Effects whose rows are read when they are first needed.

        Args:
            estimator: See above.
            behaviours: See above.
            trust: See above.
            read: Gives the rows of a behaviour, by its name; called once for each.
        """
        self.estimator, self.behaviours, self.trust = estimator, behaviours, trust
        self._read = read
        self._rows: dict[str, pd.DataFrame] = {}
        # Sessions share this object. Reentrant, because reading accuracy reads another behaviour.
        self._reading = RLock()

    @classmethod
    def holding(
        cls,
        estimator: str,
        table: pd.DataFrame,
        behaviours: Mapping[str, Behaviour],
        trust: Mapping[str, StageTrust],
    ) -> Effects:
        """Effects of a table that is already in memory."""
        return cls(estimator, behaviours, trust, lambda name: table[table["behaviour"] == name])

    def of(self, behaviour: str) -> pd.DataFrame:
        """The rows of one behaviour: one per stage and example, in this order.

        Raises:
            RunError: The table on disk was damaged; says what to do.
        """
        with self._reading:
            if behaviour not in self._rows:
                self._rows[behaviour] = self._read(behaviour)
            return self._rows[behaviour]

    @property
    def first(self) -> pd.DataFrame:
        """The rows of the first measured behaviour: answers are the same in all."""
        return self.of(next(name for name in self.behaviours if name != ACCURACY.name))

    def with_rows(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Effects:
        """The same with other rows.

        Args:
            change: From the rows of a behaviour to those that take their place.
        """
        return Effects(
            self.estimator, self.behaviours, self.trust, lambda name: change(self.of(name))
        )


def as_effects(estimate: str, result: Result, orders: pd.DataFrame | None) -> Effects:
    """A whole effect table, with accuracy and with what is known of the training noise.

    Args:
        estimate: Its name.
        result: The table, with what was verified of it.
        orders: ``noise.load_orders``; None where the noise is not known.
    """
    table = noise.marked(summary.with_accuracy(result.table), orders)
    behaviours = dict(result.behaviours)
    if (table["behaviour"] == ACCURACY.name).any():
        behaviours = {ACCURACY.name: ACCURACY, **behaviours}
    return Effects.holding(estimate, table, behaviours, result.trust)


def stored_effects(
    run: Run,
    estimate: str,
    facts: ResultFacts,
    labelled: bool,
    orders: pd.DataFrame | None,
    coded: bool = False,
) -> Effects:
    """Like :func:`as_effects`, for a stored table that is read when it is first needed.

    Args:
        run: The run.
        estimate: Its name.
        facts: What it says of itself, see ``verification.trusted_facts``.
        labelled: Whether any example of the set has a label.
        orders: ``noise.load_orders``; None where the noise is not known.
        coded: See ``results.load_result``.
    """
    measured = {each.name: each.behaviour() for each in facts.behaviours}
    behaviours = {ACCURACY.name: ACCURACY, **measured} if labelled else measured

    def read(name: str) -> pd.DataFrame:
        if name == ACCURACY.name:
            return noise.marked(summary.accuracy_rows(effects.first), orders)
        found = load_result(
            run, facts.set_name, "effects", facts.estimator, facts.settings, coded, name
        )
        if found is None:
            path = result_path(run, facts)
            raise RunError(
                f"{path} is damaged or was deleted: the effects by {estimate} on set "
                f"{facts.set_name} cannot be read; delete it where it is still there, load the "
                "page again, and have them computed again"
            )
        return noise.marked(found.table, orders)

    effects = Effects(estimate, behaviours, {t.stage: t for t in facts.stages}, read)
    return effects


def best_known(chosen: Effects, others: Sequence[Effects]) -> Effects:
    """For each stage the numbers of which most is known: by replay, else those to rely on.

    Where no table of a stage can be relied on, its numbers are those that were chosen.
    """
    taken = {stage: _best_for(stage, [chosen, *others]) for stage in chosen.trust}
    trust = {stage: one.trust[stage] for stage, one in taken.items()}

    def read(behaviour: str) -> pd.DataFrame:
        rows = [
            (table := one.of(behaviour))[table["stage"] == stage] for stage, one in taken.items()
        ]
        return pd.concat(rows, ignore_index=True)

    return Effects(chosen.estimator, chosen.behaviours, trust, read)


def _best_for(stage: str, tables: Sequence[Effects]) -> Effects:
    of = [table for table in tables if stage in table.trust]
    settled = [table for table in of if is_ground_truth(table.trust[stage])]
    leaned_on = [table for table in of if is_trustworthy(table.trust[stage])]
    # The chosen table comes first in each list, so it wins among equals.
    return [*settled, *leaned_on, *of][0]
