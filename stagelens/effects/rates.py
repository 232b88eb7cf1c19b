"""Shares of examples with their intervals, also where examples share a source."""

from __future__ import annotations

import numpy as np

from stagelens.wording.quantiles import t_quantile

from .contrasts import share_ends
from .resampling import numbered


def rates(
    hits: np.ndarray, of: np.ndarray, worth: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares and their intervals (95 %), see :func:`~.contrasts.share_ends`.

    Args:
        hits: How many were hit; NaN where that is not known.
        of: Of how many; without any there is no share.
        worth: How many examples apart these are worth, see :func:`class_worths`; NaN where their
            spread is not known. None where all are apart.
    """
    with np.errstate(invalid="ignore"):  # 0 of 0
        share = hits / of
    return share, *share_ends(share, of if worth is None else worth, t_quantile(np.inf))


def class_worths(
    label: np.ndarray, answer: np.ndarray, clusters: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many examples apart those of each class, and those of others, are worth.

    Examples of one source are not drawn independently. A share of them varies as if it were of
    fewer examples: of as many as its variance over sources says, but of no more than there are
    (E. L. Korn and B. I. Graubard, Confidence intervals for proportions with small expected number
    of positive counts estimated from survey data, Survey Methodology 24, 1998, who take the
    interval of Clopper and Pearson). Where every example is its own source, all count.

    Args:
        label: (n,) places of the labels among the classes.
        answer: (n,) the same of the answers; -1 where there is none.
        clusters: (n,) as ``contrasts.mean_spread`` takes them.
        classes: C, how many there are.

    Returns:
        (C,) for the share of a class that is given another answer, and (C,) for that of all others
        that are given this one; NaN where all examples share one source, 0 where there are none.
    """
    source, label, answer = numbered(clusters), label.astype(int), answer.astype(int)
    sizes = np.bincount(source)
    missed, called = answer != label, (answer != label) & (answer >= 0)
    own, given = source * classes + label, source * classes + answer
    # Of all pairs of a source and a class, only those that occur are held.
    pairs = np.unique(np.concatenate([own, given[called]]))

    def counted(which: np.ndarray) -> np.ndarray:
        return np.bincount(np.searchsorted(pairs, which), minlength=len(pairs))

    def by_class(numbers: np.ndarray) -> np.ndarray:
        return np.bincount(pairs % classes, weights=numbers, minlength=classes)

    there, size = counted(own), sizes[pairs // classes]
    misses, falses = counted(own[missed]), counted(given[called])
    total = by_class(there)
    others = len(label) - total
    share, false = (
        np.divide(by_class(hits), of, out=np.zeros(classes), where=of > 0)
        for hits, of in ((misses, total), (falses, others))
    )
    each, every = share[pairs % classes], false[pairs % classes]
    # How far a source is from its expected number of hits; squares of those without a pair are
    # added as if their hits were none, and taken off again where there is one.
    spread = by_class((misses - each * there) ** 2)
    rest = false**2 * float((sizes.astype(float) ** 2).sum()) + by_class(
        (falses - every * (size - there)) ** 2 - (every * size) ** 2
    )
    sources = by_class(there > 0), len(sizes) - by_class(there == size)
    return _worth(share, total, spread, sources[0]), _worth(false, others, rest, sources[1])


def _worth(
    share: np.ndarray, of: np.ndarray, spread: np.ndarray, sources: np.ndarray
) -> np.ndarray:
    """See :func:`class_worths`; a share of 0 or 1 has no spread to tell it by but its sources."""
    usual = of * share * (1 - share)
    told = (usual > 0) & (spread > 0)
    worth = np.minimum(of, np.divide(of * usual, spread, out=of.astype(float), where=told))
    worth = np.where(usual > 0, worth, np.minimum(of, sources))
    worth = np.maximum(np.rint(worth), 1.0)
    return np.where(of == 0, 0.0, np.where(sources < 2, np.nan, worth))
