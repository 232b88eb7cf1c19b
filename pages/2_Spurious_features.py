"""Spurious features: gaps between groups, and what a stage made the model rely on."""

from __future__ import annotations

import streamlit as st

from stagelens.ui.examples import network, saliency
from stagelens.ui.opening.workspace import nothing_measured, open_workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.spurious import features, groups

workspace = open_workspace("Spurious features")
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
                    groups.group_gaps_tab(workspace, effects)
            # The body of a closed tab must not run: its first visit starts a search.
            if found.open:
                with found:
                    features.found_features_tab(workspace, effects)
            if places.open:
                with places:
                    saliency.gallery(workspace, effects)
            if blocks.open:
                with blocks:
                    network.network_of_set(workspace, effects)
