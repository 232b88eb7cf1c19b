"""Cached reading of draws of a recipe. Nothing here imports torch."""

from __future__ import annotations

import streamlit as st

from stagelens.effects.draws import DrawnEffects
from stagelens.trust import draws as stored
from stagelens.trust.draws import DrawFacts
from stagelens.trust.estimates import Effects

from .sources import MEASURED, Source, run


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=MEASURED)
def every(at: Source, set_name: str) -> list[tuple[DrawFacts, DrawnEffects]]:
    """``draws.stored_draws``: what leaves least as recorded first."""
    return stored.stored_draws(run(at), set_name)


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=MEASURED)
def draws(at: Source, set_name: str) -> DrawnEffects | None:
    """``draws.governing``: effects in several draws of the recipe; None if there are none."""
    return stored.governing(run(at), set_name)


@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs=MEASURED)
def recipe(at: Source, set_name: str) -> Effects | None:
    """``draws.recipe_effects``: means over draws as effects; None if there are none."""
    return stored.recipe_effects(run(at), set_name)
