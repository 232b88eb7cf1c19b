"""Does a stage's effect go with a feature? Tests within label, corrected for how many are made.

Examples that have a feature are compared with those of the same label that lack it. The test
is the rank-sum test (Mann-Whitney, with ties), because stage effects have heavy tails; the size
is the difference of the two means. Where examples share sources, errors and degrees of freedom are
clustered by them, and what is tested is the difference of the mean ranks over its clustered error:
without clusters that is the rank-sum test again, as the ranks of all have the same spread on both
sides under chance. All tests of a stage are corrected together (Benjamini and
Hochberg). A feature *passes* where

- at least :data:`SUPPORT` examples of the label have it, and as many lack it,
- its false-discovery rate q is at most :data:`LEVEL`,
- the difference is at least :data:`SMALLEST` standard deviations of the effect within its label,
- its 95 % interval, over examples and where it is known over the training noise, excludes zero,
  and it is beyond 2 noise sd; where the recipe was drawn, its interval over draws excludes zero
  instead,
- the effect is stronger with the feature than without: what a stage does where something is *not*
  there is found as a feature of the others.

Features are sorted by *evidence*: the end of the interval that is nearer to zero, so the size of
the difference that is certain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import ndtr, stdtr

from stagelens.effects.resampling import numbered
from stagelens.wording.quantiles import t_quantile

from .clustered import difference_errors

SUPPORT = 10
LEVEL = 0.05
SMALLEST = 0.2


@dataclass(frozen=True)
class Candidates:
    """Features of one kind, and which examples have them.

    Attributes:
        kind: ``"word"``, ``"pair"``, ``"patch"``, ``"cluster"`` or ``"column"``.
        names: (P,) as they are shown.
        rows: (n,) places of the examples that were looked at, among all N.
        members: (n, P) sparse, 1 where an example has a feature.
        changes: (n, P) how much the stage effect of each example changes when the feature is
            taken away; None where features cannot be taken away, and the effect itself is tested.
    """

    kind: str
    names: Sequence[str]
    rows: np.ndarray
    members: sparse.csr_matrix
    changes: np.ndarray | None = None


@dataclass(frozen=True)
class DrawnGains:
    """A stage's effects in several draws of the recipe.

    Attributes:
        gains: (N, K) effects in K draws.
        is_clear: Of a number in each draw, whether its interval over draws leaves out zero.
    """

    gains: np.ndarray
    is_clear: Callable[[np.ndarray], bool]


def judged_features(
    candidates: Sequence[Candidates],
    effects: np.ndarray,
    labels: np.ndarray,
    orders: np.ndarray | None = None,
    draws: DrawnGains | None = None,
    sources: np.ndarray | None = None,
) -> pd.DataFrame:
    """Test every feature within every label.

    Args:
        candidates: Features by kind.
        effects: (N,) stage effects; NaN where there is none.
        labels: (N,) label of each example, None for those without.
        orders: (N, K) effects in K orders of the recorded batches; None where the training noise
            is not known.
        draws: Effects in draws of the recipe, which stand for the noise; None without any.
        sources: (N,) the number of each example's source, below 0 where it shares none; None where
            all are apart.

    Returns:
        One row per feature and label with enough support, the strongest evidence first: ``kind``,
        ``name``, ``label``, ``feature`` (place within its kind), ``support``, ``without``
        (counts), ``mean_with``, ``mean_without``, ``difference``, ``low``, ``high`` (NaN where a
        side is of one source), ``freedom`` (Welch's or Satterthwaite's, of the interval), ``p``,
        ``q``, ``noise_sd`` (NaN: not known), ``smallest`` (the least difference that passes),
        ``evidence`` and ``passes``.
    """
    frames: list[pd.DataFrame] = []
    drawn: list[np.ndarray] = []
    for each in candidates:
        for label in _labels(labels):
            of = labels[each.rows] == label if label is not None else np.ones(len(each.rows), bool)
            of &= np.isfinite(effects[each.rows])
            if draws is not None:  # over the same examples in this run and in every draw
                of &= np.isfinite(draws.gains[each.rows]).all(axis=1)
            # Of fewer, one side is always too small.
            if of.sum() >= 2 * SUPPORT:
                places = np.flatnonzero(of)
                noise = orders if draws is None else None
                frames.append(_within(each, label, places, effects, noise, sources))
                if draws is not None:
                    drawn.append(_in_draws(each, places, draws.gains))
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=_COLUMNS)
    if draws is None or not drawn:
        return _judged(table, lambda _: True)
    contrasts = np.concatenate(drawn)
    return _judged(table, lambda row: draws.is_clear(contrasts[row]))


def _labels(labels: np.ndarray) -> Sequence[str | None]:
    """The labels, sorted; a single None, which stands for all examples, where there are none."""
    known = sorted({str(label) for label in labels if label is not None})
    return known or [None]


_COLUMNS = (
    *("kind", "name", "label", "feature", "support", "without", "mean_with", "mean_without"),
    *("difference", "low", "high", "freedom", "p", "noise_sd", "smallest"),
)


def _judged(table: pd.DataFrame, is_clear: Callable[[int], bool]) -> pd.DataFrame:
    """What passes, sorted by evidence; ``is_clear`` says of a row what draws of the recipe do."""
    from scipy.stats import false_discovery_control

    p = table["p"].to_numpy(dtype=float)
    q = false_discovery_control(p) if len(p) else p  # of Benjamini and Hochberg
    size = table["difference"].abs()
    nearer = np.minimum(table["low"].abs(), table["high"].abs())
    # Nothing is certain of a difference whose interval holds zero.
    certain = np.where(np.sign(table["low"]) == np.sign(table["high"]), nearer, 0.0)
    stronger = table["mean_with"].abs() > table["mean_without"].abs()
    within = size < 2 * table["noise_sd"]  # false where the noise is not known
    passes = (q <= LEVEL) & (size >= table["smallest"]) & (certain > 0) & stronger & ~within
    # Only of those: an interval for each of many thousand tests would take seconds.
    passes &= np.array([bool(one) and is_clear(row) for row, one in enumerate(passes)], bool)
    table = table.assign(q=q, evidence=np.where(stronger, certain, 0.0), passes=passes)
    order = ["passes", "evidence", "support"]
    # Stable, so that the same features come in the same order each time.
    return table.sort_values(order, ascending=False, kind="stable").reset_index(drop=True)


def _within(
    candidates: Candidates,
    label: str | None,
    places: np.ndarray,
    effects: np.ndarray,
    orders: np.ndarray | None,
    sources: np.ndarray | None,
) -> pd.DataFrame:
    """All features of one kind within one label that have enough support."""
    members, n1, keep = _supported(candidates, places)
    rows = candidates.rows[places]
    own = effects[rows]
    values = own if candidates.changes is None else candidates.changes[np.ix_(places, keep)]
    with_, without, error, freedom, p = _compared(members, n1, values)
    place = None if sources is None else numbered(sources[rows])
    if place is not None and place.max() + 1 < len(rows):
        error, freedom = difference_errors(members, n1, values, place)
        p = _of_ranks(members, n1, values, place)
    noise = np.full(len(keep), np.nan)
    # One order alone has no spread.
    if orders is not None and orders.shape[1] > 1:
        noise = _contrast(members, n1, orders[rows]).std(axis=1, ddof=1)
    # Noise that is not known adds nothing to the interval.
    reach = t_quantile(freedom) * np.sqrt(error**2 + np.nan_to_num(noise) ** 2)
    difference = with_ - without
    facts: dict[str, Any] = {
        "kind": candidates.kind,
        "name": [candidates.names[int(place)] for place in keep],
        "label": label,
        "feature": keep,
        "support": n1.astype(int),
        "without": (len(places) - n1).astype(int),
        "mean_with": with_,
        "mean_without": without,
        "difference": difference,
        "low": difference - reach,
        "high": difference + reach,
        "freedom": freedom,
        "p": p,
        "noise_sd": noise,
        "smallest": SMALLEST * own.std(ddof=1),
    }
    return pd.DataFrame(facts, columns=list(_COLUMNS))


def _supported(
    candidates: Candidates, places: np.ndarray
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Of the features with enough support: who has them, how many do, and their places."""
    members = candidates.members[places]
    n1 = np.asarray(members.sum(axis=0)).ravel()
    keep = np.flatnonzero((n1 >= SUPPORT) & (len(places) - n1 >= SUPPORT))
    return members[:, keep], n1[keep], keep


def _in_draws(candidates: Candidates, places: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """(P, K): the differences of :func:`_within` in each draw."""
    members, n1, _ = _supported(candidates, places)
    return _contrast(members, n1, gains[candidates.rows[places]])


def _compared(
    members: sparse.csr_matrix, n1: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean with and without each feature, their difference's standard error, and p of rank sums.

    The degrees of freedom of the standard error, which come before p, are Welch's.

    Args:
        members: (n, P).
        n1: (P,) how many have each feature.
        values: (n,), or (n, P) where each feature has its own.
    """
    from scipy.stats import rankdata  # here, because it takes a while

    count = len(values)
    n0 = count - n1
    sums, squares = _sums(members, values), _sums(members, values**2)
    all_sums, all_squares = values.sum(axis=0), (values**2).sum(axis=0)
    with_, without = sums / n1, (all_sums - sums) / n0
    # A mean's variance is the biased variance over n - 1; rounding can take it below 0.
    var1 = np.maximum(squares / n1 - with_**2, 0) / np.maximum(n1 - 1, 1)
    var0 = np.maximum((all_squares - squares) / n0 - without**2, 0) / np.maximum(n0 - 1, 1)
    ranks = rankdata(values, axis=0)
    spread = ranks.var(axis=0, ddof=1)  # ties make it smaller than n (n + 1) / 12
    with np.errstate(divide="ignore", invalid="ignore"):
        # Under chance the n1 ranks are drawn without replacement from all N, so their mean has
        # variance S^2 / n1 * (N - n1) / N.
        z = (_sums(members, ranks) / n1 - (count + 1) / 2) / np.sqrt(spread * n0 / (n1 * count))
    # Where all values are equal z is 0 / 0, and nothing speaks for the feature: p is 1.
    p = 2 * ndtr(-np.abs(np.nan_to_num(z)))
    squares = var1**2 / np.maximum(n1 - 1, 1) + var0**2 / np.maximum(n0 - 1, 1)
    # Without any variance all freedom is as good.
    freedom = np.where(squares > 0, (var1 + var0) ** 2 / np.where(squares > 0, squares, 1), n1)
    return with_, without, np.sqrt(var1 + var0), freedom, p


def _of_ranks(
    members: sparse.csr_matrix, n1: np.ndarray, values: np.ndarray, place: np.ndarray
) -> np.ndarray:
    """P of the difference of mean ranks over its clustered error; 1 where that is not known."""
    from scipy.stats import rankdata  # here, because it takes a while

    ranks = rankdata(values, axis=0)
    sums = _sums(members, ranks)
    difference = sums / n1 - (ranks.sum(axis=0) - sums) / (len(ranks) - n1)
    error, freedom = difference_errors(members, n1, ranks, place)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(freedom, -np.abs(difference / error))
    return np.where(np.isfinite(p), p, 1.0)


def _sums(members: sparse.csr_matrix, values: np.ndarray) -> np.ndarray:
    if values.ndim == 1:
        return np.asarray(members.T @ values)
    return np.asarray(members.multiply(values).sum(axis=0)).ravel()


def _contrast(members: sparse.csr_matrix, n1: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(P, K): mean with each feature less mean without, in every column of (n, K) values."""
    sums = np.asarray(members.T @ values)
    n1 = n1[:, None]
    return np.asarray(sums / n1 - (values.sum(axis=0) - sums) / (len(values) - n1))
