"""Spurious features: gaps between groups, and what a stage made the model rely on."""

from __future__ import annotations

import streamlit as st

from stagelens.ui.examples import network, saliency
from stagelens.ui.opening.workspace import nothing_measured, open_workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.spurious import features, groups, of_scores

workspace = open_workspace("Spurious features", scores=True)
if workspace is not None:
    with components.errors_told():
        effects = workspace.effects
        if effects is None:
            nothing_measured(workspace)
        else:
            gaps, found, places, blocks = st.tabs(
                [state.GAPS, state.FOUND, state.WHERE, state.NETWORK_PART],
                key=state.PART,
                bind="query-params",
            )
            if gaps.open:
                with gaps:
                    groups.group_gaps_tab(workspace, of_scores.measured(workspace, effects))
            # The body of a closed tab must not run: its first visit starts a search.
            if found.open:
                with found:
                    features.found_features_tab(workspace, effects)
            if places.open:
                with places:
                    if not of_scores.none_here(workspace, "Maps show what pixels or tokens carry"):
                        saliency.gallery(workspace, effects)
            if blocks.open:
                with blocks:
                    if not of_scores.none_here(workspace, "The map shows what blocks carry"):
                        network.network_of_set(workspace, effects)
