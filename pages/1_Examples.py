"""Examples: filter, sort and page through a set by stage effect; open one, or ask an own one."""

from __future__ import annotations

import streamlit as st

from stagelens.ui import comparing, components, examples, own, state
from stagelens.ui.workspace import nothing_measured, open_workspace

workspace = open_workspace("Examples")
if workspace is not None:
    with components.errors_told():
        examples.heading(workspace)
        of_the_set, own_example, compared = st.tabs(
            [state.OF_THE_SET, state.OWN, state.COMPARED], key=state.VIEW, bind="query-params"
        )
        if of_the_set.open:
            with of_the_set:
                effects = workspace.effects
                if effects is None:
                    nothing_measured(workspace)
                else:
                    examples.of_the_set(workspace, effects)
        if own_example.open:
            with own_example:
                own.panel(workspace)
        if compared.open:
            with compared:
                if workspace.effects is None:
                    nothing_measured(workspace)
                else:
                    comparing.panel(workspace, workspace.effects)
