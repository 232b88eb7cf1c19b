"""Spurious features: gaps between groups, and what a stage made the model lean on."""

from __future__ import annotations

import streamlit as st

from stagelens.ui import components, features, groups, state, where
from stagelens.ui.workspace import nothing_measured, open_workspace

workspace = open_workspace("Spurious features")
if workspace is not None:
    with components.errors_told():
        st.title("Spurious features", anchor=False)
        effects = workspace.effects
        if effects is None:
            nothing_measured(workspace)
        else:
            gaps, found, places = st.tabs(
                [state.GAPS, state.FOUND, state.WHERE], key=state.PART, bind="query-params"
            )
            if gaps.open:
                with gaps:
                    groups.panel(workspace, effects)
            if found.open:
                with found:
                    features.panel(workspace, effects)
            if places.open:
                with places:
                    where.gallery(workspace, effects)
