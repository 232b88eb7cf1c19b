"""What rows of a recorded data set say of themselves besides what a model is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import Example

from .data_rows import StageRows

_LONGEST = 200
"""Of a text that still is a remark on a row, in characters; longer ones are what it holds."""


def row_columns(
    data: StageRows, numbers: Sequence[int | None], inputs: Sequence[str]
) -> pd.DataFrame:
    """The scalar columns of rows: source, annotator, length.

    Args:
        data: Of the stage.
        numbers: Of the rows, N of them; None for one that is not known.
        inputs: Names that are left out: what the task's inputs are called.

    Returns:
        N rows. A column in which a value is no number, truth value or short text is left out; so
        are all where a row is not known, or the data set was not given.
    """
    known = [number for number in numbers if number is not None]
    rows = data.data
    if rows is None or len(known) < len(numbers):
        return pd.DataFrame(index=range(len(numbers)))
    found: list[Mapping[str, Any]] = []
    for number in known:
        taken = rows.row(number)
        if isinstance(taken, Example):
            taken = taken.columns
        found.append(taken if isinstance(taken, Mapping) else {})
    names = dict.fromkeys(name for row in found for name in row if isinstance(name, str))
    kept = {
        name: values
        for name in names
        if name not in inputs and all(map(_remarks, values := [row.get(name) for row in found]))
    }
    return pd.DataFrame(kept, index=range(len(numbers)))


def _remarks(value: Any) -> bool:
    plain = value is None or isinstance(value, bool | int | float | np.bool_ | np.number)
    return plain or (isinstance(value, str) and len(value) <= _LONGEST)
