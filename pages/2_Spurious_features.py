"""Spurious features: gaps between groups, and what a stage made the model lean on."""

from __future__ import annotations

import streamlit as st

from stagelens.ui import groups
from stagelens.ui.workspace import nothing_measured, open_workspace

workspace = open_workspace("Spurious features")
if workspace is not None:
    st.title("Spurious features", anchor=False)
    effects = workspace.effects
    if effects is None:
        nothing_measured(workspace)
    else:
        groups.panel(workspace, effects)
