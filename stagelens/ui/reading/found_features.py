"""Features that a search has left in the run folder, for every page that uses them."""

from __future__ import annotations

import streamlit as st

from stagelens.analyses.spurious.feature_table import Features, load_features, noise_key
from stagelens.effects.results import ResultFacts

from . import drawn, loaders, scored
from .loaders import Source


def facts_of(at: Source, set_name: str, estimate: str, score: str | None = None) -> ResultFacts:
    """What the table says of itself whose effects are searched: of an estimate, or of a score.

    Args:
        at: The run folder.
        set_name: The set.
        estimate: That is chosen; of a score that has none by it, the best stands in.
        score: As pages call it; None for what was measured.
    """
    if score is None:
        return loaders.stored_estimates(at, set_name)[estimate]
    stored = scored.scores(at, set_name)[score]
    return stored.facts.get(estimate) or stored.any


@st.cache_resource(max_entries=8, show_spinner=False)
def found_features(
    at: Source, set_name: str, estimate: str, score: str | None = None
) -> Features | None:
    """What was found for these effects, see :func:`facts_of`; None before a search."""
    facts = facts_of(at, set_name, estimate, score)
    # Features beyond noise depend on how much of it is known: later orders make a new search.
    known = noise_key(loaders.orders(at, set_name), drawn.draws(at, set_name))
    return load_features(loaders.run(at), set_name, facts.estimator, facts.settings, known)
