"""Cached reading of scores of answers. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from stagelens.effects.results import load_result
from stagelens.effects.stored_scores import StoredScore, stored_scores

from .sources import MEASURED, Source, run


@st.cache_resource(max_entries=32, show_spinner=False, hash_funcs=MEASURED)
def scores(at: Source, set_name: str) -> Mapping[str, StoredScore]:
    """``stored_scores.stored_scores``: the scores of answers to a set's prompts, by name."""
    return stored_scores(run(at), set_name)


def estimates(at: Source, set_name: str) -> list[str]:
    """Estimates that there are scores by."""
    found = (estimate for one in scores(at, set_name).values() for estimate in one.facts)
    return list(dict.fromkeys(found))


def at_boundaries(
    at: Source, set_name: str, name: str, boundary: str | None = None
) -> pd.DataFrame | None:
    """Scores and first answers after every boundary, or one of them; None where not stored.

    Args:
        at: The run folder.
        set_name: The set.
        name: Of the score, as pages call it.
        boundary: The only one that is asked for; None for all.
    """
    found = _at_boundaries(at, set_name, name)
    if found is None or boundary is None:
        return found
    return found[found["boundary"] == boundary]


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=MEASURED)
def _at_boundaries(at: Source, set_name: str, name: str) -> pd.DataFrame | None:
    facts = scores(at, set_name)[name].boundaries
    if facts is None:
        return None
    found = load_result(run(at), set_name, "score-boundaries", "", facts.settings)
    return None if found is None else found.table.assign(behaviour=name)
