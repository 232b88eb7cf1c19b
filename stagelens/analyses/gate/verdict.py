"""Is a drop between two models shown, ruled out, or neither? Numbers only.

A drop is how much worse the new model is, positive for worse, whatever the behaviour's direction.
It is off because other examples might have been drawn, paired and by source as everywhere, and,
where it is to be that of a change of *recipe*, because either recipe trained once more would give
another model. Both variances are estimated, so a probability is that of a normal number whose
variance is itself uncertain: the generalised one, over what either variance may be given what was
seen (S. Weerahandi, J. Amer. Statist. Assoc. 88, 1993). With one of the two it is Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from stagelens.effects.contrasts import Spread
from stagelens.effects.resampling import numbered
from stagelens.wording.quantiles import t_quantile

Verdict = Literal["fine", "regressed", "could not tell"]

FAMILY = 0.01
"""How often a gate may find any slice regressed although none dropped by more than is allowed."""

INTERVAL = 0.05
"""Share of intervals that may miss. A slice is fine where the upper end is below what is allowed,
so of slices that dropped by more one in 40 may be called so."""

_NODES = 96
"""Of the Gauss-Legendre rule for either variance."""


@dataclass(frozen=True)
class TrainingNoise:
    """What the difference of two recipes on a slice owes to the trainings that stand for them.

    Attributes:
        mean_square: Variance of the mean difference over these examples that is due to them.
        within: What of it is single examples going one way or the other. Intervals over examples
            have that already, and it would be less on more examples.
        freedom: Degrees of freedom of ``mean_square``.
    """

    mean_square: float
    within: float
    freedom: float

    @property
    def sd(self) -> float:
        """Standard deviation of the mean difference that is due to trainings."""
        return math.sqrt(self.mean_square)


def training_noise(
    old: np.ndarray,
    new: np.ndarray,
    clusters: np.ndarray | None = None,
    independent: tuple[int, int] | None = None,
) -> TrainingNoise | None:
    """What trainings add to the difference of two recipes, each the mean over its trainings.

    Where only one recipe was trained several times, the other's trainings are taken to differ by as
    much.

    Args:
        old: (K, n) values of n examples after each training.
        new: (L, n) the same of the new recipe.
        clusters: (n,) as ``contrasts.mean_spread`` takes them.
        independent: Over how many independent trainings either mean averages the noise out: None
            for K and L. Redraws have a recording's batches in common, which other seeds would make
            of other examples: what these do to a model is in every redraw, and counts as 1.

    Returns:
        None where neither was trained several times.
    """
    counts = independent or (len(old), len(new))
    found = [(_between(each, clusters), n) for each, n in zip((old, new), counts, strict=True)]
    known = [(each, count) for each, count in found if each is not None]
    if not known:
        return None
    if len(known) == 1:
        (((square, within, freedom), _),) = known
        share = sum(1 / count for count in counts)
        return TrainingNoise(square * share, within * share, freedom)
    squares = [square / count for (square, _, _), count in known]
    within = sum(within / count for (_, within, _), count in known)
    freedoms = [freedom for (_, _, freedom), _ in known]
    # Satterthwaite's, of a sum of two variances; all alike is 0, whatever it has been seen by.
    parts = sum(s**2 / f for s, f in zip(squares, freedoms, strict=True))
    return TrainingNoise(
        sum(squares), within, sum(squares) ** 2 / parts if parts else sum(freedoms)
    )


def _between(values: np.ndarray, clusters: np.ndarray | None) -> tuple[float, float, float] | None:
    """Variance of the mean between (K, n) trainings, what single examples make, and its freedom."""
    count, examples = values.shape
    if count < 2:
        return None
    means = values.mean(axis=1)
    rest = values - means[:, None] - values.mean(axis=0) + means.mean()
    place = np.arange(examples) if clusters is None else numbered(clusters)
    sources = int(place.max(initial=-1)) + 1
    sums = np.stack([np.bincount(place, weights=one, minlength=sources) for one in rest])
    few = sources / (sources - 1) if sources > 1 else 1.0
    within = few * float((sums**2).sum()) / (count - 1) / examples**2
    return float(means.var(ddof=1)), within, float(count - 1)


@dataclass(frozen=True)
class Drop:
    """How much worse the new model is on a slice.

    Attributes:
        over: The mean drop, and what the choice of examples makes of it.
        noise: That of training; None where the drop is that of these two models.
    """

    over: Spread
    noise: TrainingNoise | None = None

    @property
    def is_known(self) -> bool:
        """Whether anything is known of how far it may be off."""
        return math.isfinite(self.over.value) and math.isfinite(self.over.error)

    def above(self, bound: float) -> float:
        """How probable so large a drop is where the truth is ``bound``; NaN where not known."""
        if not self.is_known:
            return math.nan
        return self._tail(self.over.value - bound)

    def below(self, bound: float) -> float:
        """How probable so small a drop is where the truth is ``bound``; NaN where not known."""
        if not self.is_known:
            return math.nan
        return self._tail(bound - self.over.value)

    def ends(self, level: float = INTERVAL) -> tuple[float, float]:
        """Between which values the drop lies; NaN where that is not known."""
        if not self.is_known:
            return math.nan, math.nan
        if self.noise is None or not self._errors().any():
            half = t_quantile(self.over.freedom, level) * self.over.error
            return self.over.value - half, self.over.value + half
        from scipy.optimize import brentq  # here, because it takes a while

        reach = float(self._errors().mean())
        while self._tail(reach) > level / 2:
            reach *= 2
        half = float(brentq(lambda x: self._tail(x) - level / 2, 0.0, reach, xtol=reach * 1e-9))
        return self.over.value - half, self.over.value + half

    def _errors(self) -> np.ndarray:
        """(nodes, nodes) standard errors, over what either variance may be."""
        own = self.over.error**2 * _may_be(self.over.freedom)[:, None]
        if self.noise is None:
            return np.sqrt(own)
        chance = self.noise.mean_square * _may_be(self.noise.freedom) - self.noise.within
        return np.sqrt(own + np.maximum(chance, 0.0))

    def _tail(self, distance: float) -> float:
        """How probable it is to be off by so much or more, to one side."""
        from scipy.special import ndtr, stdtr

        errors = self._errors()
        if not errors.any():
            return 0.5 if not distance else float(distance < 0)
        if self.noise is None:
            if math.isinf(self.over.freedom):
                return float(ndtr(-distance / self.over.error))
            return float(stdtr(self.over.freedom, -distance / self.over.error))
        _, weights = _rule()
        with np.errstate(divide="ignore", invalid="ignore"):  # a node may have no error at all
            off = np.where(errors > 0, ndtr(-distance / errors), float(distance < 0))
        return float(weights @ off @ weights)


@cache
def _rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on 0 to 1; near 0, where variances are largest, they are densest."""
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    v = (points + 1) / 2
    return v**4, weights / 2 * 4 * v**3


@cache
def _may_be(freedom: float) -> np.ndarray:
    """What a variance may be whose mean square is 1: at the nodes of its belief."""
    from scipy.special import gammaincinv

    if math.isinf(freedom):
        return np.ones(_NODES)
    return np.asarray(freedom / 2 / gammaincinv(freedom / 2, _rule()[0]))  # chi square


def holm(values: Sequence[float]) -> list[float]:
    """Probabilities adjusted for how many there are (S. Holm, Scand. J. Statist. 6, 1979).

    The chance of any false rejection stays at the level, however the tests depend on each other:
    slices overlap. NaN stays NaN, and is not counted.
    """
    known = sorted((p, place) for place, p in enumerate(values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(values), 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min((len(known) - rank) * p, 1.0))
        adjusted[place] = largest
    return adjusted


def judge(adjusted: float, high: float, most: float, family: float = FAMILY) -> Verdict:
    """What is shown of one slice.

    Args:
        adjusted: Of :func:`holm`, that it dropped by no more than ``most``.
        high: Upper end of the drop's interval.
        most: How much it may drop.
        family: See :data:`FAMILY`.
    """
    if adjusted < family:
        return "regressed"
    return "fine" if high < most else "could not tell"


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """Regressed where any slice is; fine where all are."""
    if "regressed" in verdicts:
        return "regressed"
    return "fine" if verdicts and set(verdicts) == {"fine"} else "could not tell"
