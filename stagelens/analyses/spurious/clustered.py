"""Differences between those who have a feature and those who lack it, where examples share sources.

The same errors and degrees of freedom as ``effects.contrasts.difference_spread`` (CR2, Bell and
McCaffrey 2002), of many features at once.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

_AT_ONCE = 2_000_000
"""Numbers of one array: features are taken in blocks of that many."""


def difference_errors(
    members: sparse.csr_matrix, n1: np.ndarray, values: np.ndarray, place: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The standard errors of mean with less mean without, with their degrees of freedom.

    Args:
        members: (n, P), 1 where an example has a feature.
        n1: (P,) how many have each feature.
        values: (n,), or (n, P) where each feature has its own.
        place: (n,) the number of each example's source, from 0 on.

    Returns:
        (P,) each; NaN where a side is of one source alone.
    """
    n, features = members.shape
    sources = sparse.csr_matrix((np.ones(n), (place, np.arange(n))))
    step = max(_AT_ONCE // n, 1)
    errors, freedoms = [], []
    for start in range(0, features, step):
        block = slice(start, start + step)
        has = members[:, block].toarray().astype(float)
        own = values[:, None] if values.ndim == 1 else values[:, block]
        sides = [_Side(has, n1[block], own, sources), _Side(1 - has, n - n1[block], own, sources)]
        error, freedom = _difference(*sides)
        errors.append(error)
        freedoms.append(freedom)
    return np.concatenate(errors), np.concatenate(freedoms)


class _Side:
    """A mean per feature over the examples of one side.

    Attributes:
        n: (P,) how many these are.
        sizes: (C, P) how many of them each source has.
        moves: (C, P) how far each source moves the mean; the squares sum to its variance.
        leverage: (C, P) what a source's residuals owe to the others'.
    """

    def __init__(
        self, has: np.ndarray, n: np.ndarray, values: np.ndarray, sources: sparse.csr_matrix
    ) -> None:
        mean = (has * values).sum(axis=0) / n
        self.n = n
        self.sizes = sources @ has
        with np.errstate(invalid="ignore", divide="ignore"):  # one source alone: 0 / 0
            scale = n * np.sqrt(1 - self.sizes / n)
            self.moves = (sources @ (has * (values - mean))) / scale
            self.leverage = self.sizes / scale

    @property
    def variance(self) -> np.ndarray:
        return np.asarray((self.moves**2).sum(axis=0))

    def common(self, other: _Side) -> np.ndarray:
        """The sizes times tr(S S'), as ``effects.contrasts`` has it."""
        with np.errstate(invalid="ignore"):
            both = self.leverage * other.leverage
            apart = both.sum(axis=0) ** 2 - (both**2).sum(axis=0)
        return np.asarray((self.sizes * other.sizes).sum(axis=0) / (self.n * other.n) + apart)


def _difference(a: _Side, b: _Side) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = ((a.moves - b.moves) ** 2).sum(axis=0)
        first, second, shared = a.variance, b.variance, a.common(b)
        squares = first**2 * a.common(a) + second**2 * b.common(b) + 2 * first * second * shared
        freedom = (first + second) ** 2 / squares
    # Without any variance all freedom is as good.
    freedom = np.where(first + second == 0, np.minimum(a.n, b.n) - 1, freedom)
    return np.sqrt(variance), freedom
