"""Stage effects as pages and reports use them: read when they are first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import RLock

import pandas as pd

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.estimators.stage_trust import StageTrust

_HELD = 128 << 20
"""Bytes that one :class:`Effects` keeps in memory, beside the rows that were asked for last."""

Read = Callable[[str, str | None, Sequence[str] | None], pd.DataFrame]
"""Gives the rows of a behaviour and of a stage, by their names, with these columns as far as there
are such; None for all stages, or all columns."""


class Effects:
    """Stage effects as pages and reports use them; shared between sessions, and never changed.

    Attributes:
        estimator: How the counterfactuals were obtained, as :func:`estimate_name` writes it.
        behaviours: By name; accuracy first where the set has labels, then as the result lists them.
        trust: What is known of each stage's counterfactual, in training order.
        sources: Stage to the estimate whose table its numbers are from: ``estimator``, or another
            where that table lacks the stage.
        judged: Behaviour to the estimate that its effects are by and to what is known of each
            stage's, for those that have a table of their own, as scores have.
    """

    def __init__(
        self,
        estimator: str,
        behaviours: Mapping[str, Behaviour],
        trust: Mapping[str, StageTrust],
        read: Read,
        by_stage: bool = False,
        sources: Mapping[str, str] | None = None,
        judged: Mapping[str, tuple[str, Mapping[str, StageTrust]]] | None = None,
    ) -> None:
        """Effects whose rows are read when they are first needed.

        Args:
            estimator: See above.
            behaviours: See above.
            trust: See above.
            read: See :data:`Read`.
            by_stage: Whether :meth:`parts` reads stage by stage, because the set is large.
            sources: See above; by default ``estimator`` for every stage.
            judged: See above; by default none.
        """
        self.estimator, self.behaviours, self.trust = estimator, behaviours, trust
        self.sources = sources or dict.fromkeys(trust, estimator)
        self.by_stage, self.judged = by_stage, judged or {}
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

    def trust_of(self, behaviour: str) -> Mapping[str, StageTrust]:
        """What is known of each stage's effects on a behaviour, by the behaviour's name."""
        return self.judged[behaviour][1] if behaviour in self.judged else self.trust

    def about(self, behaviour: str) -> Effects:
        """The same for a page about one behaviour: what is known of its effects is ``trust``."""
        if behaviour not in self.judged:
            return self

        def read(name: str, stage: str | None, columns: Sequence[str] | None) -> pd.DataFrame:
            return self.of(name) if stage is None else self.of_stage(name, stage, columns or ())

        estimate, trust = self.judged[behaviour]
        sources = dict.fromkeys(trust, estimate)
        return Effects(
            *(self.estimator, self.behaviours, trust, read, self.by_stage, sources),
            judged=self.judged,
        )

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

        return Effects(
            *(self.estimator, self.behaviours, self.trust, read, self.by_stage, self.sources),
            judged=self.judged,
        )
