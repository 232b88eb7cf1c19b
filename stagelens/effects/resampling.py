"""The bootstrap: examples drawn with replacement, and the intervals that follow.

B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, chapter 13 (percentile intervals).
``scipy.stats.bootstrap`` takes ten times as long and does not let statistics share their draws, on
which differences between groups and between models rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
"""Share of intervals that may miss, by default: intervals are 95 %."""

_BLOCK = 2_000_000
"""Places held at a time: 16 MB."""

_MOST = 20_000
"""Rows that are resampled one by one; of more, sums of rows put together at random are."""


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


def sums(columns: np.ndarray, resamples: int, random: np.random.Generator) -> np.ndarray:
    """Sums of columns over resamples of their rows, with the same draws for all columns.

    Of more than 20,000 rows, 20,000 sums of rows put together at random are resampled instead. They
    spread as the rows do, so intervals keep their width, to within half a percent by chance, and
    the time no longer grows with the rows.

    Args:
        columns: (n, C) values, a row per example.
        resamples: R.
        random: The generator.

    Returns:
        (R, C).
    """
    mean = np.zeros(columns.shape[1])
    if len(columns) > _MOST:
        mean = columns.mean(axis=0)
        columns, mean = _together(columns - mean, random), len(columns) * mean
    n, parts = len(columns), []
    for drawn in places(n, resamples, random):
        # How often each example was drawn, so that one product gives the sums of all columns.
        flat = drawn + n * np.arange(len(drawn))[:, None]
        times = np.bincount(flat.ravel(), minlength=drawn.size).reshape(drawn.shape)
        parts.append(times @ columns)
    return np.concatenate(parts) + mean


def _together(columns: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Sums of rows put together at random.

    Args:
        columns: (n, C), centred, so that it makes no difference that some are sums of more rows.
        random: The generator.
    """
    # Every row number modulo the number of sums, in random order: their sizes differ by one.
    of = random.permutation(len(columns)) % _MOST
    summed = [np.bincount(of, weights=column, minlength=_MOST) for column in columns.T]
    return np.stack(summed, axis=1)


def by_cluster(columns: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Columns added up within clusters, which are then what is resampled.

    Args:
        columns: (n, C) values, a row per example.
        clusters: (n,) as :func:`standard_error` takes them.

    Returns:
        (clusters, C); an example that has no cluster is one of its own.
    """
    place = numbered(clusters)
    return np.stack([np.bincount(place, weights=column) for column in columns.T], axis=1)


def numbered(clusters: np.ndarray) -> np.ndarray:
    """Clusters numbered from 0 on, without gaps; an example that has none is one of its own.

    Args:
        clusters: (n,) as :func:`standard_error` takes them.
    """
    alone = clusters < 0
    number = np.where(alone, clusters.max(initial=-1) + 1 + np.arange(len(clusters)), clusters)
    return np.unique(number, return_inverse=True)[1]


def standard_error(values: np.ndarray, clusters: np.ndarray | None = None) -> float:
    """The standard error of a mean over examples, some of which may share a source.

    Examples of one cluster are not drawn independently: clusters are, and what their members differ
    from the mean by is added up per cluster (C. A. Field and A. H. Welsh, Bootstrapping clustered
    data, J. R. Stat. Soc. B 69, 2007, for the bootstrap whose spread this is). Clusters of one
    example each give the usual standard error.

    Args:
        values: (n,) of the examples.
        clusters: (n,) the number of the cluster of each, below 0 where it has none of its own;
            None where all are apart.

    Returns:
        NaN of fewer than two examples, or of one cluster alone.
    """
    n = len(values)
    if n < 2:
        return float("nan")
    if clusters is None:
        return float(values.std(ddof=1) / np.sqrt(n))
    summed = by_cluster((values - values.mean())[:, None], clusters)[:, 0]
    count = len(summed)
    if count < 2:
        return float("nan")
    return float(np.sqrt(count / (count - 1) * (summed**2).sum()) / n)


def change_error(values: np.ndarray, clusters: np.ndarray | None = None) -> float:
    """:func:`standard_error` of changes of right answers: each is -1, 0 or 1.

    Where no answer changed, or all did, their own spread is 0, and others might have all the same:
    half an example of each change and one without are taken to have been seen besides (A. Agresti
    and Y. Min, Simple improved confidence intervals for comparing matched proportions, Statist.
    Med. 24, 2005).

    Args:
        values: (n,) of the examples.
        clusters: As :func:`standard_error` takes them; a source counts as one example here.
    """
    error, mean = standard_error(values, clusters), values.mean() if len(values) else 0.0
    count = len(values) if clusters is None else sources(clusters)
    return float(np.hypot(error, np.sqrt(1 + 2 * mean**2) / (count + 2)))


def sources(clusters: np.ndarray) -> int:
    """How many clusters there are; an example that has none is one of its own."""
    return int(numbered(clusters).max(initial=-1)) + 1


def interval(draws: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of a statistic's values over resamples; NaN where one is missing."""
    if not len(draws) or not np.isfinite(draws).all():
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [level / 2, 1 - level / 2])
    return float(low), float(high)
