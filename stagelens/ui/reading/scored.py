"""Cached reading of scores of answers. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from stagelens.effects.agreement import Agreement, agreements
from stagelens.effects.results import load_result
from stagelens.effects.score_words import given_of, what_is_known
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


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=MEASURED)
def known(at: Source, set_name: str, name: str) -> list[str]:
    """``score_words.what_is_known`` of a score."""
    score = scores(at, set_name)[name]
    return what_is_known(score, given_of(run(at), set_name, score))


@st.cache_resource(max_entries=8, show_spinner="Comparing scorers", hash_funcs=MEASURED)
def alike(at: Source, set_name: str) -> list[Agreement]:
    """``agreement.agreements``: how far every two scorers of a set agree."""
    return agreements(run(at), set_name)


def samples(at: Source, set_name: str, name: str) -> pd.DataFrame:
    """How much answers of a prompt differ, where there are several.

    Returns:
        Root mean square over prompts of the standard deviation over a prompt's answers: one row
        per stage, ``final`` and ``without``; no rows where each prompt has one answer.
    """
    score = scores(at, set_name)[name]
    facts = score.facts[score.best]
    found = load_result(run(at), set_name, "scores", facts.estimator, facts.settings)
    if found is None or found.table["sd"].isna().all():
        return pd.DataFrame(columns=["final", "without"])
    own = found.table[["sd", "sd_without"]].set_axis(["final", "without"], axis=1)
    return (own**2).groupby(found.table["stage"]).mean() ** 0.5
