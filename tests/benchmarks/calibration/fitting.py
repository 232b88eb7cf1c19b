"""Fitting what estimates promise, and what the promises are worth on families left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linprog
from scipy.sparse import csr_array, eye_array, hstack
from scipy.stats import binomtest

from stagelens.analyses.shares.share_trust import SHARES, SUMS, kind_of
from stagelens.estimators.calibration import SMALLEST_SHARE, Function, Kind
from stagelens.trust.coverage import close_enough

LEAST, MOST = 0.01, 10.0
"""True errors are clipped to these before their logarithm is taken."""
KEPT = 0.9
"""Share of estimates that stay within what is promised."""
AIM, RELIABLE, WORST = 0.97, 0.95, 0.8
"""Of estimates called reliable, the share that agrees with replay: of all (with room, because
families that nobody has seen differ more than those left out), the lower end of its one-sided 95 %
interval, and in the worst family."""
FEWEST = 5
"""A family with fewer estimates called reliable is too small to be the worst."""
_LIMITS = np.arange(0.10, 0.505, 0.01)

FREE = ("batch_norm", "first", "stages", "moved", "turned", "size")
RECORDED = (*FREE, "hardness", "sgd", "undone", "undone_pattern")
COARSE = (
    *("hardness", "sgd", "batch_norm", "size", "undone", "readouts", "pattern", "missed"),
    *("misfit", "sampling", "strayed", "direction", "growth", "kept", "gap"),
)
FEATURES = {
    "task-vector": FREE,
    "unrolled-jump": RECORDED,
    "unrolled-scale": RECORDED,
    "coarse-replay": COARSE,
    "coarse-replay after exact stages": (*COARSE, "partial"),
}
"""Features by kind of estimate; the task vector's are known of checkpoints alone."""
OF_COALITIONS = {
    kind_of(estimator, of): ("apart",)
    for estimator in ("coarse-replay", "task-vector")
    for of in (SHARES, SUMS)
}
"""Those of numbers that are made of several models."""


TROUBLE = {
    *("hardness", "sgd", "batch_norm", "undone", "undone_pattern", "readouts", "pattern", "missed"),
    *("misfit", "sampling", "strayed", "direction", "growth", "kept", "gap", "partial", "trouble"),
    "apart",
}
"""Features that are signs of trouble: the more of them, the larger the error."""


WATCHED = ("steps", "stages")
"""Features that no function uses, but in which an estimate may be unlike the bench as well."""


def targets(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """What the functions of a kind are fitted to, by name."""
    return {
        "error": np.log(rows["error"].clip(LEAST, MOST)).to_numpy(),
        "group": np.log(rows["group_error"].clip(LEAST, MOST)).to_numpy(),
        "wrong_signs": np.log(rows["wrong_signs"] + SMALLEST_SHARE).to_numpy(),
    }


@dataclass(frozen=True)
class Linear:
    """A quantile regression on features brought to one scale."""

    names: Sequence[str]
    centre: np.ndarray
    scale: np.ndarray
    slopes: np.ndarray
    constant: float

    @classmethod
    def fitted(cls, rows: pd.DataFrame, names: Sequence[str], y: np.ndarray, q: float) -> Linear:
        """The q-quantile of ``y`` given the features, every family with equal weight.

        No sign of trouble may lower it: a slope that only makes up for another one does not hold
        for other families.
        """
        x = rows[list(names)].to_numpy(float)
        centre, scale = x.mean(0), x.std(0) + 1e-9
        weights = 1 / rows.groupby("family")["family"].transform("size").to_numpy()
        weights /= weights.sum()
        # Minimise q above + (1 - q) below, where constant + x slopes + above - below = y.
        count, own = len(rows), (x - centre) / scale
        identity = eye_array(count)
        system = hstack([csr_array(np.ones((count, 1))), csr_array(own), identity, -identity])
        cost = np.concatenate([np.zeros(1 + len(names)), q * weights, (1 - q) * weights])
        bounds = [(None, None), *((0 if n in TROUBLE else None, None) for n in names)]
        bounds += [(0, None)] * (2 * count)
        found = linprog(cost, A_eq=system.tocsr(), b_eq=y, bounds=bounds, method="highs").x
        return cls(names, centre, scale, found[1 : 1 + len(names)], float(found[0]))

    def __call__(self, rows: pd.DataFrame) -> np.ndarray:
        x = (rows[list(self.names)].to_numpy(float) - self.centre) / self.scale
        return self.constant + x @ self.slopes

    def function(self, raised: float = 0.0) -> Function:
        """The same on features as they are."""
        slopes = self.slopes / self.scale
        constant = self.constant - float(slopes @ self.centre) + raised
        named = zip(self.names, map(float, slopes), strict=True)
        return Function(constant=constant, slopes={n: s for n, s in named if s})


def left_out(rows: pd.DataFrame) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Masks of the rows of each family, and of all others."""
    families = rows["family"].to_numpy()
    for family in np.unique(families):
        yield families == family, families != family


def quantile(scores: np.ndarray, families: np.ndarray, q: float) -> float:
    """The q-quantile of scores, every family with equal weight."""
    weights = np.zeros(len(scores))
    for family in np.unique(families):
        weights[families == family] = 1 / np.sum(families == family)
    order = np.argsort(scores)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(scores[order][min(np.searchsorted(reached, q), len(scores) - 1)])


def unseen(rows: pd.DataFrame, names: Sequence[str], y: np.ndarray, q: float) -> np.ndarray:
    """Each row's q-quantile by a function that saw nothing of its family."""
    found = np.full(len(rows), np.nan)
    for own, others in left_out(rows):
        found[own] = Linear.fitted(rows[others], names, y[others], q)(rows[own])
    return found


def raised(rows: pd.DataFrame, y: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Predictions raised so far that nine of ten rows of *other* families stay within."""
    families, found = rows["family"].to_numpy(), predicted.copy()
    for own, others in left_out(rows):
        found[own] += quantile((y - predicted)[others], families[others], KEPT)
    return found


def reliable_below(rows: pd.DataFrame, upper: np.ndarray) -> float | None:
    """The largest limit on upper errors at which *reliable* keeps its word.

    Args:
        rows: Estimates.
        upper: (N,) upper errors, each promised without the row's family.
    """
    good, best = close_enough(rows).to_numpy(), None
    for limit in _LIMITS:
        called = upper <= limit
        if called.sum() < 2 * FEWEST:
            continue
        shares = [
            good[called & own].mean() for own, _ in left_out(rows) if (called & own).sum() >= FEWEST
        ]
        kept = binomtest(int(good[called].sum()), int(called.sum()))
        lowest = kept.proportion_ci(0.9, "wilson").low
        enough = good[called].mean() >= AIM and lowest >= RELIABLE
        if enough and min(shares, default=0.0) >= WORST:
            best = round(float(limit), 2)
    return best


@dataclass(frozen=True)
class Fitted:
    """A kind of estimate, and what its promises were worth on families left out.

    Attributes:
        kind: The kind.
        promised: (N,) upper errors.
        reliable: (N,) which estimates were called so.
        kept: Target to (N,) which estimates stayed within what was promised of it.
    """

    kind: Kind
    promised: np.ndarray
    reliable: np.ndarray
    kept: dict[str, np.ndarray]


def fit(rows: pd.DataFrame, name: str) -> Fitted:
    """Fit one kind of estimate.

    Args:
        rows: Its estimates, with their features and true errors.
        name: The kind, see :data:`FEATURES`.
    """
    names, wanted = {**FEATURES, **OF_COALITIONS}[name], targets(rows)
    families = rows["family"].to_numpy()
    functions, promises = {}, {}
    for target, y in wanted.items():
        predicted = unseen(rows, names, y, KEPT)
        offset = quantile(y - predicted, families, KEPT)
        functions[target] = Linear.fitted(rows, names, y, KEPT).function(offset)
        promises[target] = raised(rows, y, predicted)
    upper = np.exp(promises["error"])
    limit = reliable_below(rows, upper)
    watched = (
        list(names)
        if name == "task-vector"
        else [*names, *(n for n in WATCHED if n in rows and n not in names)]
    )
    # The limit that judges a family is found without it.
    called = np.zeros(len(rows), bool)
    for own, others in left_out(rows):
        strict = reliable_below(rows[others], upper[others])
        called[own] = upper[own] <= (-1.0 if strict is None else strict)
        ranges = rows.loc[others, watched].agg(["min", "max"]).to_numpy()
        room = 0.1 * (ranges[1] - ranges[0])
        x = rows.loc[own, watched].to_numpy()
        called[own] &= ((x >= ranges[0] - room) & (x <= ranges[1] + room)).all(1)
    median = Linear.fitted(rows, names, wanted["error"], 0.5).function()
    kind = Kind(
        estimates=len(rows),
        recordings=int(rows["recording"].nunique()),
        typical=float(rows["error"].median()),
        ranges={n: (float(rows[n].min()), float(rows[n].max())) for n in watched},
        upper=functions["error"],
        median=median,
        group=functions["group"],
        wrong_signs=functions["wrong_signs"],
        reliable_below=limit,
    )
    kept = {target: y <= promises[target] for target, y in wanted.items()}
    return Fitted(kind, upper, called, kept)
