"""In this run or of this recipe: whether the effects shown would come again."""

from __future__ import annotations

import streamlit as st

from stagelens.effects.draws import FEWEST, NAMES
from stagelens.trust.draws import RECIPE
from stagelens.trust.stage_effects import Effects
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.reading import drawn, loaders

THIS_RUN = "in this run"
_KEY = "chance"
"""Of the control, and in links."""
NOT_KNOWN = "One run: whether it would happen again is not known."
SHARES_OF_THIS_RUN = (
    "These numbers are of this run alone: its draws leave out single stages, so shares and what is "
    "seen after stages are not known of the recipe."
)
_RECORDED_ONLY = (
    "Of this run: draws of the recipe keep no model between stages, and no answers without them."
)
_HELP = (
    "**in this run**: what each stage did to the model that was recorded. **of this recipe**: what "
    "it does on average when the recipe is trained again with its chance drawn anew (order of the "
    "batches, initial values, dropout), with and without the stage."
)


def choose(workspace: Workspace, effects: Effects) -> Effects:
    """The effects to show: of the run, or means over draws of its recipe where there are such."""
    found = drawn.draws(workspace.at, workspace.examples.name)
    if found is None or found.count < FEWEST:  # so few give no interval
        return effects
    asked = state.chosen(_KEY)
    state.prepare(_KEY, RECIPE if asked == RECIPE else THIS_RUN)
    chosen = st.segmented_control(
        "Effects",
        (THIS_RUN, RECIPE),
        key=_KEY,
        on_change=state.take,
        args=(_KEY,),
        required=True,
        help=_HELP,
    )
    if chosen != RECIPE:
        return effects
    components.text_block(
        f"Means over {found.words} {NAMES[found.kind]}; what was drawn is told on the Trust page.",
        muted=True,
    )
    return loaders.effects(workspace.at, workspace.examples.name, RECIPE) or effects


def of_this_run(effects: Effects) -> str:
    """What sections on boundaries say where the others are of the recipe; else nothing."""
    return _RECORDED_ONLY if effects.estimator == RECIPE else ""


def rule(workspace: Workspace, effects: Effects) -> str:
    """What effects have to exceed besides chance over examples, to be headlines."""
    found = drawn.draws(workspace.at, workspace.examples.name)
    if found is not None and found.count >= FEWEST:
        said = f", with an interval over {found.words} of the recipe that leaves out zero (95 %)"
        if effects.estimator == RECIPE:
            return (
                f"{said}. How the set was sampled is another thing: the table below has standard "
                "errors over examples."
            )
        return (
            f"{said}; from a replay where one is stored. Intervals over examples, which say how "
            "the set was sampled, are another thing: the table below has them."
        )
    if loaders.orders(workspace.at, workspace.examples.name) is not None:
        return (
            " and beyond training noise, given the earlier stages as recorded; from a replay where "
            f"one is stored. {NOT_KNOWN}"
        )
    return (
        "; from a replay where one is stored. Training noise is not known: measure it on the Trust "
        f"page. {NOT_KNOWN}"
    )
