"""What a filter of training examples may ask for beside their list: what is stored of them."""

from __future__ import annotations

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from stagelens.analyses.training_data.marks import ELSEWHERE, LEAK, NEAR, SAME, SUSPECT, marked
from stagelens.analyses.training_data.reading import texts
from stagelens.analyses.training_data.tables import ColumnFacts, columns_path, load
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.training_rows import TrainingRows

TEXT = "text"
"""What an example says, where the task shows texts."""
_STORED = ("answer", "length", SUSPECT, SAME, NEAR, LEAK, ELSEWHERE)
_VALUES, _LONG = 6, 40
"""Values of a column that are named, and characters beyond which they are none to name."""


def with_known(run: Run, rows: TrainingRows) -> TrainingRows:
    """A stage's training examples with all that ``stagelens training-data`` stored of them.

    Args:
        run: The run.
        rows: The stage's examples.
    """
    stage = rows.facts.stage
    data = load(run, stage)
    if data is None or len(data.frame) != len(rows):
        return _with_given(run, rows)
    known = marked(data).set_index("example_id")
    # Of images there is no length, and of numbers and unread sets no doubt and no duplicate.
    stored = [
        name
        for name in _STORED
        if name in known and (name != "length" or data.facts.kind == "text")
    ]
    known = known[[*stored, *(name for name in data.columns if name not in stored)]].copy()
    said = texts(run, stage)
    if said is not None and TEXT not in known:
        known[TEXT] = said.set_axis(known.index)
    return _joined(rows, known)


def _with_given(run: Run, rows: TrainingRows) -> TrainingRows:
    """With what ``stagelens training-data --columns FILE`` has joined to them."""
    found = fact_tables.read(columns_path(run, rows.facts.stage), ColumnFacts, ("example_id",))
    return rows if found is None else _joined(rows, found[1].set_index("example_id"))


def _joined(rows: TrainingRows, known: pd.DataFrame) -> TrainingRows:
    added = known[[name for name in known if name not in rows.table]]
    columns = (*rows.facts.columns, *map(str, added))
    facts = rows.facts.model_copy(update={"columns": columns})
    return TrainingRows(facts, rows.table.join(added, on="example_id"))


def values_of(cells: pd.Series) -> str:
    """A few of a column's values in words; empty where they are too long to be named."""
    known = cells.dropna()
    if known.empty:
        return "no values"
    if is_numeric_dtype(known) and not is_bool_dtype(known):
        low, high = (f"{end:g}" for end in (known.min(), known.max()))
        return low if low == high else f"{low} to {high}"
    named = sorted(known.astype(str).unique(), key=lambda each: (len(each), each))
    if len(named[-1]) > _LONG:
        return ""
    more = len(named) - _VALUES
    return ", ".join(named[:_VALUES]) + (f" and {more:,} more" if more > 0 else "")
