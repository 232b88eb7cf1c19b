"""The bootstrap: examples drawn with replacement, for figures that have no interval of their own.

B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, chapter 13 (percentile intervals).
``scipy.stats.bootstrap`` takes ten times as long and does not let statistics share their draws.
Means, shares and their differences have intervals of their own, see :mod:`.contrasts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stagelens.wording.quantiles import LEVEL

_BLOCK = 2_000_000
"""Places held at a time: 16 MB."""


@dataclass(frozen=True)
class Resamples:
    """How many resamples are worth their time: fewer for large sets, whose intervals are narrow.

    Attributes:
        most: At most this many, however few the examples.
        fewest: At least this many, however many the examples.
        draws: In between, how many examples are drawn in all.
    """

    most: int
    fewest: int
    draws: int

    def of(self, examples: int) -> int:
        """The number of resamples for a set of ``examples``."""
        return max(self.fewest, min(self.most, self.draws // max(examples, 1)))


def places(examples: int, resamples: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """The examples that each resample consists of, by position, in (B, examples) blocks."""
    block = max(1, _BLOCK // examples)
    for start in range(0, resamples, block):
        yield random.integers(0, examples, (min(block, resamples - start), examples))


def numbered(clusters: np.ndarray) -> np.ndarray:
    """Clusters numbered from 0 on, without gaps; an example that has none is one of its own.

    Args:
        clusters: (n,) as ``contrasts.mean_spread`` takes them.
    """
    alone = clusters < 0
    number = np.where(alone, clusters.max(initial=-1) + 1 + np.arange(len(clusters)), clusters)
    return np.unique(number, return_inverse=True)[1]


def interval(draws: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of a statistic's values over resamples; NaN where one is missing."""
    if not len(draws) or not np.isfinite(draws).all():
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [level / 2, 1 - level / 2])
    return float(low), float(high)
