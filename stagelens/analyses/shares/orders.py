"""Shares from sampled orders of joining, where all coalitions would be too many.

A share is a mean over orders, so the mean over orders drawn at random is an unbiased estimate of
it. Each order is drawn together with its reverse: what a party adds when it joins early and late
is averaged in each pair, which takes out most of the spread (antithetic sampling; R. Mitchell,
J. Cooper, E. Frank and G. Holmes, Sampling Permutations for Shapley Value Estimation, 2022). Pairs
are independent of each other, so the interval comes from pairs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

import numpy as np

from stagelens.contracts import StageLensError

from .values import Values, every

MOST_PARTIES = 6
"""Up to so many parties all coalitions are computed; of more, those of sampled orders."""
FEWEST_PAIRS = 2
"""With one pair there is no interval."""

_Pair = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class SampledShares:
    """Estimated shares.

    Attributes:
        shares: (M, N); each example's add up to ``v(all) - v(none)`` exactly.
        of_pairs: (P, M, N), the same from each pair of orders alone.
    """

    shares: np.ndarray
    of_pairs: np.ndarray

    @property
    def pairs(self) -> int:
        """How many pairs of orders they rest on."""
        return len(self.of_pairs)

    def errors(self) -> np.ndarray:
        """(M, N) standard errors over pairs; NaN with a single pair."""
        return standard_error(self.of_pairs)

    def half_widths(self, chosen: np.ndarray | None = None, level: float = 0.05) -> np.ndarray:
        """What the choice of orders adds on either side of mean shares, (M,); NaN with one pair.

        By Student's t, because pairs are few.

        Args:
            chosen: (N,) which examples the means are over; None for all of them.
            level: Share of intervals that may miss.
        """
        from scipy.stats import t

        own = self.of_pairs if chosen is None else self.of_pairs[:, :, chosen]
        if self.pairs < FEWEST_PAIRS:
            return np.full(self.shares.shape[0], np.nan)
        errors = standard_error(np.nanmean(own, axis=2))
        return np.asarray(t.ppf(1 - level / 2, self.pairs - 1) * errors)


def standard_error(draws: np.ndarray) -> np.ndarray:
    """Of the mean over the first axis; NaN where there is a single draw."""
    if len(draws) < FEWEST_PAIRS:
        return np.full(draws.shape[1:], np.nan)
    return np.asarray(draws.std(axis=0, ddof=1) / np.sqrt(len(draws)))


def sampled_orders(m: int, pairs: int, seed: int = 0) -> list[_Pair]:
    """Pairs of an order of joining and its reverse; more pairs begin with the same ones.

    Args:
        m: Number of parties.
        pairs: How many pairs.
        seed: Makes them reproducible, so that what was measured tells which orders were drawn.
    """
    return list(islice(_drawn(m, seed), pairs))


def _drawn(m: int, seed: int) -> Iterator[_Pair]:
    random = np.random.default_rng([seed, m])
    while True:
        order = tuple(random.permutation(m).tolist())
        yield order, order[::-1]


def masks_of(orders: Sequence[_Pair], m: int) -> list[int]:
    """The coalitions that shares from these orders are made of, in the order of first use."""
    found = dict.fromkeys([every(m), 0])
    for pair in orders:
        for order in pair:
            found.update(dict.fromkeys(_prefixes(order)))
    return list(found)


def pairs_within(models: int, m: int) -> int:
    """How many pairs of orders are sure to fit into a budget of models, base and final included.

    It depends on numbers alone and not on which orders are drawn: stopping after cheap orders
    would favour them.
    """
    return max((models - 2) // (2 * (m - 1)), 0) if m > 1 else 1


def measured_pairs(masks: Collection[int], m: int, seed: int = 0) -> list[_Pair]:
    """The leading pairs of :func:`sampled_orders` whose coalitions have all been measured."""
    known = set(masks)
    # Bounded, because where all coalitions are there, no order is ever missing.
    likely = islice(_drawn(m, seed), len(known))
    return list(takewhile(lambda pair: known.issuperset(masks_of([pair], m)), likely))


def estimated_shares(v: Values, m: int, orders: Sequence[_Pair]) -> SampledShares:
    """Shares from sampled orders.

    Args:
        v: At least the coalitions of :func:`masks_of`.
        m: Number of parties.
        orders: From :func:`sampled_orders`.

    Raises:
        StageLensError: A coalition is missing, or there is no order.
    """
    missing = [mask for mask in masks_of(orders, m) if mask not in v]
    if missing or not orders:
        raise StageLensError(
            f"{len(missing)} models that shares from {len(orders)} pairs of orders need have not "
            "been measured; compute them with: stagelens shares"
        )
    of_pairs = np.stack(
        [np.mean([_joining(v, order) for order in pair], axis=0) for pair in orders]
    )
    return SampledShares(of_pairs.mean(axis=0), of_pairs)


def weights_of(drawn: Sequence[_Pair], party: int, m: int) -> dict[int, float]:
    """Coalition to its weight in a party's share from these orders."""
    weights: dict[int, float] = {}
    for order in (order for pair in drawn for order in pair):
        masks = [0, *_prefixes(order)]
        place = order.index(party)
        for mask, sign in ((masks[place + 1], 1.0), (masks[place], -1.0)):
            weights[mask] = weights.get(mask, 0.0) + sign / (2 * len(drawn))
    return weights


def _joining(v: Values, order: Sequence[int]) -> np.ndarray:
    """(M, N): what each party's joining changes, in one order."""
    steps = np.stack([np.asarray(v[mask], dtype=np.float64) for mask in (0, *_prefixes(order))])
    changes = np.diff(steps, axis=0)
    found = np.empty_like(changes)
    found[list(order)] = changes
    return found


def _prefixes(order: Sequence[int]) -> list[int]:
    """The coalitions after each joining."""
    return np.bitwise_or.accumulate([1 << party for party in order]).tolist()
