"""Shares of the recipe on the Overview: over draws of every set of stages, or what these take."""

from __future__ import annotations

import streamlit as st

from stagelens.analyses.shares import sentences
from stagelens.analyses.shares.pairs import pairs_of
from stagelens.analyses.shares.share_table import SEEN_AFTER
from stagelens.contracts import Behaviour
from stagelens.effects.draws import FEWEST
from stagelens.estimators.coalition_plan import MOST
from stagelens.estimators.durations import paces
from stagelens.trust.drawn_coalitions import predicted_cost
from stagelens.trust.draws import cost_text
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.pieces.trust_marks import trust_legend
from stagelens.ui.reading import drawn
from stagelens.ui.reading import shares as reading_shares
from stagelens.ui.server import jobs

from . import share_jobs, shares


def of_recipe(
    workspace: Workspace, behaviour: Behaviour, by: str | None, group: str | None, reading: str
) -> bool:
    """The waterfall of shares, or of what is seen after stages, with intervals over draws.

    Returns:
        Whether they are known.
    """
    at, name = workspace.at, workspace.examples.name
    found = drawn.shares(at, name, behaviour.name)
    if found is None:
        return False
    column = None if group is None else by
    if reading == SEEN_AFTER:
        shares.differences(workspace, found, column, group, observed=False)
        return True
    pairs = pairs_of(found, reading_shares.chosen(at, name, column, group))
    shares.waterfall(workspace, found, pairs, column, group)
    for text in sentences.cautions(found):
        components.text_block(text, muted=True)
    trust_legend()
    with st.expander("The same numbers as a table"):
        shares.table(workspace, found, column, group)
    return True


def offer(workspace: Workspace) -> None:
    """Where coalitions were not drawn: what they take, and the button that begins."""
    effects = drawn.draws(workspace.at, workspace.examples.name)
    if not workspace.computable or effects is None or effects.kind != "recipe":
        return
    if len(workspace.run.stages) > MOST:
        return
    number = max(effects.count, FEWEST)
    words = ("draws", *workspace.at.words, "--set", workspace.examples.name)
    asked = (*words, "--number", str(number), "--shares")
    passes, seconds = predicted_cost(workspace.run, number)
    if seconds is not None:
        seconds = paces(workspace.run).of_a_job(seconds, jobs.running())
    told = (
        f"Shares of the recipe: {number} draws of every set of stages, "
        f"{cost_text(passes, seconds)}."
    )
    with st.expander("What shares of the recipe take"):
        share_jobs.start(asked, told, "shares of the recipe")
