"""Which effect tables are stored, how they are named, and how pages and reports read them.

An *estimate* is an estimator with its settings; it has one name, such as ``coarse-replay 1/4``, in
controls, links, reports and cache keys alike. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import RLock

import pandas as pd

from stagelens.contracts import ACCURACY, Behaviour, RunError
from stagelens.effects import summary
from stagelens.effects.results import (
    Result,
    ResultFacts,
    is_large,
    load_result,
    result_path,
    stored_results,
)
from stagelens.estimators.registry import estimate_name, estimators, find
from stagelens.estimators.stage_trust import StageTrust, is_ground_truth
from stagelens.runs.run import Run
from stagelens.wording.trust_words import is_trustworthy

from . import noise
from .verification import trusted_facts

_HELD = 128 << 20
"""Bytes that one :class:`Effects` keeps in memory, beside the rows that were asked for last."""

Read = Callable[[str, str | None, Sequence[str] | None], pd.DataFrame]
"""Gives the rows of a behaviour and of a stage, by their names, with these columns as far as there
are such; None for all stages, or all columns."""

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
        read: Read,
        by_stage: bool = False,
    ) -> None:
        """Effects whose rows are read when they are first needed.

        Args:
            estimator: See above.
            behaviours: See above.
            trust: See above.
            read: See :data:`Read`.
            by_stage: Whether :meth:`parts` reads stage by stage, because the set is large.
        """
        self.estimator, self.behaviours, self.trust = estimator, behaviours, trust
        self.by_stage = by_stage
        self._read = read
        # By behaviour, the one that was asked for last at the end.
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

        def read(name: str, stage: str | None, _: Sequence[str] | None) -> pd.DataFrame:
            rows = table[table["behaviour"] == name]
            return rows if stage is None else rows[rows["stage"] == stage]

        return cls(estimator, behaviours, trust, read)

    def of(self, behaviour: str) -> pd.DataFrame:
        """The rows of one behaviour: one per stage and example, in this order.

        Raises:
            RunError: The table on disk was damaged; says what to do.
        """
        with self._reading:
            rows = self._rows.pop(behaviour, None)
            self._rows[behaviour] = self._read(behaviour, None, None) if rows is None else rows
            while len(self._rows) > 1 and self._bytes() > _HELD:
                del self._rows[next(iter(self._rows))]
            return self._rows[behaviour]

    def _bytes(self) -> int:
        return sum(int(rows.memory_usage().sum()) for rows in self._rows.values())

    def parts(self, behaviour: str, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """The same rows in parts, each of whole stages, in order: one part where the set is small.

        Of a large set no more than a stage's rows are in memory at a time, and none stay.

        Args:
            behaviour: Its name.
            columns: What is needed of them, as far as there are such; there may be more.

        Raises:
            RunError: As in :meth:`of`.
        """
        if not self.by_stage:
            yield self.of(behaviour)
            return
        for stage in self.trust:
            yield self._read(behaviour, stage, columns)

    def of_stage(self, behaviour: str, stage: str, columns: Sequence[str]) -> pd.DataFrame:
        """The rows of one behaviour and stage, as :meth:`parts` gives them."""
        if self.by_stage:
            return self._read(behaviour, stage, columns)
        rows = self.of(behaviour)
        return rows[rows["stage"] == stage]

    @property
    def first(self) -> pd.DataFrame:
        """The rows of :attr:`measured`."""
        return self.of(self.measured)

    @property
    def measured(self) -> str:
        """The first behaviour that was measured: answers are the same in all."""
        return next(name for name in self.behaviours if name != ACCURACY.name)

    def with_columns(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Effects:
        """The same with further columns, which follow from the ids.

        Args:
            change: From rows to the same rows with these columns beside the others.
        """

        def read(behaviour: str, stage: str | None, columns: Sequence[str] | None) -> pd.DataFrame:
            if stage is None:
                return change(self.of(behaviour))
            needed = list(dict.fromkeys([*(columns or ()), "example_id"]))
            return change(self.of_stage(behaviour, stage, needed))

        return Effects(self.estimator, self.behaviours, self.trust, read, self.by_stage)


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

    def read(name: str, stage: str | None, columns: Sequence[str] | None) -> pd.DataFrame:
        if columns is not None:
            # What answers and noise need to be told.
            noisy = noise.MARKED if orders is not None else ()
            columns = list(dict.fromkeys([*columns, *summary.ANSWERS, *noisy]))
        if name == ACCURACY.name:
            whole = stage is None
            first = effects.first if whole else stored(effects.measured, stage, columns)
            return noise.marked(summary.accuracy_rows(first), orders)
        return noise.marked(stored(name, stage, columns), orders)

    def stored(name: str, stage: str | None, columns: Sequence[str] | None) -> pd.DataFrame:
        found = load_result(
            *(run, examples, "effects", facts.estimator, facts.settings),
            *(coded, name, stage, columns),
        )
        if found is None:
            path = result_path(run, facts)
            raise RunError(
                f"{path} is damaged or was deleted: the effects by {estimate} on set "
                f"{facts.set_name} cannot be read; delete it where it is still there, load the "
                "page again, and have them computed again"
            )
        return found.table

    examples = run.evaluation_set(facts.set_name)
    trust = {stage.stage: stage for stage in facts.stages}
    effects = Effects(estimate, behaviours, trust, read, is_large(examples.count))
    return effects


def best_known(chosen: Effects, others: Sequence[Effects]) -> Effects:
    """For each stage the numbers of which most is known: by replay, else those to rely on.

    Where no table of a stage can be relied on, its numbers are those that were chosen.
    """
    taken = {stage: _best_for(stage, [chosen, *others]) for stage in chosen.trust}
    trust = {stage: one.trust[stage] for stage, one in taken.items()}

    def read(behaviour: str, stage: str | None, columns: Sequence[str] | None) -> pd.DataFrame:
        if stage is not None:
            return taken[stage].of_stage(behaviour, stage, columns or ())
        rows = [(table := one.of(behaviour))[table["stage"] == name] for name, one in taken.items()]
        return pd.concat(rows, ignore_index=True)

    return Effects(chosen.estimator, chosen.behaviours, trust, read, chosen.by_stage)


def _best_for(stage: str, tables: Sequence[Effects]) -> Effects:
    of = [table for table in tables if stage in table.trust]
    settled = [table for table in of if is_ground_truth(table.trust[stage])]
    leaned_on = [table for table in of if is_trustworthy(table.trust[stage])]
    # The chosen table comes first in each list, so it wins among equals.
    return [*settled, *leaned_on, *of][0]
