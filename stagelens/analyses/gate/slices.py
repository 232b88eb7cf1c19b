"""Which slices of a set a gate looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stagelens.analyses.slices.saved import Slice, joined, stored_slices
from stagelens.contracts import SLICE_COLUMN, StageLensError
from stagelens.effects.summary import group_columns
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet

ALL = "all"
MOST = 100
"""More slices would leave hardly any drop that can be told from chance."""


@dataclass(frozen=True)
class GateSlice:
    """Examples of a set that are judged together.

    Attributes:
        by: A column; None for all examples.
        group: A value of it.
        inside: (N,) bool, which examples of the set.
    """

    by: str | None
    group: str | None
    inside: np.ndarray


def chosen_slices(
    examples: EvaluationSet, runs: Sequence[tuple[Run, EvaluationSet]], asked: Sequence[str]
) -> list[GateSlice]:
    """The slices that were asked for; without any, all examples and the groups of every column.

    Args:
        examples: The set, in the new run.
        runs: Both runs with their set, whose saved slices can be named.
        asked: ``all``, a column, ``COLUMN=VALUE``, or the name of a saved slice.

    Raises:
        StageLensError: One is not there, or was chosen by what a model answers.
    """
    saved = {one.name: one for run, own in reversed(runs) for one in stored_slices(run, own)[0]}
    table = joined(examples.table(), list(saved.values()))
    columns = [*examples.columns, *(["label"] if table["label"].notna().any() else [])]
    every = GateSlice(None, None, np.ones(len(table), bool))
    found: list[GateSlice] = []
    for one in asked or [ALL, *group_columns(table, columns)]:
        found += [every] if one == ALL else _named(table, columns, saved, one, examples.name)
    unique = {(one.by, one.group): one for one in found}
    if len(unique) > MOST:
        raise StageLensError(
            f"these are {len(unique)} slices, and with so many hardly any drop could be told from "
            f"chance; name up to {MOST} of them, with --slice COLUMN=VALUE"
        )
    return list(unique.values())


def _named(
    table: pd.DataFrame,
    columns: Sequence[str],
    saved: dict[str, Slice],
    asked: str,
    set_name: str,
) -> list[GateSlice]:
    name, given, value = asked.partition("=")
    if asked in saved:
        one = saved[asked]
        if one.by_outcome:
            raise StageLensError(
                f"slice {asked!r} was chosen by what a model answers ({one.words()}); examples on "
                "which one model does well do worse with any other, so a drop on them is no "
                "regression. Use a slice that is chosen by inputs, labels or columns"
            )
        inside = (table[SLICE_COLUMN + asked] == asked).to_numpy()
        return [GateSlice(SLICE_COLUMN.rstrip(": "), asked, inside)]
    if name not in columns:
        known = ", ".join([ALL, *columns, *saved])
        raise StageLensError(
            f"set {set_name!r} has no column or saved slice {name!r}; give one of: {known}"
        )
    values = table[name].astype(object)
    texts = values.where(values.notna(), None).map(lambda x: None if x is None else str(x))
    wanted = [value] if given else sorted(texts.dropna().unique())
    slices = [GateSlice(name, each, (texts == each).to_numpy(bool)) for each in wanted]
    if given and not slices[0].inside.any():
        raise StageLensError(f"no example of set {set_name!r} has {name} {value!r}")
    return slices
