"""From effect tables to the numbers that people read: means by stage, by group, by boundary.

Sign convention, everywhere: ``effect = final - without``. The *gain* of a stage is ``sign *
effect``, with the behaviour's own sign (+1 where higher is better, -1 where lower is), so a
positive gain is credit and a negative one is blame, for every behaviour. Per stage, credit and
blame are the means of the positive and of the negative part of the gain over all examples, so
``credit + blame`` is the mean gain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import ACCURACY, BASE, Behaviour, is_fraction
from stagelens.runs.sets.clusters import CLUSTER

from .contrasts import mean_spread
from .draws import DrawnEffects, columns_of, intervals_of_means

SUMMARY_COLUMNS = (
    "stage",
    "group",
    "n",
    "missing",
    "final",
    "without",
    "effect",
    "gain",
    "credit",
    "blame",
    "credit_share",
    "blame_share",
    "error",
    "freedom",
    "rms",
    "noise_share",
    "noise_sd",
    "within_noise",
    "draw_effect",
    "draw_low",
    "draw_high",
    "draw_sd",
    "draw_single",
    "drawn",
)
"""Columns of :func:`stage_summary`; ``group`` is null in rows over all examples."""


SUMMARISED = ("stage", "behaviour", "label", "final", "without", "effect", "within_noise", CLUSTER)
"""Columns of an effect table that :func:`stage_summary` needs, beside that of the groups and, where
the training noise is known or the recipe was drawn, ``example_id``."""

ANSWERS = ("behaviour", "prediction", "prediction_without", "label")
"""Columns of an effect table that :func:`accuracy_rows` needs."""


def with_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """An effect table with rows for the derived behaviour ``accuracy`` added.

    Args:
        table: An effect table. Every row has the answers, so one behaviour's rows are enough.

    Returns:
        The same columns. ``final`` and ``without`` of the new rows are 1 where the answer is the
        label, 0 where it is not, and NaN where the example has no label or the stage was refused.
    """
    if table.empty or "label" not in table or table["label"].isna().all():
        return table
    table, rows = _as_accuracy(table)
    return pd.concat([table, _right_or_not(rows)], ignore_index=True)


def accuracy_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that :func:`with_accuracy` adds to an effect table of labelled examples."""
    return _right_or_not(_as_accuracy(table)[1])


def _right_or_not(rows: pd.DataFrame) -> pd.DataFrame:
    final = right_answers(rows["prediction"], rows["label"])
    without = right_answers(rows["prediction_without"], rows["label"])
    return rows.assign(
        final=final,
        without=without,
        effect=final - without,
        within_noise=pd.Series(pd.NA, rows.index, dtype="boolean"),
    )


def boundaries_with_accuracy(table: pd.DataFrame, examples: pd.DataFrame) -> pd.DataFrame:
    """A boundary table with the derived behaviour ``accuracy`` and the set's own columns.

    Args:
        table: A boundary table.
        examples: One row per example, with ``example_id`` and further columns.
    """
    rows_of = _places(table["example_id"], examples["example_id"])
    added = {}
    for name in examples.columns.difference(table.columns, sort=False):
        own = examples[name]
        # The few different texts, and not every row's, are repeated for each boundary.
        own = own.astype("category") if pd.api.types.is_string_dtype(own.dtype) else own
        added[name] = own.take(rows_of).set_axis(table.index)
    table = table.assign(**added)
    if table.empty or "label" not in table or table["label"].isna().all():
        return table
    table, rows = _as_accuracy(table)
    rows["value"] = right_answers(rows["prediction"], rows["label"])
    return pd.concat([table, rows], ignore_index=True)


def _places(ids: pd.Series, known: pd.Series) -> np.ndarray:
    """The place of every id among those that are known."""
    index = pd.Index(known)
    # Usually the order is the same, and looking up a million ids takes seconds.
    return np.arange(len(ids)) if index.equals(pd.Index(ids)) else index.get_indexer(ids)


def _as_accuracy(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table and its rows of the first behaviour, renamed to accuracy, with equal types."""
    behaviours = table["behaviour"]
    rows = of_behaviour(table, behaviours.iloc[0])
    # Joining categorical columns with other categories would turn them into objects.
    if not isinstance(behaviours.dtype, pd.CategoricalDtype):
        return table, rows.assign(behaviour=ACCURACY.name)
    if ACCURACY.name not in behaviours.cat.categories:
        behaviours = behaviours.cat.add_categories([ACCURACY.name])
    named = pd.Series(ACCURACY.name, rows.index, dtype=behaviours.dtype)
    return table.assign(behaviour=behaviours), rows.assign(behaviour=named)


def right_answers(answers: pd.Series, labels: pd.Series) -> pd.Series:
    """1 where an answer is the label, 0 where it is not, NaN where either is unknown."""
    known = answers.notna() & labels.notna()
    if isinstance(answers.dtype, pd.CategoricalDtype):
        # Codes are compared, which takes the same categories in both.
        labels = labels.astype("category")
        every = answers.cat.categories.union(labels.cat.categories, sort=False)
        answers, labels = (each.cat.set_categories(every) for each in (answers, labels))
    else:
        answers, labels = answers.astype(object), labels.astype(object)
    return (answers == labels).astype(float).where(known, np.nan)


def stage_summary(
    table: pd.DataFrame,
    behaviour: Behaviour,
    stages: Sequence[str],
    by: str | None = None,
    orders: pd.DataFrame | None = None,
    draws: DrawnEffects | None = None,
) -> pd.DataFrame:
    """Means per stage, over all examples or per group.

    Args:
        table: An effect table, with :func:`with_accuracy` applied where accuracy is asked for.
        behaviour: Which of its behaviours.
        stages: Stage names in training order; rows come in this order.
        by: Column to group by; None for all examples.
        orders: Effects in several orders of the batches, as ``noise.load_orders`` gives them;
            None where the training noise is not known.
        draws: Effects in several draws of the recipe; None where there are none.

    Returns:
        :data:`SUMMARY_COLUMNS`. ``n`` examples were measured, ``missing`` had no value (no label,
        or a refused stage). ``error`` is the standard error of the mean effect over examples,
        by the column ``cluster`` where there is one (see ``runs.sets.clusters``), ``freedom`` how
        many degrees of freedom it has (see ``contrasts``),
        ``rms`` the root mean square effect of the stage over the labelled examples of the set,
        whatever the group (over all, where none has a label),
        ``noise_share`` the share of examples whose effect is within training noise, ``noise_sd``
        the standard deviation of the mean effect over orders (NaN: not known), ``within_noise``
        whether the mean effect is less than two of these (NA: not known). ``draw_effect`` is the
        mean over draws of the mean effect, from ``draw_low`` to ``draw_high`` its 95 % interval
        over them, ``draw_sd`` its standard deviation and ``draw_single`` how far one more training
        may be from the mean, 95 % (NaN: not known); ``drawn`` says how many of what there are, as
        ``8 redraws``. Where there is such an interval, ``within_noise`` is whether it holds zero.
        A refused stage keeps its row, with NaN.
    """
    return stage_summaries([table], behaviour, stages, [by], orders, draws)[0]


def stage_summaries(
    parts: Iterable[pd.DataFrame],
    behaviour: Behaviour,
    stages: Sequence[str],
    by: Sequence[str | None],
    orders: pd.DataFrame | None = None,
    draws: DrawnEffects | None = None,
) -> list[pd.DataFrame]:
    """:func:`stage_summary` by each of several columns, in one go through a table.

    Args:
        parts: The table in parts, each of whole stages.
        behaviour: As there.
        stages: As there.
        by: Columns to group by; None for all examples.
        orders: As there.
        draws: As there.
    """
    found: dict[str | None, list[dict[str, Any]]] = {each: [] for each in by}
    for part in parts:
        rows = of_behaviour(part, behaviour.name)
        for each in by:
            found[each] += _rows(rows, behaviour, each, orders, draws)
    return [_in_order(found[each], stages) for each in by]


def _rows(
    rows: pd.DataFrame,
    behaviour: Behaviour,
    by: str | None,
    orders: pd.DataFrame | None,
    draws: DrawnEffects | None,
) -> list[dict[str, Any]]:
    keys = ["stage"] if by is None else ["stage", by]
    noise = _noise_of_means(rows, orders, behaviour, keys)
    drawn = {} if draws is None else intervals_of_means(draws, rows, behaviour, keys)
    rms = rms_effects(rows)
    result = []
    for key, own in _groups(rows, keys):
        means = _means(own, behaviour)
        sd = noise.get(key, np.nan)
        known = np.isfinite(sd) and means["n"] > 0
        within = abs(means["effect"]) < 2 * sd if known else None
        over = drawn.get(key)
        if over is not None and np.isfinite(over.low):
            within = not over.is_clear  # draws say more than the noise of later stages
        stage, group = (key[0], None) if by is None else key
        result.append(
            {
                **{"stage": stage, "group": group, **means, "rms": rms[stage]},
                **{"noise_sd": sd, "within_noise": within},
                **columns_of(over, draws),
            }
        )
    return result


def rms_effects(rows: pd.DataFrame) -> dict[str, float]:
    """Stage to its root mean square effect over the examples with a label, or over all.

    Args:
        rows: Of one behaviour, of the whole set.
    """
    if rows.empty:
        return {}
    known = rows["label"].notna() if "label" in rows else pd.Series(False, rows.index)
    squares = (rows["effect"] ** 2).where(known) if known.any() else rows["effect"] ** 2
    means = squares.groupby(rows["stage"], observed=True).mean()
    return {str(stage): float(mean) ** 0.5 for stage, mean in means.items()}


def _in_order(rows: list[dict[str, Any]], stages: Sequence[str]) -> pd.DataFrame:
    summary = pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
    summary["within_noise"] = summary["within_noise"].astype("boolean")
    # A stable sort, which keeps the groups of each stage in order.
    order = {name: position for position, name in enumerate(stages)}
    summary = summary[summary["stage"].isin(order)]
    return summary.sort_values(
        "stage", key=lambda column: column.map(order), kind="stable"
    ).reset_index(drop=True)


def _noise_of_means(
    rows: pd.DataFrame, orders: pd.DataFrame | None, behaviour: Behaviour, keys: list[str]
) -> dict[tuple[str, ...], float]:
    """Standard deviation of the mean effect over orders, for the examples in ``rows``."""
    if orders is None:
        return {}
    members = rows[["example_id", *keys]]
    effects = orders[orders["behaviour"] == behaviour.name].merge(
        members, on=["stage", "example_id"]
    )
    means = effects.groupby([*keys, "order"], observed=True)["effect"].mean()
    found = means.groupby(level=keys, observed=True).std()
    return {key if isinstance(key, tuple) else (key,): float(sd) for key, sd in found.items()}


def of_behaviour(table: pd.DataFrame, behaviour: str) -> pd.DataFrame:
    """The rows of one behaviour; the table itself where it has no others."""
    own = (table["behaviour"] == behaviour).to_numpy()
    return table if own.all() else table[own]


def by_stage(rows: pd.DataFrame, stages: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each of these stages that has any, in this order."""
    found = {str(s): own for s, own in rows.groupby("stage", sort=False, observed=True)}
    yield from ((stage, found[stage]) for stage in stages if stage in found)


def _groups(
    rows: pd.DataFrame, keys: list[str]
) -> Iterator[tuple[tuple[Any, ...], dict[str, np.ndarray]]]:
    """The numbers of every group, sorted by its key; rows without a key are left out."""
    # observed: categories without examples would otherwise give groups without rows.
    if rows.empty:
        return
    grouped = rows.groupby(keys, sort=True, dropna=True, observed=True)
    sizes = grouped.size()
    # pandas numbers rows without a key NaN, or -1, by its version.
    number = grouped.ngroup().fillna(-1).to_numpy()
    # Small integers, which are sorted in linear time; stable, so that sums have one order.
    number = number.astype(np.int16 if len(sizes) < 2**15 else np.int64)
    order = None if (np.diff(number) >= 0).all() else np.argsort(number, kind="stable")
    dropped = len(rows) - int(sizes.sum())  # numbered -1, so they come first
    ends = dropped + np.cumsum(sizes.to_numpy())
    columns = {}
    for name in ("effect", "final", "without", "within_noise"):
        values = rows[name].to_numpy(float, na_value=np.nan)
        columns[name] = values if order is None else values[order]
    if CLUSTER in rows:
        clusters = pd.factorize(rows[CLUSTER])[0]
        columns[CLUSTER] = clusters if order is None else clusters[order]
    for key, size, end in zip(sizes.index, sizes, ends, strict=True):
        own = {name: values[end - size : end] for name, values in columns.items()}
        yield (key if isinstance(key, tuple) else (key,)), own


def _means(part: Mapping[str, np.ndarray], behaviour: Behaviour) -> dict[str, float]:
    known, clusters = ~np.isnan(part["effect"]), part.get(CLUSTER)
    effect = part["effect"][known]
    clusters = None if clusters is None else clusters[known]
    gain = behaviour.sign * effect
    counted = behaviour.name == ACCURACY.name or is_fraction(behaviour)
    spread = mean_spread(effect, clusters, counted)
    n = len(effect)
    return {
        "n": n,
        "missing": len(part["effect"]) - n,
        "final": _mean(part["final"]),
        "without": _mean(part["without"]),
        "effect": _mean(effect),
        "gain": _mean(gain),
        "credit": _mean(gain.clip(min=0)),
        "blame": _mean(gain.clip(max=0)),
        "credit_share": _mean(gain > 0),
        "blame_share": _mean(gain < 0),
        # Of a sample: the standard error is over examples that might have been drawn otherwise.
        "error": spread.error,
        "freedom": spread.freedom,
        "noise_share": _mean(part["within_noise"]),
    }


def _mean(values: np.ndarray) -> float:
    """The mean of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    count = int(known.sum())
    return float(np.where(known, values, 0).sum() / count) if count else np.nan


def boundary_summary(
    table: pd.DataFrame,
    behaviour: Behaviour,
    stages: Sequence[str],
    by: str | None = None,
) -> pd.DataFrame:
    """Mean of a behaviour after each boundary.

    Args:
        table: A boundary table.
        behaviour: Which of its behaviours.
        stages: Stage names in training order.
        by: Column to group by; None for all examples.

    Returns:
        ``boundary`` (``base`` first, then stages in training order), ``group`` (null if ``by`` is
        None), ``n`` and ``value``.
    """
    keys = ["boundary"] if by is None else ["boundary", by]
    rows = of_behaviour(table, behaviour.name)
    means = (
        rows.groupby(keys, sort=True, dropna=True, observed=True)["value"]
        .agg(n="count", value="mean")
        .reset_index()
    )
    means = means.rename(columns={by: "group"}) if by is not None else means.assign(group=None)
    order = {name: position for position, name in enumerate((BASE, *stages))}
    means = means[means["boundary"].isin(order)]
    means = means.sort_values("boundary", key=lambda c: c.map(order), kind="stable")
    return means[["boundary", "group", "n", "value"]].reset_index(drop=True)


def group_columns(table: pd.DataFrame, columns: Iterable[str], limit: int = 12) -> list[str]:
    """Columns that can serve as groups: 2 to ``limit`` values, ``group`` first, ``label`` last.

    Examples of one source are no group: the column ``cluster`` says how to count them.
    """
    usable = [
        name
        for name in columns
        if name != CLUSTER and name in table and 2 <= table[name].nunique(dropna=True) <= limit
    ]
    return sorted(usable, key=lambda name: (name != "group", name == "label"))
