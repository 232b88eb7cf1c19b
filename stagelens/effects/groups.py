"""How well models do on each group of a set: accuracy, errors by class, margin, and the gap.

Works on plain tables of answers, one row per example: ``label``, ``prediction``, ``margin`` where
it was measured, and any columns that define groups. Pure pandas and numpy.

Models are compared on the same examples, so how much one changes a gap is the difference of mean
changes of examples between two groups. Intervals are those of :mod:`.contrasts`. The gap is the one
between two *named* groups, the best and the worst of the first model; for the other models it keeps
these groups, and is negative where the order is reversed. (A gap between whichever groups are
furthest apart would grow by chance alone.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stagelens.contracts import SetError
from stagelens.runs.sets.clusters import CLUSTER

from .contrasts import difference_spread, mean_spread, share_interval, shares_difference
from .rates import class_worths, rates

_WORTHS = ("missed_worth", "false_worth")
"""Columns while intervals of errors by class are made: see ``rates.class_worths``."""

MINIMUM = 10
"""Labelled examples that a group needs to be called best or worst."""

GROUP_COLUMNS = (
    "model",
    "group",
    "n",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "margin",
    "margin_low",
    "margin_high",
)
CLASS_COLUMNS = (
    "model",
    "group",
    "label",
    "n",
    "missed",
    "missed_low",
    "missed_high",
    "others",
    "false",
    "false_low",
    "false_high",
)
GAP_COLUMNS = (
    "model",
    "gap",
    "gap_low",
    "gap_high",
    "change",
    "change_low",
    "change_high",
    "worst",
    "worst_value",
)


@dataclass(frozen=True)
class GroupMetrics:
    """Measurements of models on the groups of a set. Intervals are 95 %.

    Attributes:
        groups: One row per model and group (:data:`GROUP_COLUMNS`); the row over all examples has
            a null ``group``. ``n`` counts labelled examples; figures are NaN for a model without
            answers, such as that without a refused stage.
        classes: One row per model, group and class (:data:`CLASS_COLUMNS`). ``missed`` is the
            share of the group's ``n`` examples of the class that are given another answer,
            ``false`` the share of its ``others`` (examples of other classes) that are given the
            class as answer.
        gaps: One row per model (:data:`GAP_COLUMNS`), empty where fewer than two groups have
            :data:`MINIMUM` examples. ``gap`` is the value on ``best`` minus that on ``worst``;
            ``change`` is the gap of the first model minus this one's, so positive where the first
            is more unequal. ``worst`` is the model's own worst group.
        measure: What the gap is in: ``"accuracy"`` or ``"margin"``.
        best: The first model's best group; None without a gap.
        worst: Its worst group.
        unlabelled: How many examples are left out because they have no label.
    """

    groups: pd.DataFrame
    classes: pd.DataFrame
    gaps: pd.DataFrame
    measure: str
    best: str | None
    worst: str | None
    unlabelled: int


def crossed(table: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """One group name per example: the columns' values, ``"stamped · 3"``; null where any is null.

    Args:
        table: One row per example.
        columns: One or several of its columns.

    Raises:
        SetError: A column is missing; names those that exist.
    """
    missing = [name for name in columns if name not in table]
    if missing:
        raise SetError(
            f"there is no column {missing[0]!r} to make groups of; choose one of "
            f"{', '.join(map(str, table.columns))}"
        )
    # As objects: a categorical column would map its categories, and refuse to be added to.
    name = table[columns[0]].astype(object).map(str, na_action="ignore")
    for column in columns[1:]:
        name = name + " · " + table[column].astype(object).map(str, na_action="ignore")
    return name


def group_metrics(
    models: Mapping[str, pd.DataFrame],
    by: Sequence[str],
    measure: str = "accuracy",
) -> GroupMetrics:
    """Measure models on the groups of a set, and the gap between the best and the worst group.

    Args:
        models: Name to answers on the same examples in the same order; the gap is that of the
            first. Each has ``label``, ``prediction`` and the columns of ``by``, and may have
            ``margin``, and a column ``cluster`` of who shares a source.
        by: Columns that define groups; several are crossed.
        measure: What best, worst and the gap refer to: ``"accuracy"`` or ``"margin"``.

    Raises:
        SetError: A column is missing, or the models were measured on different examples.
    """
    first = next(iter(models.values()))
    _check_same(models)
    labelled = first["label"].notna().to_numpy()
    data = _Data.of(
        {name: table[labelled] for name, table in models.items()}, crossed(first, by)[labelled]
    )
    groups = _group_rows(data)
    best, worst, gaps = _gaps(data, groups, measure)
    unlabelled = int((~labelled).sum())
    return GroupMetrics(groups, _class_rows(data), gaps, measure, best, worst, unlabelled)


def _check_same(models: Mapping[str, pd.DataFrame]) -> None:
    tables = list(models.values())
    for name, table in models.items():
        same = len(table) == len(tables[0])
        if same and "example_id" in table and "example_id" in tables[0]:
            same = bool((table["example_id"].array == tables[0]["example_id"].array).all())
        if not same:
            raise SetError(
                f"{name} was measured on other examples than {next(iter(models))}; measure both "
                "on one set, in one order"
            )


@dataclass(frozen=True)
class _Data:
    """Answers as numbers, over the N labelled examples.

    Attributes:
        models: M names.
        groups: G names; ``group`` (N,) holds indices into them, -1 where an example is in none.
        classes: C names of labels and answers; ``label`` (N,) and ``answer`` (N, M) hold indices
            into them, -1 where there is no answer.
        clusters: (N,) as ``contrasts.mean_spread`` takes them; None where all are apart.
        values: (N, 2, M) correctness (1, 0, or NaN without an answer) and margin of each model.
    """

    models: list[str]
    groups: list[str]
    group: np.ndarray
    classes: list[str]
    label: np.ndarray
    answer: np.ndarray
    values: np.ndarray
    clusters: np.ndarray | None

    @classmethod
    def of(cls, models: Mapping[str, pd.DataFrame], group: pd.Series) -> _Data:
        tables = list(models.values())
        columns = [tables[0]["label"], *(table["prediction"] for table in tables)]
        (label, *answers), classes = _coded(columns)
        answer = np.stack(answers, axis=1)
        right = np.where(answer < 0, np.nan, answer == label[:, None])
        margins = [
            table["margin"].to_numpy(dtype=float)
            if "margin" in table
            else np.full(len(table), np.nan)
            for table in tables
        ]
        codes, names = pd.factorize(group, sort=True)
        values = np.stack([right, np.stack(margins, axis=1)], axis=1)
        shared = pd.factorize(tables[0][CLUSTER])[0] if CLUSTER in tables[0] else None
        return cls(list(models), list(names), codes, classes, label, answer, values, shared)

    def members(self) -> list[tuple[str | None, np.ndarray]]:
        """All examples, named None, then those of each group, as (N,) masks."""
        everyone = np.ones(len(self.group), dtype=bool)
        return [(None, everyone), *((n, self.group == i) for i, n in enumerate(self.groups))]


def _coded(columns: Sequence[pd.Series]) -> tuple[list[np.ndarray], list[str]]:
    """Columns as places in the sorted texts that occur in any of them; -1 where there is none."""
    # The few different values are made text, and not those of every row.
    found = [pd.factorize(column) for column in columns]
    named = [[str(value) for value in values] for _, values in found]
    texts = sorted({text for own in named for text in own})
    place = {text: number for number, text in enumerate(texts)}
    small = np.int16 if len(texts) < 2**15 else np.int64
    coded = []
    for (codes, _), own in zip(found, named, strict=True):
        # One more at the end, for the code -1.
        coded.append(np.array([*(place[text] for text in own), -1], dtype=small)[codes])
    return coded, texts


# ---------------------------------------------------------------------------------------- rows


def _group_rows(data: _Data) -> pd.DataFrame:
    frames = []
    for name, of in data.members():
        own = data.values[of]  # (n, 2, M)
        shared = None if data.clusters is None else data.clusters[of]
        count = np.full(len(data.models), len(own))
        with np.errstate(invalid="ignore"):  # 0 of 0
            accuracy, margin = own.sum(axis=0) / count
        figures = {"accuracy": accuracy, "margin": margin}
        for place, kind in enumerate(figures.copy()):
            # One example without a value leaves the group without a figure, and so without ends.
            ends = np.array([_ends(each, kind, shared) for each in own[:, place].T])
            figures[f"{kind}_low"], figures[f"{kind}_high"] = ends.T
        facts = {"model": data.models, "group": name, "n": count}
        frames.append(pd.DataFrame({**facts, **figures}, columns=list(GROUP_COLUMNS)))
    rows = pd.concat(frames, ignore_index=True)
    # Model by model, and within a model group by group.
    order = np.arange(len(rows)).reshape(len(frames), -1).T.ravel()
    return rows.iloc[order].reset_index(drop=True)


def _ends(values: np.ndarray, kind: str, clusters: np.ndarray | None) -> tuple[float, float]:
    if not np.isfinite(values).all():
        return float("nan"), float("nan")
    if kind == "accuracy":
        return share_interval(values, clusters)
    return mean_spread(values, clusters).ends()


def _class_rows(data: _Data) -> pd.DataFrame:
    """From how often each class was given each answer, counted once for every group and model."""
    count = len(data.classes)
    known = sorted(set(data.label))
    labels = [data.classes[place] for place in known]
    members = data.members()
    frames = []
    for number, model in enumerate(data.models):
        # No answer comes first.
        cell = data.label.astype(int) * (count + 1) + data.answer[:, number] + 1
        for name, of in members:
            times = np.bincount(cell[of], minlength=count * (count + 1)).reshape(count, count + 1)
            unknown, given = times[known, 0], times[known][:, 1:]
            total, right = times[known].sum(axis=1), given[np.arange(len(known)), known]
            # NaN where an answer is not known: a share of the others would be about fewer.
            missed = np.where(unknown > 0, np.nan, total - right)
            called = given.sum(axis=0)[known] - right
            false = np.where(unknown.sum() - unknown > 0, np.nan, called)
            counts = {"n": total, "missed": missed, "others": total.sum() - total, "false": false}
            if data.clusters is not None:
                own = data.label[of], data.answer[of, number], data.clusters[of]
                worths = class_worths(*own, count)
                counts |= {kind: worth[known] for kind, worth in zip(_WORTHS, worths, strict=True)}
            frames.append(pd.DataFrame({"model": model, "group": name, "label": labels, **counts}))
    rows = pd.concat(frames, ignore_index=True)
    for kind, of_these, worth in zip(("missed", "false"), ("n", "others"), _WORTHS, strict=True):
        counted = (rows[each].to_numpy(float) for each in (kind, of_these, worth) if each in rows)
        rows[kind], rows[f"{kind}_low"], rows[f"{kind}_high"] = rates(*counted)
    return rows[list(CLASS_COLUMNS)]


def _gaps(
    data: _Data, groups: pd.DataFrame, measure: str
) -> tuple[str | None, str | None, pd.DataFrame]:
    """Best and worst group of the first model, and the gap between them for every model."""
    models = data.models
    nothing = pd.DataFrame(columns=list(GAP_COLUMNS))
    # Among small groups, chance alone would decide which is best or worst.
    large = groups[groups["group"].notna() & (groups["n"] >= MINIMUM)]
    values = large.pivot(index="group", columns="model", values=measure)
    if len(values) < 2 or not np.isfinite(values[models[0]]).all():
        return None, None, nothing
    best, worst = str(values[models[0]].idxmax()), str(values[models[0]].idxmin())
    if best == worst:  # all are equal: any two show the gap of 0, with its interval
        best, worst = (str(name) for name in values.index[:2])
    share = measure == "accuracy"
    every = data.values[:, 0 if share else 1]
    first, second = (data.group == data.groups.index(name) for name in (best, worst))
    exact = values.loc[best] - values.loc[worst]
    rows = []
    for number, model in enumerate(models):
        own_worst, value = None, float("nan")
        if np.isfinite(values[model]).all():
            own_worst = str(values[model].idxmin())
            value = float(values[model].min())
        gap = change = (float("nan"), float("nan"))
        if np.isfinite(exact[model]):
            own = every[:, number]
            gap = (
                shares_difference(own, first, second, data.clusters)
                if share
                else difference_spread(own, first, second, data.clusters).ends()
            )
            change = (0.0, 0.0)  # the first model is the one that others are held against
            if number:
                changes = every[:, 0] - own
                change = difference_spread(changes, first, second, data.clusters, share).ends()
        rows.append(
            (
                *(model, float(exact[model]), *gap),
                *(float(exact[models[0]] - exact[model]), *change),
                *(own_worst, value),
            )
        )
    return best, worst, pd.DataFrame(rows, columns=list(GAP_COLUMNS))
