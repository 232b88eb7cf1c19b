"""How far a mean over draws is from the recipe's, from what other data and what other chance add.

Other data and other chance (initial values, orders, dropout) make draws differ in two ways that
do not count alike. Chance averages out over draws; that the recorded data are one sample of many
does not, however many draws stand around them. Draws that repeat the data of another tell the two
apart: what they differ by is chance alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from stagelens.wording.quantiles import t_quantile

FEWEST_REPEATS = 3
"""With fewer draws that repeat the data of another, all is taken to be the data."""

_NODES = 40
"""Of the Gauss-Legendre rule for either variance; the level is met to 0.0001."""


@dataclass(frozen=True)
class Spreads:
    """What draws with other data show of their variance.

    Attributes:
        between: Variance of the means of draws on the same data; what its expectation has of
            chance is ``part`` of it.
        within: Variance of draws on the same data: chance; 0 where too few repeat any.
        part: Mean over the data of 1 / how many draws there are on it.
        freedom: Degrees of freedom of both; 0 of ``within`` where too few repeat any.
        imbalance: Sum over the data of the square of its share of the draws.
        draws: K.
    """

    between: float
    within: float
    part: float
    freedom: tuple[int, int]
    imbalance: float
    draws: int


def spreads(values: np.ndarray, data: Sequence[int]) -> Spreads:
    """Tell chance and data apart.

    Args:
        values: (K,) a number in each draw.
        data: (K,) the number of the data that each draw has, from 0 on, without gaps.
    """
    count = np.bincount(data)
    means = np.bincount(data, weights=values) / count
    repeats = len(values) - len(count)
    enough = repeats >= FEWEST_REPEATS
    within = float(((values - means[data]) ** 2).sum() / repeats) if enough else 0.0
    return Spreads(
        float(means.var(ddof=1)),
        within,
        float((1 / count).mean()),
        (len(count) - 1, repeats if enough else 0),
        float(((count / len(values)) ** 2).sum()),
        len(values),
    )


def half_width(found: Spreads, level: float, batches: int | None = None) -> float:
    """Half the width of an interval around the mean over draws that holds the recipe's.

    The mean is off by the error of the recorded data, which varies as data drawn with replacement
    do (the bootstrap), and by the chance of the draws. Its variance, ``data (1 + imbalance) +
    chance / K``, is a difference of two mean squares, so no t distribution holds; the interval is
    the generalised one, over what either variance may be given the draws (S. Weerahandi, J. Amer.
    Statist. Assoc. 88, 1993; with means of unequal numbers of draws, W. Thomas and R. Hultquist,
    Ann. Statist. 6, 1978). Without repeats it is the t-interval in which all is data, which is too
    wide where chance matters.

    Args:
        found: See :func:`spreads`.
        level: Share of intervals that may miss.
        batches: B, the fewest that were drawn with replacement in a stage: their means vary by
            (B - 1) / B less than those of new ones, which is made good; None for none.
    """
    repeats, sample = found.freedom[1], 1.0 if batches is None else batches / (batches - 1)
    if not repeats:
        error = math.sqrt(found.between * sample * (1 + found.imbalance))
        return t_quantile(found.freedom[0], level) * error
    between, chance = found.between * _may_be(found.freedom[0]), found.within * _may_be(repeats)
    data = np.maximum(between[:, None] - found.part * chance, 0.0) * sample
    errors = np.sqrt(data * (1 + found.imbalance) + chance / found.draws)
    return _reach(errors, level) if errors.any() else 0.0


@cache
def _may_be(freedom: int) -> np.ndarray:
    """What a variance may be whose mean square is 1: at the nodes of its belief."""
    from scipy.special import gammaincinv

    points, _ = np.polynomial.legendre.leggauss(_NODES)
    return np.asarray(freedom / 2 / gammaincinv(freedom / 2, (points + 1) / 2))  # chi square


def _reach(error: np.ndarray, level: float) -> float:
    """What normal numbers with one of these (nodes, nodes) standard errors exceed so rarely."""
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    _, weights = np.polynomial.legendre.leggauss(_NODES)
    belief, most = np.outer(weights, weights) / 4, float(error.max())
    error = np.maximum(error, most * 1e-12)

    def excess(half: float) -> float:
        return float((2 * belief * ndtr(-half / error)).sum()) - level

    # With the largest error of all it would reach no further than that.
    return float(brentq(excess, 0.0, most * ndtri(1 - level / 2), xtol=most * 1e-9))
