"""Intervals of means over examples, of differences of two means, and of shares of examples.

Examples of one source are not drawn independently: what they differ from the mean by is added up
per source. Variances are those of R. M. Bell and D. F. McCaffrey, Bias reduction in standard errors
for linear regression with multi-stage samples, Survey Methodology 28, 2002 (CR2), and so are the
degrees of freedom of Student's t (Satterthwaite's), with a variance for each of two groups. Where
every example is its own source that is the usual t-interval of a mean, Welch's of a difference, and
that of paired differences where the two groups are of the same sources.

A share of examples has no width of its own where none or all are hit: its interval is that of
A. Agresti and B. A. Coull, Approximate is better than "exact" for interval estimation of binomial
proportions, Amer. Statist. 52, 1998. That of a difference of two is recovered from both (G. Y. Zou
and A. Donner, Construction of confidence limits about effect measures, Statist. Med. 27, 2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stagelens.wording.quantiles import LEVEL, t_quantile

from .resampling import numbered


@dataclass(frozen=True)
class Spread:
    """A number with how far it may be off because other examples might have been drawn.

    Attributes:
        value: A mean, or a difference of two.
        error: Its standard error; NaN where it is not known.
        freedom: Degrees of freedom of the standard error.
    """

    value: float
    error: float
    freedom: float

    def ends(self, level: float = LEVEL) -> tuple[float, float]:
        """The interval; NaN where the standard error is not known.

        Numbers that are all alike and not zero tell nothing of how far others would be off.
        """
        if not self.error and self.value:
            return math.nan, math.nan
        half = t_quantile(self.freedom, level) * self.error if self.error else self.error
        return self.value - half, self.value + half


@dataclass(frozen=True)
class _Mean:
    """A mean over n of C sources' examples, and what its variance is made of.

    Attributes:
        n: How many examples.
        value: The mean.
        moves: (C,) how far each source moves it, see CR2; their squares sum to its variance.
        sizes: (C,) how many examples each source has.
    """

    n: int
    value: float
    moves: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, place: np.ndarray, sources: int) -> _Mean:
        """``place`` (n,) is the number of each value's source, below ``sources``."""
        n = len(values)
        if not n:
            nothing = np.zeros(sources)
            return cls(0, math.nan, nothing, nothing)
        value = float(values.mean())
        sizes = np.bincount(place, minlength=sources).astype(float)
        off = np.bincount(place, weights=values - value, minlength=sources)
        # Of one source alone nothing is known: 0 / 0.
        with np.errstate(invalid="ignore", divide="ignore"):
            return cls(n, value, off / (n * np.sqrt(1 - sizes / n)), sizes)

    @property
    def variance(self) -> float:
        return float((self.moves**2).sum()) if self.n > 1 else math.nan

    @property
    def leverage(self) -> np.ndarray:
        """(C,) what a source's residuals owe to the others', so that these are not independent."""
        with np.errstate(divide="ignore"):
            return self.sizes / (self.n * np.sqrt(1 - self.sizes / self.n))

    def common(self, other: _Mean) -> float:
        """The sizes times tr(S S'), S being what their moves covary by in units of a variance."""
        own, theirs = self.leverage, other.leverage
        same = float((self.sizes * other.sizes).sum()) / (self.n * other.n)
        with np.errstate(invalid="ignore"):  # one source alone
            apart = (own * theirs).sum() ** 2 - ((own * theirs) ** 2).sum()
        return float(same + apart)

    @property
    def freedom(self) -> float:
        return 1 / self.common(self) if self.n > 1 else math.nan


def mean_spread(
    values: np.ndarray, clusters: np.ndarray | None = None, answers: bool = False
) -> Spread:
    """A mean over examples with its standard error.

    Args:
        values: (n,) one per example; NaN is left out.
        clusters: (n,) the number of the source of each, below 0 where it has none of its own; None
            where all are apart.
        answers: Whether the values are changes of right answers (-1, 0 or 1): see
            :func:`added_error`.

    Returns:
        NaN errors of fewer than two examples, or of one source alone.
    """
    known = np.isfinite(values)
    values, place, count = _placed(values[known], None if clusters is None else clusters[known])
    one = _Mean.of(values, place, count)
    variance, freedom = one.variance, one.freedom
    if answers:
        variance += added_error(one.value, freedom + 1) ** 2
    return Spread(one.value, math.sqrt(variance), freedom)


def difference_spread(
    values: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    clusters: np.ndarray | None = None,
    answers: bool = False,
) -> Spread:
    """The mean over some examples less that over others, with its standard error.

    An example may be in both, and sources may have examples in both.

    Args:
        values: (N,) one per example; NaN is left out.
        first: (N,) bool, the examples in the mean that is subtracted from.
        second: (N,) bool, those in the mean that is subtracted.
        clusters: As :func:`mean_spread` takes them.
        answers: As there.

    Returns:
        NaN errors where either mean is over fewer than two examples, or over one source alone.
    """
    known = np.isfinite(values) & (first | second)
    values, first, second = values[known], first[known], second[known]
    values, place, count = _placed(values, None if clusters is None else clusters[known])
    a, b = (_Mean.of(values[own], place[own], count) for own in (first, second))
    if min(a.n, b.n) < 2:
        return Spread(a.value - b.value, math.nan, math.nan)
    with np.errstate(invalid="ignore"):  # one source alone
        variance = float(((a.moves - b.moves) ** 2).sum())
    parts = [one.variance for one in (a, b)]
    freedoms = [one.freedom for one in (a, b)]
    if answers:
        added = [added_error(o.value, f + 1) ** 2 for o, f in zip((a, b), freedoms, strict=True)]
        variance += sum(added)
        parts = [part + more for part, more in zip(parts, added, strict=True)]
    if not sum(parts):
        return Spread(a.value - b.value, math.sqrt(variance), min(freedoms))
    squares = parts[0] ** 2 / freedoms[0] + parts[1] ** 2 / freedoms[1]
    freedom = sum(parts) ** 2 / (squares + 2 * parts[0] * parts[1] * a.common(b))
    return Spread(a.value - b.value, math.sqrt(variance), freedom)


def added_error(mean: float, count: float) -> float:
    """What the standard error of mean changes of right answers has besides their own spread.

    Where no answer changed, or all did, their own spread is 0, and others might have all the same:
    one example of each change is taken to have been seen besides (D. G. Bonett and R. M. Price,
    Adjusted Wald confidence interval for a difference of binomial proportions based on paired data,
    J. Educ. Behav. Statist. 37, 2012). Half of each (Agresti and Min, 2005) is too little
    where hardly any answer changes: of 200, intervals then hold a change of 1 % in 86 % of cases.

    Args:
        mean: From -1 to 1.
        count: Over how many examples, or sources.
    """
    return math.sqrt(2 + 2 * mean**2) / (count + 2)


def share_ends(
    share: np.ndarray, apart: np.ndarray | float, reach: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """The intervals of shares of examples, within 0 and 1.

    Args:
        share: Hit, from 0 to 1.
        apart: How many examples drawn one by one would tell as much; NaN where it is not known.
        reach: As :func:`t_quantile` gives it.
    """
    square = reach**2
    count = apart + square
    middle = (share * apart + square / 2) / count
    half = reach * np.sqrt(middle * (1 - middle) / count)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def share_interval(
    hits: np.ndarray, clusters: np.ndarray | None = None, level: float = LEVEL
) -> tuple[float, float]:
    """The interval of a share of examples.

    Examples that share sources are worth as many drawn one by one as their variance says (E. L.
    Korn and B. I. Graubard, Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data, Survey Methodology 24, 1998).

    Args:
        hits: (n,) 1 where an example is hit, 0 where it is not; NaN is left out.
        clusters: As :func:`mean_spread` takes them.
        level: Share of intervals that may miss.

    Returns:
        NaN without examples, or where all share one source.
    """
    known = np.isfinite(hits)
    hits, clusters = hits[known], None if clusters is None else clusters[known]
    if not len(hits):
        return math.nan, math.nan
    apart, freedom = _worth(hits, clusters)
    low, high = share_ends(hits.mean(), apart, t_quantile(freedom, level))
    return float(low), float(high)


def shares_difference(
    hits: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    clusters: np.ndarray | None = None,
    level: float = LEVEL,
) -> tuple[float, float]:
    """The interval of a share of some examples less that of others.

    Args:
        hits: (N,) as :func:`share_interval` takes them.
        first: (N,) bool, the examples of the share that is subtracted from.
        second: (N,) bool, those of the share that is subtracted.
        clusters: As :func:`mean_spread` takes them.
        level: Share of intervals that may miss.

    Returns:
        NaN where either share has none.
    """
    known = np.isfinite(hits) & (first | second)
    hits, first, second = hits[known], first[known], second[known]
    shared = None if clusters is None else clusters[known]
    shares, ends = [], []
    for own in (first, second):
        shares.append(float(hits[own].mean()) if own.any() else math.nan)
        ends.append(share_interval(hits[own], None if shared is None else shared[own], level))
    (a, b), ((a_low, a_high), (b_low, b_high)) = shares, ends
    together = _correlation(hits, first, second, shared)

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one**2 + other**2 - 2 * together * one * other, 0.0))

    return a - b - reach(a - a_low, b_high - b), a - b + reach(a_high - a, b - b_low)


def _correlation(
    hits: np.ndarray, first: np.ndarray, second: np.ndarray, clusters: np.ndarray | None
) -> float:
    """How two means go together because sources have examples in both; 0: not known."""
    if clusters is None and not (first & second).any():
        return 0.0
    values, place, count = _placed(hits, clusters)
    a, b = (_Mean.of(values[own], place[own], count) for own in (first, second))
    size = math.sqrt(a.variance * b.variance) if min(a.n, b.n) > 1 else math.nan
    return float((a.moves * b.moves).sum()) / size if size > 0 else 0.0


def _worth(hits: np.ndarray, clusters: np.ndarray | None) -> tuple[float, float]:
    """How many examples apart these are worth, and the degrees of freedom of that."""
    n, share = len(hits), float(hits.mean())
    if clusters is None:
        return float(n), math.inf
    values, place, count = _placed(hits, clusters)
    one = _Mean.of(values, place, count)
    own = np.bincount(place, weights=values)
    if np.all(one.sizes == one.sizes[0]) and np.isin(own, (0.0, one.sizes[0])).all() and count > 1:
        # Each is its own source, or all are there equally often.
        return float(count), math.inf
    if not one.variance > 0:
        # None or all are hit: nothing but the number of sources says what they are worth.
        return (math.nan if count < 2 else one.freedom + 1), one.freedom
    return min(share * (1 - share) / one.variance + 1, float(n)), one.freedom


def _placed(values: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Values with the number of the source of each, from 0 on, and how many sources there are."""
    place = np.arange(len(values)) if clusters is None else numbered(clusters)
    return values, place, int(place.max(initial=-1)) + 1
