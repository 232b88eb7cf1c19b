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
from stagelens.estimators.parties import parties_of
from stagelens.estimators.registry import estimators
from stagelens.runs.run import Run

from .orders import FEWEST_PAIRS, MOST_PARTIES, masks_of, pairs_within, sampled_orders
from .share_table import SHARE, shares_of


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


MOST_MODELS = 1 << MOST_PARTIES
"""Models that sampled orders may take by default: as many as all coalitions of six parties."""


def wanted_masks(m: int, models: int | None = None) -> list[int]:
    """The coalitions that shares of ``m`` parties take: all of them, or those of sampled orders.

    Args:
        m: Number of parties.
        models: The most models, base and final one included; None for all up to six parties, and
            :data:`MOST_MODELS` beyond.

    Raises:
        StageLensError: So few models allow no shares with an interval.
    """
    if 1 << m <= (MOST_MODELS if models is None else models):
        return list(range(1 << m))
    most = MOST_MODELS if models is None else models
    pairs = pairs_within(most, m)
    if pairs < FEWEST_PAIRS:
        least = 2 + FEWEST_PAIRS * 2 * (m - 1)
        raise StageLensError(
            f"{most:,} models are too few for shares of {m} parties; allow {min(least, 1 << m):,}, "
            "or take stages as one"
        )
    return masks_of(sampled_orders(m, pairs), m)
