"""Features that a search has left in the run folder, for every page that uses them."""

from __future__ import annotations

import streamlit as st

from stagelens.analyses.spurious.feature_table import Features, load_features, noise_key

from . import drawn, loaders
from .loaders import Source


@st.cache_resource(max_entries=8, show_spinner=False)
def found_features(at: Source, set_name: str, estimate: str) -> Features | None:
    """What was found for the effects of an estimate; None before a search."""
    facts = loaders.stored_estimates(at, set_name)[estimate]
    # Features beyond noise depend on how much of it is known: later orders make a new search.
    known = noise_key(loaders.orders(at, set_name), drawn.draws(at, set_name))
    return load_features(loaders.run(at), set_name, facts.estimator, facts.settings, known)
