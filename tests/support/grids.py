"""Large grids, of which `make test` walks a part and `make fuzz` all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import pytest


def pairs(rows: Iterable[Any], columns: Iterable[Any]) -> list[Any]:
    """Every pair as parameters of a test: a diagonal in `make test`, the rest in `make fuzz`.

    Args:
        rows: Values of the first parameter.
        columns: Of the second; the diagonal goes on at the first where it came to the last, so
            that every row and every column occurs.
    """
    first, second = list(rows), list(columns)
    length = max(len(first), len(second))
    kept = {(n % len(first), n % len(second)) for n in range(length)}
    found = []
    for (i, one), (j, other) in product(enumerate(first), enumerate(second)):
        marks = [] if (i, j) in kept else [pytest.mark.extensive]
        found.append(pytest.param(one, other, marks=marks, id=f"{_name(one)}-{_name(other)}"))
    return found


def part(cases: Iterable[Any], every: int) -> list[Any]:
    """One of every so many cases in `make test`, the others in `make fuzz`.

    Which of them moves on by one each time, so that what alternates in the cases is not left out.
    """
    listed: Sequence[Any] = list(cases)
    return [
        pytest.param(
            *(each if isinstance(each, tuple) else (each,)),
            marks=[] if (n // every + n) % every == 0 else [pytest.mark.extensive],
        )
        for n, each in enumerate(listed)
    ]


def _name(value: Any) -> str:
    return getattr(value, "__name__", str(value))
