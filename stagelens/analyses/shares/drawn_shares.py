"""Shares of a recipe: what every draw's coalitions say, and the interval over draws.

Every reading is linear in the coalitions' values, so that of the mean over draws is the mean of the
draws' readings, and the identities that hold in each draw hold for it. What differs is how certain
a mean is: other draws might have been made, and that says the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stagelens.effects.draws import FEWEST, DrawInterval, left_out_text
from stagelens.estimators.stage_trust import REPLAY, StageTrust
from stagelens.trust.drawn_coalitions import DrawnCoalitions
from stagelens.trust.draws import RECIPE
from stagelens.wording.intervals import Interval
from stagelens.wording.trust_words import width_in_means

from .means import Mean
from .share_table import Shares
from .share_trust import SUMS
from .values import combined


@dataclass(frozen=True)
class DrawnShares(Shares):
    """What coalitions in several draws say of one behaviour, for M stages and N examples.

    As :class:`Shares`, with ``v`` the mean over draws; intervals of means are over draws alone.

    Attributes:
        drawn_v: Coalition to (N,) values, in each draw.
        found: The draws.
    """

    drawn_v: Sequence[Mapping[int, np.ndarray]] = field(default=(), repr=False)
    found: DrawnCoalitions | None = field(default=None, repr=False)

    @property
    def over(self) -> str:
        """``8 redraws``."""
        assert self.found is not None
        return self.found.words

    def means(self, reading: str, chosen: np.ndarray | None = None) -> list[Mean]:
        """The mean over draws and examples of a reading, one per stage in training order."""
        return [
            self.combined_mean(name, self.weights(reading, party), chosen)
            for party, name in enumerate(self.names)
        ]

    def combined_mean(
        self,
        name: str,
        weights: Mapping[int, float],
        chosen: np.ndarray | None = None,
        of: str = SUMS,
    ) -> Mean:
        """The mean of a weighted sum of coalitions; NaN where no example has a value."""
        own, n = self._in_each(weights, chosen)
        over = self._interval(own, weights)
        trust = self._known_from(name, over)  # that of a group goes by its own interval
        if not n:
            return Mean(name, 0, np.nan, None, trust)
        ends = None
        if np.isfinite(over.low) and np.isfinite(over.high):
            ends = Interval(over.low, over.high, 0.0, 0.0, drawn=self.over)
        elif over.sd == 0 and over.draws >= FEWEST:
            # All draws are alike: how far the examples leave the mean uncertain is what remains.
            ends = self._over_examples(weights, chosen)
        return Mean(name, n, over.mean, ends, trust)

    def _over_examples(
        self, weights: Mapping[int, float], chosen: np.ndarray | None
    ) -> Interval | None:
        numbers = self._combined(weights)
        kept = np.isfinite(numbers) if chosen is None else np.isfinite(numbers) & chosen
        most = sum(weight for weight in weights.values() if weight > 0)
        shared = None if self.clusters is None else self.clusters[kept]
        spread = self._spread(numbers[kept], shared, most)
        low, high = spread.ends()
        return Interval(low, high, (high - low) / 2, 0.0) if low < high else None

    def in_each_draw(self, reading: str, chosen: np.ndarray | None = None) -> np.ndarray:
        """(K, M): the mean of a reading over examples, in each draw."""
        weights = [self.weights(reading, party) for party in range(self.m)]
        return np.stack([self._in_each(each, chosen)[0] for each in weights], axis=1)

    def of_example(self, reading: str, place: int) -> list[Mean]:
        """A reading of one example, one per stage in training order."""
        return self.means(reading, np.arange(len(self.final)) == place)

    def _in_each(
        self, weights: Mapping[int, float], chosen: np.ndarray | None
    ) -> tuple[np.ndarray, int]:
        """(K,) means of a weighted sum over examples, one per draw, and over how many they are."""
        kept = np.isfinite(self.final) if chosen is None else np.isfinite(self.final) & chosen
        n = int(kept.sum())
        means = [combined(v, weights)[kept].mean() if n else np.nan for v in self.drawn_v]
        return np.array(means), n

    def _interval(self, own: np.ndarray, weights: Mapping[int, float]) -> DrawInterval:
        assert self.found is not None
        # Weights add up to 0: each part of those above 0 is an effect, of one set over another.
        effects = math.ceil(sum(one for one in weights.values() if one > 0) - 1e-9) or 1
        return self.found.interval(own).within(self.behaviour, effects)

    def _trust(self, name: str, weights: Mapping[int, float], of: str = SUMS) -> StageTrust:
        return self._known_from(name, self._interval(self._in_each(weights, None)[0], weights))

    def _known_from(self, name: str, over: DrawInterval) -> StageTrust:
        width = width_in_means(over.mean, over.low, over.high)
        return StageTrust(
            stage=name,
            estimator=REPLAY,
            trust="estimated",
            reason=f"The mean over {self.over}, each trained anew with every set of stages, which "
            "other draws would change.",
            over_draws=((self.behaviour.name, width),),
        )


def drawn_shares_of(found: DrawnCoalitions, behaviour: str) -> DrawnShares | None:
    """Read one behaviour off the coalitions of several draws; None where it was not measured."""
    kind = found.behaviours.get(behaviour)
    if kind is None:
        return None
    drawn_v = found.values(behaviour)
    known = np.array(
        [np.all([np.isfinite(each) for each in own.values()], axis=0) for own in drawn_v]
    )
    lost = known.any(axis=0) & ~known.all(axis=0)
    left_out = ""
    if lost.any():  # means are over the same examples in every draw, and for every coalition
        left_out = left_out_text(int(lost.sum()), np.flatnonzero(~known[:, lost].all(axis=1)))
    every = known.all(axis=0)
    drawn_v = [{m: np.where(every, each, np.nan) for m, each in own.items()} for own in drawn_v]
    v = {mask: np.mean([own[mask] for own in drawn_v], axis=0) for mask in drawn_v[0]}
    return DrawnShares(
        kind,
        found.stages,
        v,
        {},
        found.labels,
        RECIPE,
        clusters=found.clusters,
        drawn_v=drawn_v,
        found=found,
        left_out=left_out,
    )
