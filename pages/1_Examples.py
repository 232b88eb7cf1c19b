"""Examples: page through a set, or a stage's training data, by effect; try one of your own."""

from __future__ import annotations

import streamlit as st

from stagelens.ui.examples import browser, comparing, own_example, training_browser
from stagelens.ui.opening.workspace import nothing_measured, open_workspace
from stagelens.ui.pieces import components, state

workspace = open_workspace("Examples", scores=True)
if workspace is not None:
    with components.errors_told():
        names = [state.OF_THE_SET, state.OF_A_STAGE, state.OWN, state.COMPARED]
        of_the_set, of_a_stage, own, compared = st.tabs(names, key=state.VIEW, bind="query-params")
        # Streamlit runs the bodies of closed tabs too, unless they ask whether they are open.
        if of_the_set.open:
            with of_the_set:
                effects = workspace.effects
                if effects is None:
                    nothing_measured(workspace)
                else:
                    browser.of_the_set(workspace, effects)
        if of_a_stage.open:
            with of_a_stage:
                if workspace.effects is None:
                    nothing_measured(workspace)
                else:
                    training_browser.training_data_of_a_stage(workspace, workspace.effects)
        if own.open:
            with own:
                own_example.own_example_tab(workspace)
        if compared.open:
            with compared:
                if workspace.effects is None:
                    nothing_measured(workspace)
                else:
                    comparing.comparison_tab(workspace, workspace.effects)
