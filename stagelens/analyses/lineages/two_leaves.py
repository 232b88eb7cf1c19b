"""What differs between two leaves of a run since they parted. Tables only; nothing imports torch.

The difference is the first leaf's answers less the second's, example by example, so intervals are
those of paired differences. What each stage since did is its own stage effect, on the model of its
own leaf: these do not add up to the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stagelens.contracts import ACCURACY, Behaviour, RunError
from stagelens.effects.contrasts import Spread
from stagelens.effects.results import Result, load_result
from stagelens.effects.summary import group_columns, stage_summary, with_accuracy
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.lineage import common
from stagelens.runs.run import Run
from stagelens.runs.sets.clusters import CLUSTER, with_sources
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.trust.estimates import stored_estimates
from stagelens.trust.verification import trusted_facts
from stagelens.wording.intervals import mean_interval

DIFFERENCES = ("behaviour", "by", "group", "n", "first", "second", "difference", "low", "high")
"""Columns of :func:`differences`; ``by`` and ``group`` are null in rows over all examples."""

EFFECTS = ("leaf", "stage", "behaviour", "n", "effect", "low", "high", "estimator", "trust")
"""Columns of :func:`effects_since`; ``trust`` is a :class:`StageTrust`."""


@dataclass(frozen=True)
class TwoLeaves:
    """Two models of a run, and where their histories part.

    Attributes:
        first: The run along the first leaf's path.
        second: Along the second's.
        shared: Names of the stages that both have.
        since: Leaf to the stages that it has besides, in training order.
    """

    first: Run
    second: Run
    shared: tuple[str, ...]
    since: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, first: Run, second: Run) -> TwoLeaves:
        """Of two histories in one run folder.

        Raises:
            RunError: They are of one leaf, or a run has no finished stage.
        """
        paths = [[stage.name for stage in run.stages] for run in (first, second)]
        if first.last.name == second.last.name:
            raise RunError(
                f"{first.last.name!r} is compared with itself; name two of the leaves: "
                + ", ".join(map(repr, first.lineage.leaves))
            )
        shared = common(paths)
        since = {path[-1]: tuple(path[len(shared) :]) for path in paths}
        return cls(first, second, tuple(shared), since)

    @property
    def names(self) -> tuple[str, str]:
        """Both leaves."""
        return self.first.last.name, self.second.last.name

    def words(self) -> str:
        """Where they part, in a sentence or two."""
        shared = f"have {', '.join(self.shared)} in common" if self.shared else "share the base"
        since = [
            f"{', '.join(stages) or 'none'} (for {leaf})" for leaf, stages in self.since.items()
        ]
        return f"{' and '.join(self.names)} {shared}. Stages since they parted: {', '.join(since)}"


def final_answers(run: Run, examples: EvaluationSet, measured: Result | None = None) -> Result:
    """The final model's values and answers on a set.

    Args:
        run: Along the leaf's path.
        examples: The set.
        measured: Its boundaries; None for what is stored.

    Raises:
        RunError: They have not been measured, or cannot be compared.
    """
    measured = measured or load_result(run, examples, "boundaries")
    if measured is None:
        raise RunError(
            f"{run.last.name!r} has not been measured on set {examples.name!r}; run: stagelens "
            f"compare {run.path} --leaf {run.last.name} --leaf OTHER --set {examples.name}"
        )
    rows = measured.table[measured.table["boundary"] == run.last.name].reset_index(drop=True)
    return Result(measured.facts, rows)


def paired(two: TwoLeaves, examples: EvaluationSet, first: Result, second: Result) -> pd.DataFrame:
    """Both leaves' values as an effect table: ``final`` is the first's, ``without`` the second's.

    Raises:
        RunError: They have no behaviour in common.
    """
    known = [name for name in first.behaviours if name in second.behaviours]
    own, sources = examples.table(), with_sources(examples)
    if CLUSTER in sources:
        own[CLUSTER] = sources[CLUSTER].to_numpy()
    blocks = []
    for name in known:
        a, b = (
            one.table[one.table["behaviour"] == name].set_index("example_id").loc[own["example_id"]]
            for one in (first, second)
        )
        values = a["value"].to_numpy(), b["value"].to_numpy()
        block = pd.DataFrame(
            {
                "set": examples.name,
                "example_id": own["example_id"],
                "stage": two.names[1],
                "behaviour": name,
                "final": values[0],
                "without": values[1],
                "effect": values[0] - values[1],
                "prediction": a["prediction"].to_numpy(),
                "prediction_without": b["prediction"].to_numpy(),
                "within_noise": pd.array([None] * len(own), dtype="boolean"),
            }
        )
        blocks.append(block.join(own.drop(columns="example_id")))
    if not blocks:
        raise RunError(
            f"{two.names[0]!r} and {two.names[1]!r} are measured by no behaviour in common"
        )
    return with_accuracy(pd.concat(blocks, ignore_index=True))


def behaviours_of(table: pd.DataFrame, measured: Result) -> list[Behaviour]:
    """The behaviours that a table of two leaves has, accuracy first."""
    there = set(table["behaviour"].unique())
    known = [each for name, each in measured.behaviours.items() if name in there]
    return [ACCURACY, *known] if ACCURACY.name in there else known


def differences(
    table: pd.DataFrame, behaviour: Behaviour, examples: EvaluationSet, by: str | None = None
) -> pd.DataFrame:
    """Means of both leaves and of their difference, with its 95 % interval over examples.

    Args:
        table: From :func:`paired`.
        behaviour: Which.
        examples: The set.
        by: Column to group by besides; None for the first that forms groups.

    Returns:
        :data:`DIFFERENCES`, all examples first.
    """
    columns = [by] if by else group_columns(table, (*examples.columns, "label"))[:1]
    rows = []
    for column in (None, *columns):
        summary = stage_summary(table, behaviour, list(table["stage"].unique()), column)
        for row in summary.to_dict("records"):
            low, high = Spread(row["effect"], row["error"], row["freedom"]).ends()
            found = (behaviour.name, column, row["group"], row["n"])
            values = (row["final"], row["without"], row["effect"], low, high)
            rows.append((*found, *values))
    return pd.DataFrame(rows, columns=list(DIFFERENCES))


def effects_since(
    run: Run,
    stages: tuple[str, ...],
    examples: EvaluationSet,
    behaviour: Behaviour,
    estimator: str | None = None,
) -> pd.DataFrame:
    """What each of these stages did to the leaf's final model, by the best stored estimate.

    Args:
        run: The leaf's run.
        stages: Those since the leaves parted.
        examples: What was measured on.
        behaviour: What was measured.
        estimator: The only one that counts; None for any.

    Returns:
        :data:`EFFECTS`; a stage of which nothing is stored, or that was refused, has NaN. Intervals
        hold the error of the estimate too, and are NaN where that is not known.
    """
    best: dict[str, tuple[StageTrust, pd.DataFrame]] = {}
    for facts in stored_estimates(run, examples.name).values():  # best first
        if estimator not in (None, facts.estimator):
            continue
        trust = {one.stage: one for one in trusted_facts(run, facts).stages}
        missing = [name for name in stages if name in trust and name not in best]
        missing = [name for name in missing if trust[name].trust != "refused"]
        if not missing:
            continue
        result = load_result(run, examples, "effects", facts.estimator, facts.settings)
        if result is not None:
            table = with_accuracy(result.table)
            best |= {n: (trust[n], table[table["stage"] == n]) for n in missing}
    rows: list[tuple[Any, ...]] = []
    for name in stages:
        if name not in best:
            rows.append((run.last.name, name, behaviour.name, 0, *[float("nan")] * 3, "", None))
            continue
        known, table = best[name]
        (row,) = stage_summary(table, behaviour, [name]).to_dict("records")
        ends = mean_interval(row, known, behaviour)
        low, high = (float("nan"),) * 2 if ends is None else (ends.low, ends.high)
        about = (run.last.name, name, behaviour.name, row["n"])
        rows.append((*about, row["effect"], low, high, known.estimator, known))
    return pd.DataFrame(rows, columns=list(EFFECTS))
