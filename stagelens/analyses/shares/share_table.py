"""What a table of coalitions says of every example and of groups, with the trust of each number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import ACCURACY, Behaviour, StageLensError
from stagelens.effects.coalition_results import CoalitionResult
from stagelens.effects.contrasts import Spread, mean_spread
from stagelens.estimators.parties import name_of
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.sets.clusters import CLUSTER
from stagelens.wording.intervals import (
    Interval,
    example_error,
    example_interval,
    mean_interval,
    widened,
)
from stagelens.wording.trust_words import trust_word

from . import orders, values
from .means import Mean
from .orders import SampledShares
from .share_trust import SHARES, SUMS, of_sampled_orders, trust_of

SHARE, ALONE, WITHOUT, SEEN_AFTER = "share", "alone", "without_it", "seen_after"
READINGS = (SHARE, ALONE, WITHOUT, SEEN_AFTER)
"""What is read off a table of coalitions of each stage."""

SHARE_COLUMNS = ("set", "example_id", "stage", "behaviour", *READINGS, "share_error", "trust")
"""Columns of a share table. ``share_error`` is the standard error of a share over sampled orders,
NaN where all coalitions were measured; ``trust`` is the share's."""

_WEIGHTS = {
    SHARE: values.share_weights,
    ALONE: values.alone_weights,
    WITHOUT: values.left_out_weights,
}


_INTERLEAVED = StageTrust(
    stage="",
    estimator="",
    trust="refused",
    reason="Stages of others lie between those taken as one, so no boundary lies before and after "
    "these alone.",
)


@dataclass(frozen=True)
class Shares:
    """What a table of coalitions says of one behaviour, for M parties and N examples.

    Attributes:
        behaviour: What was measured.
        names: The parties, in training order: stages, or several taken as one.
        v: Coalition to (N,) values.
        trust: Coalition to what is known of its model.
        labels: (N,) whether an example has a label.
        estimator: How the models were obtained.
        sampled: Shares from sampled orders; None where all coalitions are there.
        drawn: The orders.
        places: The places in training of each party's stages; none where each party is one stage.
        clusters: (N,) the number of each example's source, below 0 where it shares none; None where
            none do.
        left_out: Which examples are left out because some draw has no value of them, as a sentence;
            empty where none are.
    """

    behaviour: Behaviour
    names: tuple[str, ...]
    v: Mapping[int, np.ndarray]
    trust: Mapping[int, StageTrust]
    labels: np.ndarray
    estimator: str = ""
    sampled: SampledShares | None = None
    drawn: Sequence[Any] = field(default=(), repr=False)
    places: Sequence[Sequence[int]] = ()
    clusters: np.ndarray | None = field(default=None, repr=False)
    left_out: str = ""

    @property
    def m(self) -> int:
        """How many parties there are."""
        return len(self.names)

    @property
    def over(self) -> str:
        """Over which draws of the recipe these are means, as ``8 redraws``; empty for one run's."""
        return ""

    @property
    def full(self) -> int:
        """The coalition of everybody."""
        return values.every(self.m)

    @property
    def complete(self) -> bool:
        """Whether all coalitions are there."""
        return self.sampled is None

    @property
    def base(self) -> np.ndarray:
        """(N,) values of the base, after all boundary rules."""
        return self.v[0]

    @property
    def final(self) -> np.ndarray:
        """(N,) values of the final model."""
        return self.v[self.full]

    def weights(self, reading: str, party: int) -> dict[int, float]:
        """Coalition to its weight in a reading of a party."""
        if reading == SEEN_AFTER:
            return values.seen_after_weights(party, self.m)
        if reading == SHARE and not self.complete:
            return orders.weights_of(self.drawn, party, self.m)
        return _WEIGHTS[reading](party, self.m)

    def reading(self, reading: str) -> np.ndarray:
        """(M, N): one of :data:`READINGS`; NaN where it is refused, or a model was not measured."""
        if reading not in self._read:
            found = np.stack(
                [self._combined(self.weights(reading, party)) for party in range(self.m)]
            )
            known = self.trust_in(reading).values()
            found[[one.trust == "refused" for one in known]] = np.nan
            self._read[reading] = found
        return self._read[reading]

    def ends_at_boundaries(self, party: int) -> bool:
        """Whether boundaries lie before and after a party, others' stages not in between."""
        counts = np.cumsum([0, *map(len, self.places)])
        lasts = np.maximum.accumulate([-1, *(max(own) for own in self.places)])
        return not self.places or bool((counts == lasts + 1)[party : party + 2].all())

    def came_before(self, earlier: int, later: int) -> bool:
        """Whether all stages of one party came before those of another."""
        return not self.places or max(self.places[earlier]) < min(self.places[later])

    @cached_property
    def _read(self) -> dict[str, np.ndarray]:
        return {}

    def _combined(self, weights: Mapping[int, float]) -> np.ndarray:
        if any(mask not in self.v for mask in weights):
            return np.full(len(self.final), np.nan)
        return values.combined(self.v, weights)

    def trust_in(self, reading: str) -> dict[str, StageTrust]:
        """Party to what is known of its numbers."""
        if reading == SHARE and self.sampled is not None:
            return self._known_of_sampled
        return self._of_models(reading)

    def _of_models(self, reading: str) -> dict[str, StageTrust]:
        """The same, without what the choice of orders adds."""
        if reading not in self._known:
            of = SHARES if reading == SHARE else SUMS
            self._known[reading] = {
                name: self._trust(name, self.weights(reading, party), of)
                if reading != SEEN_AFTER or self.ends_at_boundaries(party)
                else _INTERLEAVED.model_copy(update={"stage": name})
                for party, name in enumerate(self.names)
            }
        return self._known[reading]

    @cached_property
    def _known(self) -> dict[str, dict[str, StageTrust]]:
        return {}

    @cached_property
    def _known_of_sampled(self) -> dict[str, StageTrust]:
        assert self.sampled is not None
        known, pairs = self._of_models(SHARE), self.sampled.pairs
        shares, errors = (
            each[:, self._relative_to] for each in (self.sampled.shares, self.sampled.errors())
        )
        return {
            name: of_sampled_orders(known[name], shares[party], errors[party], pairs)
            for party, name in enumerate(self.names)
        }

    def _trust(self, name: str, weights: Mapping[int, float], of: str = SUMS) -> StageTrust:
        relative_to = (self.full, self.behaviour.name, self._relative_to)
        return trust_of(name, weights, self.v, self.trust, *relative_to, of)

    @cached_property
    def _relative_to(self) -> np.ndarray:
        return self.labels if self.labels.any() else np.ones_like(self.labels)

    def means(self, reading: str, chosen: np.ndarray | None = None) -> list[Mean]:
        """The mean of a reading over examples, one per party in training order.

        Args:
            reading: One of :data:`READINGS`.
            chosen: (N,) which examples; None for all of them.
        """
        found, trust = self.reading(reading), self.trust_in(reading)
        width = None
        if reading == SHARE and self.sampled is not None:
            width = self.sampled.half_widths(chosen)
        return [
            self.mean_of(
                found[party], name, trust[name], chosen, 0 if width is None else width[party]
            )
            for party, name in enumerate(self.names)
        ]

    def mean_of(
        self,
        numbers: np.ndarray,
        name: str,
        trust: StageTrust,
        chosen: np.ndarray | None = None,
        sampled: float = 0.0,
        most: float = 1.0,
    ) -> Mean:
        """The mean of some numbers with its interval.

        Args:
            numbers: (N,) one per example.
            name: What they are about.
            trust: What is known of them.
            chosen: (N,) which examples the mean is over; None for all of them.
            sampled: What the choice of orders adds on either side.
            most: Of accuracy, the largest number that an example may have.
        """
        kept = np.isfinite(numbers) if chosen is None else np.isfinite(numbers) & chosen
        own, shared = numbers[kept], None if self.clusters is None else self.clusters[kept]
        if not len(own) or trust.trust == "refused":
            return Mean(name, len(own), np.nan, None, trust)
        mean = float(own.mean())
        spread = self._spread(own, shared, most)
        row = {
            "effect": mean,
            "error": spread.error,
            "freedom": spread.freedom,
            "rms": self.rms(numbers),
            "n": len(own) if shared is None else spread.freedom + 1,
        }
        interval = mean_interval(row, trust, self.behaviour)
        if interval is not None and sampled:
            interval = (
                widened(interval, float(sampled), self.behaviour) if np.isfinite(sampled) else None
            )
        return Mean(name, len(own), mean, interval, trust)

    def _spread(self, own: np.ndarray, shared: np.ndarray | None, most: float) -> Spread:
        """Of a mean of numbers, which of accuracy are from ``-most`` to ``most``."""
        # Where no answer differs, others' might have: the interval has a width all the same.
        found = mean_spread(own / most, shared, self.behaviour == ACCURACY)
        return Spread(float(own.mean()), found.error * most, found.freedom)

    def rms(self, numbers: np.ndarray) -> float:
        """Root mean square of (N,) numbers over the examples that errors are relative to."""
        own = numbers[self._relative_to]
        known = own[np.isfinite(own)]
        return float(np.sqrt(np.mean(known**2))) if len(known) else float("nan")

    def of_example(self, reading: str, place: int) -> list[Mean]:
        """A reading of one example, one per party in training order.

        Args:
            reading: One of :data:`READINGS`.
            place: Of the example in the set.
        """
        found, trust = self.reading(reading), self.trust_in(reading)
        over_orders = None
        if reading == SHARE and self.sampled is not None:
            over_orders = self.sampled.half_widths(np.arange(len(self.final)) == place)
        means = []
        for party, name in enumerate(self.names):
            number, known = float(found[party, place]), trust[name]
            rms = self.rms(found[party])
            # The choice of orders is added below, for this very example.
            models = self._of_models(reading)[name]
            error = example_error(models, rms, self.behaviour.name)
            interval = None
            if error is not None and np.isfinite(number):
                interval = example_interval(number, error, self.behaviour)
                if over_orders is not None:
                    around = interval or Interval(number, number, 0.0, 0.0)
                    interval = widened(around, float(over_orders[party]), self.behaviour)
            means.append(Mean(name, 1, number, interval, known))
        return means

    def combined_mean(
        self,
        name: str,
        weights: Mapping[int, float],
        chosen: np.ndarray | None = None,
        of: str = SUMS,
    ) -> Mean:
        """The mean of a weighted sum of coalitions; NaN where one was not measured."""
        trust = self._trust(name, weights, of)
        most = sum(weight for weight in weights.values() if weight > 0)
        return self.mean_of(self._combined(weights), name, trust, chosen, most=most)

    def level(self, mask: int, chosen: np.ndarray | None = None) -> float:
        """The mean of the behaviour over examples of one coalition's model."""
        own = self.v[mask] if chosen is None else self.v[mask][chosen]
        return float(np.nanmean(own)) if np.isfinite(own).any() else float("nan")


def shares_of(result: CoalitionResult, behaviour: str) -> Shares:
    """Read one behaviour off a table of coalitions.

    Raises:
        StageLensError: The base or the final model is missing, or too few other models are there;
            says what to do.
    """
    kind = result.behaviours.get(behaviour)
    if kind is None:
        known = ", ".join(result.behaviours)
        raise StageLensError(f"no behaviour {behaviour!r} was measured; there is {known}")
    v, m = result.values(behaviour), len(result.parties)
    drawn = []
    if not _enough(result, v):
        # Of few parties all coalitions are on their way, and nothing is gained by showing less.
        drawn = orders.measured_pairs(v, m) if m > orders.MOST_PARTIES else []
        if len(drawn) < orders.FEWEST_PAIRS:
            refused = [known for known in result.trust.values() if known.trust == "refused"]
            if refused:
                raise StageLensError(
                    f"shares are made of the model of {refused[0].stage}, which is refused: "
                    f"{refused[0].reason}"
                )
            raise StageLensError(
                f"{len(v)} of the {1 << m} models that shares are made of are there; compute the "
                "others with: stagelens shares"
            )
    return Shares(
        kind,
        tuple(name_of(result.parties, 1 << party) for party in range(m)),
        v,
        result.trust,
        result.examples["label"].notna().to_numpy(),
        result.facts.estimator,
        orders.estimated_shares(v, m, drawn) if drawn else None,
        drawn,
        result.places,
        pd.factorize(result.examples[CLUSTER])[0] if CLUSTER in result.examples else None,
    )


def _enough(result: CoalitionResult, v: Mapping[int, np.ndarray]) -> bool:
    """Whether every coalition was measured or is known to be impossible, ends included."""
    tried = {*v, *(mask for mask, known in result.trust.items() if known.trust == "refused")}
    return {0, result.full} <= set(v) and len(tried) == result.full + 1


def share_table(result: CoalitionResult, behaviours: Sequence[str] | None = None) -> pd.DataFrame:
    """Every example's shares and further readings; :data:`SHARE_COLUMNS`.

    Rows come by behaviour, then by stage in training order, then in the set's order.

    Args:
        result: Coalitions.
        behaviours: Which of them; None for all that were measured, without accuracy.
    """
    if behaviours is None:
        behaviours = [name for name in result.behaviours if name != ACCURACY.name]
    ids = result.examples["example_id"]
    blocks = []
    for behaviour in behaviours:
        found = shares_of(result, behaviour)
        trust = found.trust_in(SHARE)
        errors = None if found.sampled is None else found.sampled.errors()
        for party, name in enumerate(found.names):
            blocks.append(
                pd.DataFrame(
                    {
                        "set": result.facts.set_name,
                        "example_id": ids.to_numpy(),
                        "stage": name,
                        "behaviour": behaviour,
                        **{each: found.reading(each)[party] for each in READINGS},
                        "share_error": np.nan if errors is None else errors[party],
                        "trust": trust_word(trust[name], behaviour),
                    }
                )
            )
    return pd.concat(blocks, ignore_index=True)[list(SHARE_COLUMNS)]
