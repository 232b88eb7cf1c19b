"""Cached reading of draws of a recipe. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from stagelens.analyses.shares.drawn_shares import DrawnShares, drawn_shares_of
from stagelens.effects.draws import DrawnEffects
from stagelens.trust import drawn_coalitions
from stagelens.trust import draws as stored
from stagelens.trust.drawn_coalitions import FOLDER
from stagelens.trust.draws import DrawFacts
from stagelens.trust.stage_effects import Effects

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


def shares(at: Source, set_name: str, behaviour: str) -> DrawnShares | None:
    """Shares of the recipe; None where coalitions were not drawn, or too few give an interval."""
    folders = sorted((Path(at.path) / FOLDER).glob("[0-9a-f]*"))
    stamp = "-".join(f"{each.name[:8]}{each.stat().st_mtime_ns:x}" for each in folders)
    return _shares(at, set_name, behaviour, stamp)


# Each holds as many numbers as there are models, draws and examples.
@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs=MEASURED)
def _shares(at: Source, set_name: str, behaviour: str, stored: str) -> DrawnShares | None:
    found = drawn_coalitions.of_recipe(run(at), set_name)
    return None if found is None else drawn_shares_of(found, behaviour)
