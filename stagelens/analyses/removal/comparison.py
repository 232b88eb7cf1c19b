"""Before against after, from tables: calibration, confusion, flipped answers, control groups.

Accuracy and margin by group come from ``effects.groups``. Pure pandas and numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stagelens.contracts import Behaviour
from stagelens.effects.contrasts import mean_spread
from stagelens.effects.groups import GroupMetrics, group_metrics
from stagelens.runs.sets.clusters import CLUSTER

from .measurements import STRENGTHS, Measurement

BEFORE, AFTER = "final model", "edited"
"""Names of the models that are compared."""

_BINS = 10


def answers(measurement: Measurement, examples: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """What a model said, beside the examples' labels and columns.

    Args:
        measurement: On N examples.
        examples: ``example_id``, ``label`` and metadata of the same, in the same order.
        rows: (N,) bool, which of them.
    """
    own = measurement.table
    # Columns of the set may have the names of a measurement's.
    beside = examples.drop(columns=[name for name in examples if name in own.columns])
    return pd.concat([own, beside], axis=1)[rows].reset_index(drop=True)


@dataclass(frozen=True)
class AnswerChange:
    """How the answers to labelled examples changed.

    Attributes:
        mended: Wrong before, right after.
        broken: Right before, wrong after.
        other: Wrong before, and otherwise wrong after.
    """

    mended: int
    broken: int
    other: int


def changed_answers(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The examples whose answer changed: ``example_id``, ``label``, both answers and confidences.

    ``change`` is ``mended``, ``broken``, ``other``, or null without a label. Broken ones
    come first, then other, mended and unlabelled ones, the edited model's surest answers first.
    """
    changed = (before["prediction"] != after["prediction"]).to_numpy()
    one, other = before[changed], after[changed]
    table = pd.DataFrame(
        {
            "example_id": one["example_id"],
            "label": one["label"],
            "before": one["prediction"],
            "after": other["prediction"],
            "confidence_before": one["confidence"],
            "confidence_after": other["confidence"],
        }
    )
    was, now = (table[side].astype(object) == table["label"] for side in ("before", "after"))
    change = pd.Series(np.select([was, now], ["broken", "mended"], "other"), table.index)
    table["change"] = change.where(table["label"].notna(), None)
    rank = table["change"].map({"broken": 0, "other": 1, "mended": 2})
    # lexsort goes by its last key first.
    order = np.lexsort((-table["confidence_after"].to_numpy(float), rank.fillna(3).to_numpy()))
    return table.iloc[order].reset_index(drop=True)


def answer_changes(table: pd.DataFrame) -> AnswerChange:
    """Counts over a table of :func:`changed_answers`."""
    counts = table["change"].value_counts()
    return AnswerChange(*(int(counts.get(name, 0)) for name in ("mended", "broken", "other")))


def calibration(table: pd.DataFrame) -> pd.DataFrame:
    """How often answers are right, by how sure the model was of them.

    Returns:
        A row per bin of confidence that has examples: ``low``, ``high``, ``n``, mean
        ``confidence``, ``accuracy``.
    """
    known = table[table["label"].notna() & table["confidence"].notna()]
    right = (known["prediction"].astype(object) == known["label"]).to_numpy(float)
    sure = known["confidence"].to_numpy(float)
    # A confidence of 1 belongs to the last bin.
    place = np.minimum((sure * _BINS).astype(int), _BINS - 1)
    rows = []
    for number in np.unique(place):
        mine = place == number
        low, high = number / _BINS, (number + 1) / _BINS
        rows.append((low, high, int(mine.sum()), sure[mine].mean(), right[mine].mean()))
    return pd.DataFrame(rows, columns=["low", "high", "n", "confidence", "accuracy"])


def calibration_error(bins: pd.DataFrame) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over examples; 0..1."""
    if bins.empty:
        return float("nan")
    gaps = (bins["confidence"] - bins["accuracy"]).abs()
    return float(np.average(gaps, weights=bins["n"]))


def confusion(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Counts of labels (rows) and answers (columns), both in the order of ``classes``."""
    known = table[table["label"].notna()]
    counts = pd.crosstab(known["label"].astype(str), known["prediction"].astype(str))
    # crosstab leaves out classes that no example has, or that no answer is.
    return counts.reindex(index=classes, columns=classes, fill_value=0)


@dataclass(frozen=True)
class Change:
    """A behaviour's mean before and after, and its mean change with a 95 % interval."""

    behaviour: Behaviour
    before: float
    after: float
    change: float
    low: float
    high: float
    n: int


def mean_changes(
    before: pd.DataFrame, after: pd.DataFrame, behaviours: Sequence[Behaviour]
) -> list[Change]:
    """Mean change of every behaviour over the same examples, with intervals over these."""
    clusters = pd.factorize(before[CLUSTER])[0] if CLUSTER in before else None
    found = []
    for behaviour in behaviours:
        one, other = before[behaviour.name].to_numpy(float), after[behaviour.name].to_numpy(float)
        known = np.isfinite(one) & np.isfinite(other)
        if not known.any():
            continue
        change = other[known] - one[known]
        low, high = mean_spread(change, None if clusters is None else clusters[known]).ends()
        found.append(
            Change(
                behaviour,
                float(one[known].mean()),
                float(other[known].mean()),
                float(change.mean()),
                low,
                high,
                len(change),
            )
        )
    return found


# ------------------------------------------------------------------------------------- preview


@dataclass(frozen=True)
class Preview:
    """Accuracies at computed strengths, from which those between are interpolated.

    Attributes:
        groups: G names; None stands for all examples.
        final: (G,) accuracy of the final model.
        alone: Stage to (len(STRENGTHS), G) accuracies with only this stage taken out.
    """

    groups: tuple[str | None, ...]
    final: np.ndarray
    alone: Mapping[str, np.ndarray]

    def at(self, strengths: Mapping[str, float]) -> np.ndarray:
        """(G,) accuracies, interpolated between strengths and added up over stages."""
        values = self.final.copy()
        for stage, strength in strengths.items():
            known = np.vstack([self.final, self.alone[stage]])
            knots = (0.0, *STRENGTHS)
            at = [np.interp(strength, knots, known[:, g]) for g in range(len(self.groups))]
            values += np.asarray(at) - self.final
        # Changes that are added up over stages may leave the range.
        return np.clip(values, 0.0, 1.0)

    @staticmethod
    def computed(strengths: Mapping[str, float]) -> bool:
        """Whether the grid itself has these: at most one stage, at a computed strength."""
        taken = [strength for strength in strengths.values() if strength]
        return len(taken) <= 1 and all(strength in STRENGTHS for strength in taken)


def preview(
    measurements: Sequence[Measurement], examples: pd.DataFrame, rows: np.ndarray, by: str | None
) -> Preview:
    """A preview from the measurements of ``measurements.grid``."""
    table = examples[rows]
    labels = table["label"].to_numpy(object)
    labelled = table["label"].notna().to_numpy()
    names: list[str | None] = [None]
    parts = [labelled]
    if by is not None:
        values = table[by].astype(object).map(str, na_action="ignore")
        for name in sorted(values.dropna().unique()):
            names.append(name)
            parts.append(labelled & (values == name).to_numpy())

    def accuracies(one: Measurement) -> np.ndarray:
        right = one.table["prediction"].to_numpy(object)[rows] == labels
        return np.asarray([right[part].mean() if part.any() else np.nan for part in parts])

    alone: dict[str, dict[float, np.ndarray]] = {}
    final = None
    for one in measurements:
        if not one.edit.strengths:
            final = accuracies(one)
        else:
            ((stage, strength),) = one.edit.strengths.items()
            alone.setdefault(stage, {})[strength] = accuracies(one)
    assert final is not None, "the grid has the final model"
    stacked = {name: np.stack([own[s] for s in STRENGTHS]) for name, own in alone.items()}
    return Preview(tuple(names), final, stacked)


# ------------------------------------------------------------------------------------- choosing


def worst_stage(
    effects: pd.DataFrame, chosen: np.ndarray, stages: Sequence[str], group: pd.Series, name: str
) -> str | None:
    """The stage without which accuracy on a group would be highest; None where every stage helps.

    Args:
        effects: An effect table.
        chosen: (N,) bool, the examples to choose on, in the set's order.
        stages: Stage names in training order.
        group: (N,) group of every example.
        name: Which group.
    """
    behaviour = effects["behaviour"].iloc[0]
    rows = chosen & (group.astype(object).map(str, na_action="ignore") == name).to_numpy()
    gains: dict[str, float] = {}
    for stage in stages:
        own = effects[(effects["stage"] == stage) & (effects["behaviour"] == behaviour)][rows]
        known = own["prediction_without"].notna() & own["label"].notna()
        label = own.loc[known, "label"].astype(object)
        without = own.loc[known, "prediction_without"].astype(object) == label
        final = own.loc[known, "prediction"].astype(object) == label
        if known.any():
            gains[stage] = float(without.mean() - final.mean())
    worst = max(gains, key=lambda stage: gains[stage], default=None)
    return worst if worst is not None and gains[worst] > 0 else None


def by_groups(models: Mapping[str, pd.DataFrame], by: str | None) -> GroupMetrics:
    """Accuracy and margin of several models, overall and by group, with intervals."""
    tables = {name: table.assign(_all="all") for name, table in models.items()}
    return group_metrics(tables, [by or "_all"])
