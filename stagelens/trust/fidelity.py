"""How an estimate of effects compares with the effects by replay, in figures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stagelens.effects.resampling import Resamples, interval, places

FIGURES = ("r", "rho", "slope", "relative_error", "sign_agreement")


def fidelity(estimate: np.ndarray, truth: np.ndarray, ranks: bool = True) -> dict[str, float]:
    """How an estimate of effects compares with the effects by replay.

    Args:
        estimate: (N,) estimated effects.
        truth: (N,) effects by replay.
        ranks: Whether ``rho`` is worked out: of many examples, that takes most of the time.

    Returns:
        ``r`` (Pearson), ``rho`` (Spearman), ``slope`` (truth on estimate, through the origin: 1
        is right, below 1 the estimate overstates), ``relative_error`` (norm of the difference
        over the norm of the truth), ``sign_agreement`` (fraction, 0 to 1). NaN where a figure is
        not defined, such as the correlation of a constant.
    """
    estimate, truth = np.asarray(estimate, float), np.asarray(truth, float)
    known = np.isfinite(estimate) & np.isfinite(truth)
    estimate, truth = estimate[known], truth[known]
    if len(truth) == 0:
        return dict.fromkeys(FIGURES, float("nan"))
    found = _fidelity(estimate[None], truth[None], ranks)
    return {name: float(value[0]) for name, value in found.items()}


def _fidelity(estimate: np.ndarray, truth: np.ndarray, ranks: bool = True) -> dict[str, np.ndarray]:
    """The figures of :func:`fidelity` for each row of (R, N) arrays."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.linalg.norm(estimate - truth, axis=1)
        return {
            "r": _correlation(estimate, truth),
            "rho": _correlation(_ranks(estimate), _ranks(truth))
            if ranks
            else np.full(len(truth), np.nan),
            "slope": (estimate * truth).sum(1) / (estimate * estimate).sum(1),
            "relative_error": gap / np.linalg.norm(truth, axis=1),
            "sign_agreement": (np.sign(estimate) == np.sign(truth)).mean(1),
        }


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / np.where(scale > 0, scale, np.nan))


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=1))


def bootstrap(
    estimate: np.ndarray, truth: np.ndarray, resamples: int = 500, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % confidence intervals of :func:`fidelity`'s figures, over resampled examples.

    Args:
        estimate: (N,) estimated effects.
        truth: (N,) effects by replay.
        resamples: How many; fewer for large sets, where the intervals are narrow anyway.
        seed: Makes the intervals reproducible.
    """
    estimate, truth = np.asarray(estimate, float), np.asarray(truth, float)
    known = np.isfinite(estimate) & np.isfinite(truth)
    estimate, truth = estimate[known], truth[known]
    if len(truth) < 2:
        return dict.fromkeys(FIGURES, (float("nan"), float("nan")))
    random = np.random.default_rng(seed)
    count = Resamples(resamples, fewest=50, draws=10_000_000).of(len(truth))
    drawn = [_fidelity(estimate[rows], truth[rows]) for rows in places(len(truth), count, random)]
    intervals = {}
    for name in FIGURES:
        values = np.concatenate([each[name] for each in drawn])
        # A resample of equal values has no r, and one NaN would leave no interval at all.
        intervals[name] = interval(values[np.isfinite(values)])
    return intervals


def paired(estimate: pd.DataFrame, truth: pd.DataFrame, stage: str) -> tuple[pd.Series, pd.Series]:
    """Effects on one behaviour by the estimate and by replay, of the same examples."""
    own, true = (
        rows[rows["stage"] == stage].set_index("example_id")["effect"] for rows in (estimate, truth)
    )
    return (own if own.index.equals(true.index) else own.reindex(true.index)), true
