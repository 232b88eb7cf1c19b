"""On the Overview: how shares change where one stage is taken as two halves."""

from __future__ import annotations

import streamlit as st

from stagelens.analyses.shares.halves import (
    changes,
    half_means,
    halves_cost,
    halves_sentence,
)
from stagelens.analyses.shares.orders import MOST_PARTIES
from stagelens.analyses.shares.share_table import Shares
from stagelens.contracts import StageLensError
from stagelens.estimators.halves import halves_of
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.reading import shares as reading_shares
from stagelens.wording.numbers import count_text
from stagelens.wording.sentences import slice_parts

from . import share_jobs


def section(workspace: Workspace, found: Shares, column: str | None, group: str | None) -> None:
    """A choice of stage, and what its share and those of others would be.

    Args:
        workspace: The page's.
        found: The shares that are shown, every stage by itself.
        column: Of the group; None for all examples.
        group: Which.
    """
    if not found.complete or found.m > MOST_PARTIES or found.m < 2:
        return
    picked = st.selectbox(
        "Take as two halves",
        workspace.stages,
        index=None,
        key="halves",
        bind="query-params",
        placeholder="No stage",
        help="By how much shares change with how training is cut into stages: the halves of one "
        "stage count as two parties.",
    )
    if picked is None:
        return
    at, name, behaviour = workspace.at, workspace.examples.name, found.behaviour
    try:
        cut = halves_of(workspace.run, picked)
    except StageLensError as error:
        components.error_state(str(error))
        return
    apart = reading_shares.halved(at, name, behaviour.name, cut)
    if apart is not None:
        chosen = reading_shares.chosen(at, name, column, group)
        about = slice_parts(workspace.noun, column, group)
        changed = changes(apart, cut, chosen)
        said = halves_sentence(changed, half_means(apart, cut, chosen), cut, behaviour, about)
        components.sentences([said])
        return
    shown = reading_shares.coalitions(at, name)
    if shown is None or not workspace.computable:
        components.text_block("The models with one half alone were not measured.", muted=True)
        return
    by, settings = shown.facts.estimator, shown.facts.settings
    price, between = halves_cost(workspace.run, workspace.examples, by, settings, cut)
    told = share_jobs.cost_text(workspace.run, price)
    if between:
        told = f"{told} And {count_text(between, 'step')} to find the state between the halves."
    asked = (*share_jobs.arguments(workspace, by, ()), "--halves", f"{cut.stage}:{cut.step}")
    if "budget" in settings:
        asked = (*asked, "--budget", str(settings["budget"]))
    share_jobs.start(asked, told, "halves")
