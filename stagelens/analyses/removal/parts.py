"""Two parts of an evaluation set: edits are chosen on one, and reported on the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd


def validation_part(table: pd.DataFrame, by: Sequence[str] = ()) -> np.ndarray:
    """Which examples edits are chosen on; the others are for reporting.

    Within every group and label, it is the half whose ids have the smaller sha256. So it does not
    depend on the order of the examples, nor on any number that was measured.

    Args:
        table: ``example_id``, ``label`` and the columns of ``by``, N rows.
        by: Columns of groups.

    Returns:
        (N,) bool.
    """
    digests = [hashlib.sha256(str(name).encode()).hexdigest() for name in table["example_id"]]
    order = pd.Series(digests, table.index)
    # As text, because groupby would drop examples without a label. ``by`` may name the label.
    keys = [table[column].astype(str) for column in dict.fromkeys((*by, "label"))]
    grouped = order.groupby(keys, sort=True)
    return np.asarray(grouped.rank(method="first") <= grouped.transform("size") // 2)
