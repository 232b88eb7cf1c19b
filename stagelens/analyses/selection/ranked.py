"""A ranking of training examples, and on disk. Without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.analyses.contributions.contribution_table import asked_digest
from stagelens.contracts import StageLensError
from stagelens.derivatives.curvature_kinds import USUAL, Curvature, key_of
from stagelens.effects.results import BehaviourFacts
from stagelens.runs import fact_tables
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.training_rows import example_key
from stagelens.wording.numbers import count_text

_METHOD = 2
"""Part of every key; raised when what is stored changes."""

COLUMNS = {
    "example_id": "string",
    "label": "string",
    "uses": "int64",
    "rows": "string",
    "value": "float64",
}
"""One row per training example, the most helpful first.

``value`` is its mean contribution to the target per use, on the credit scale: positive where it
helped. ``rows`` are its numbers in the recorded data set, with blanks between where the data set
has it several times; missing without a data set.
"""

HALVES = ("first_half", "second_half")
"""The same value for each half of the target by itself; missing where the target has no halves."""
GROUP = "group"
"""The group of each example, where examples are valued by groups."""
FEW = 8
"""Groups below which nothing is said of how far two halves agree on their order."""
RANKED = {**COLUMNS, **dict.fromkeys(HALVES, "float64")}
"""Columns of a ranking."""

FEWEST_OF_A_LABEL = 4
"""Examples that labels have at least, on average, where they are classes to choose within."""


class RankingFacts(BaseModel):
    """What a stored ranking says of itself.

    Attributes:
        run_digest: Of the run.
        set_digest: Of the evaluation set that the target is of.
        stage: Whose examples are ranked.
        count: How many examples the target has.
        behaviour: What is to become better on them.
        horizon: How many steps later the target was asked; ``steps`` where at the stage's end.
        steps: Of the stage.
        curvature: What stood for second derivatives, see :mod:`stagelens.derivatives.products`.
        asked: See :func:`asked_digest`, of the target's examples; empty in rankings of earlier
            versions.
        per_label: Whether the order is that within labels; see :meth:`Ranking.within_labels`.
        by: The column by whose groups examples are valued; empty where each is by itself.
        groups: Digest of which example is in which group.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    stage: str
    count: int
    asked: str = ""
    behaviour: BehaviourFacts
    horizon: int
    steps: int
    curvature: Curvature = "exact"
    per_label: bool = False
    by: str = ""
    groups: str = ""


@dataclass(frozen=True)
class Ranking:
    """The training examples of a stage, the most helpful first (:data:`RANKED`)."""

    facts: RankingFacts
    table: pd.DataFrame

    @property
    def ids(self) -> list[str]:
        """Of the examples, in order."""
        return [str(name) for name in self.table["example_id"]]

    def by_groups(self, column: str, groups: Mapping[str, str]) -> Ranking:
        """The same examples, valued as their group is; within a group in the order of their own.

        What a single example is worth is little beside what chance makes of it, where the target is
        a sample: the mean of many examples of one source says what their source is worth. It is the
        mean difference from others of the same label, so that no source is better for having more
        of a label that is worth more; the mean of all examples is added, which keeps the unit.

        Args:
            column: What the examples are grouped by, for people.
            groups: Example to its group.

        Raises:
            StageLensError: An example has no group.
        """
        unknown = [name for name in self.ids if name not in groups]
        if unknown:
            raise StageLensError(
                f"{count_text(len(unknown), 'training example')} of {self.facts.stage} without "
                f"{column!r}, {unknown[0]} among them"
            )
        values = self.table[["value", *HALVES]]
        label = self._classes()
        usual = values.mean() if label is None else values.groupby(label).transform("mean")
        own = self.table["example_id"].map(groups)
        means = (values - usual).groupby(own).transform("mean") + values.mean()
        table = self.table.assign(**means)
        table[GROUP] = own.astype("string")
        # Stable, so that examples of one group stay in the order of their own values.
        table = table.sort_values("value", ascending=False, kind="stable", ignore_index=True)
        told = {"by": column, "groups": digest(sorted(groups.items()))[:32]}
        return Ranking(self.facts.model_copy(update=told), table)

    def by_half(self, half: int) -> Ranking | None:
        """The order as one half of the target alone has it; None where the target has no halves.

        Of a ranking whose examples are by themselves: groups and labels are for later, so that what
        the other half says has no part in them.

        Args:
            half: 0 or 1.
        """
        own = self.table[HALVES[half]]
        if own.isna().all():
            return None
        table = self.table.assign(value=own)
        table = table.sort_values("value", ascending=False, kind="stable", ignore_index=True)
        return Ranking(self.facts, table)

    @property
    def agreement(self) -> float:
        """Rank correlation between the orders by one half of the target and by the other.

        Within labels where the order is, and over groups where these are valued. NaN where the
        target has no halves, all are equal, or there are too few groups to say.
        """
        if self.facts.by:
            groups = self.table.drop_duplicates(GROUP)[[*HALVES]]
            return float(groups.corr("spearman").iloc[0, 1]) if len(groups) >= FEW else math.nan
        halves, label = self.table[[*HALVES]], self._classes()
        within = self.facts.per_label and label is not None
        places = (halves.groupby(label) if within else halves).rank(pct=True)
        first, second = (places[name].to_numpy() for name in HALVES)
        known = np.isfinite(first) & np.isfinite(second)
        if not known.any() or np.ptp(first[known]) == 0 or np.ptp(second[known]) == 0:
            return math.nan
        return float(np.corrcoef(first[known], second[known])[0, 1])

    def within_labels(self) -> Ranking:
        """The same examples, so that any part from the top has the same share of every label.

        First order adds up what single examples do. It cannot know that the hundredth more of one
        label helps less than the first, and may choose hardly any of another. The order is that of
        quantiles within labels. Where labels are not classes of several examples each, it is this
        one.
        """
        label = self._classes()
        if label is None:
            return self
        place, count = (label.groupby(label).transform(how) for how in ("cumcount", "size"))
        order = ((place + 0.5) / count).sort_values(kind="stable").index
        facts = self.facts.model_copy(update={"per_label": True})
        return Ranking(facts, self.table.loc[order].reset_index(drop=True))

    def _classes(self) -> pd.Series | None:
        """The label of each example; None where labels are not classes of several examples each."""
        label = self.table["label"].fillna("")
        few = label.nunique() < 2 or len(label) < FEWEST_OF_A_LABEL * label.nunique()
        return None if few else label

    def kept(self, share: float, alike: Mapping[str, int] | None = None) -> list[str]:
        """The best of them.

        Args:
            share: Of all examples, above 0 and at most 1; at least one is kept.
            alike: Example to the number of the group of examples that are nearly the same. Of a
                group only the best is kept, and others take the place of the rest, as long as
                there are others. Examples without a group are like no other.
        """
        first: list[str] = []
        later: list[str] = []
        taken: set[int] = set()
        for name in self.ids:
            group = None if alike is None else alike.get(name)
            (later if group in taken else first).append(name)
            if group is not None:
                taken.add(group)
        return [*first, *later][: count_kept(len(self.table), share)]


def count_kept(count: int, share: float) -> int:
    """How many of ``count`` examples a share is; at least one."""
    return max(1, math.floor(count * share + 0.5))


def ranking_path(
    run: Run,
    stage: Stage,
    examples: EvaluationSet,
    ids: list[str],
    behaviour: str,
    horizon: int,
    curvature: Curvature = USUAL,
) -> Path:
    """Where a ranking is stored, or would be.

    Args:
        run: The run.
        stage: Whose examples.
        examples: The set that the target is of.
        ids: Of the target's examples.
        behaviour: What is to become better.
        horizon: How many steps later.
        curvature: What stands for second derivatives.
    """
    parts = (_METHOD, run.digest, stage.name, examples.digest, asked_digest(ids), behaviour)
    key = digest(*parts, horizon, *key_of(curvature), *example_key(run, stage.name))[:32]
    return run.files.inside(f"results/selection/{key}.parquet")


def load_ranking(
    run: Run,
    stage: Stage,
    examples: EvaluationSet,
    ids: list[str],
    behaviour: str,
    horizon: int,
    curvature: Curvature = USUAL,
) -> Ranking | None:
    """A stored ranking; None where there is none that can be used.

    Args:
        run: As for :func:`ranking_path`, like all others.
        stage: Whose examples.
        examples: The set that the target is of.
        ids: Of the target's examples.
        behaviour: What is to become better.
        horizon: How many steps later.
        curvature: What stands for second derivatives.
    """
    path = ranking_path(run, stage, examples, ids, behaviour, horizon, curvature)
    found = fact_tables.read(path, RankingFacts, RANKED)
    if found is None:
        return None
    facts = found[0]
    # A file that was copied to this name is not believed.
    own = (facts.run_digest, facts.set_digest, facts.stage, facts.count, facts.behaviour.name)
    if own != (run.digest, examples.digest, stage.name, len(ids), behaviour):
        return None
    if (facts.horizon, facts.curvature) != (horizon, curvature):
        return None
    return Ranking(*found) if facts.asked == asked_digest(ids) else None
