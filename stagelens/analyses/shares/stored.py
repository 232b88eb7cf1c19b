"""The coalitions of a run that shares are read off: the best that were measured."""

from __future__ import annotations

from collections.abc import Sequence

from stagelens.contracts import StageLensError
from stagelens.effects.coalition_results import (
    CoalitionFacts,
    CoalitionResult,
    load_coalitions,
    stored_coalitions,
)
from stagelens.estimators.coalition_plan import trained
from stagelens.estimators.parties import Parties, parties_of, stage_masks
from stagelens.estimators.registry import estimators
from stagelens.runs.run import Run

from . import orders
from .share_table import SHARE, shares_of
from .values import every


def best_coalitions(
    run: Run, set_name: str, together: Sequence[str] = ()
) -> CoalitionResult | None:
    """The measured coalitions that give shares, by the best estimator; None where none do.

    One that refuses all of them is taken only where no other gives any.

    Args:
        run: The run.
        set_name: One of its evaluation sets.
        together: Stages to take as one.
    """
    ranks = {name: place for place, name in enumerate(estimators())}
    parties = parties_of(run, [together] if together else [])

    def rank(facts: CoalitionFacts) -> tuple[int, float]:
        # A larger budget is nearer to the replay.
        budget = facts.settings.get("budget", 0.0)
        return ranks.get(facts.estimator, len(ranks)), -float(budget)

    refused = None
    for facts in sorted(stored_coalitions(run, set_name), key=rank):
        found = load_coalitions(run, set_name, facts.estimator, facts.settings, parties)
        words = None if found is None else _trust(found)
        if words and words != {"refused"}:
            return found
        refused = refused or (found if words else None)
    return refused


def _trust(found: CoalitionResult) -> set[str]:
    """What is known of the shares of all stages; empty where the coalitions give none."""
    try:
        shares = shares_of(found, found.facts.behaviours[0].name)
    except StageLensError:
        return set()
    return {known.trust for known in shares.trust_in(SHARE).values()}


_MODELS, _PAIRS = 64, 4
"""Sampled orders take so many models by default, or as many more as so many pairs need."""


def wanted_masks(run: Run, parties: Parties, models: int | None = None) -> list[int]:
    """The coalitions that shares take: all of few parties, of more those of sampled orders.

    Recorded models come on top of those of the orders: they cost nothing, and all that is seen
    after stages is read off them.

    Args:
        run: The run.
        parties: Who can join.
        models: The most models for sampled orders, base and final one included; None for the
            default.

    Raises:
        StageLensError: There are too few models for an interval, or all coalitions are computed.
    """
    m = len(parties)
    if m <= orders.MOST_PARTIES:
        if models is not None and models < 1 << m:
            raise StageLensError(
                f"shares of {m} stages or parties take {1 << m} models, and all of them are "
                "computed; omit --models, or take stages as one with --together"
            )
        return list(range(1 << m))
    wanted = max(_MODELS, _models(m, _PAIRS)) if models is None else models
    pairs = orders.pairs_within(wanted, m)
    if pairs < orders.FEWEST_PAIRS:
        raise StageLensError(
            f"{wanted} models are too few for shares of {m} parties with an interval; give "
            f"--models {_models(m, orders.FEWEST_PAIRS)} or more, or take stages as one with "
            "--together"
        )
    drawn = orders.masks_of(orders.sampled_orders(m, pairs), m)
    ends = stage_masks(run, parties, map(every, range(m + 1)))
    recorded = [mask for mask, stages in ends.items() if not trained(stages, run.stages)]
    return list(dict.fromkeys([*drawn, *recorded]))


def _models(m: int, pairs: int) -> int:
    """How many models some pairs of orders take at most."""
    return 2 + 2 * (m - 1) * pairs
