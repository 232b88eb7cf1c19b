"""Of many, those that people read: the strongest stages, and how many more there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

MOST = 12
"""Stages that a page or a report shows; of more, it shows the strongest and counts the rest."""


def strongest(sizes: Iterable[float], most: int = MOST) -> list[int]:
    """The places of the largest sizes, in the order that they came in; NaN is the smallest."""
    values = np.abs(np.asarray(list(sizes), dtype=float))
    # Stable, so that of equal ones the first are taken.
    order = np.argsort(-np.nan_to_num(values, nan=-1.0), kind="stable")
    return sorted(order[:most].tolist())


def listed(names: Sequence[str], most: int = MOST) -> str:
    """Names with commas between them; of many, the first and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
