"""The targeted mode: which gap to close, the search as a job, and its result."""

from __future__ import annotations

import streamlit as st

from stagelens import charts
from stagelens.analyses.removal import targets
from stagelens.analyses.removal.targets import Found, Target
from stagelens.charts.removal import layer_strengths
from stagelens.ui.pieces import components, drawing, job_progress

from . import edited_models
from .edited_models import RemovalView, Wanted

_OTHERS = "All others"


def controls(view: RemovalView) -> Wanted | None:
    """Which gap, and at what price; the edit, once one has been found."""
    if view.by is None:
        components.text_block(
            "A targeted edit closes a gap between groups, and this set has no column that could "
            "form groups."
        )
        return None
    target = _target(view)
    if target is None:
        return None
    found = targets.load_found(view.workspace.run, view.workspace.examples, target)
    if found is None:
        _start(view, target)
        return None
    _show(view, found)
    return Wanted(found.edit, arguments(view, target), by_hand=False)


def _target(view: RemovalView) -> Target | None:
    assert view.by is not None
    groups = list(view.workspace.groups)
    with st.grid(4, min_column_width=180, gap="small"):
        start = edited_models.asked_group(view)
        group = st.selectbox(
            "Close the gap of",
            groups,
            index=groups.index(start) if start in groups else 0,
            key=f"remove-gap-of-{start}",  # another group in the bar is another one here
            help="The group that the model serves worse; at first the one chosen above.",
        )
        control = st.selectbox(
            "to",
            [_OTHERS, *(name for name in groups if name != group)],
            key="remove-control",
            help="The control group, which should not be served worse afterwards. Its accuracy is "
            "compared at the group's own mix of labels.",
        )
        points = st.number_input(
            "It may lose, in points of accuracy",
            0.0,
            100.0,
            100 * targets.TOLERANCE,
            0.5,
            format="%.1f",
            key="remove-tolerance",
            help="Of the control group: an edit that costs it more is not proposed.",
        )
        worst = edited_models.worst_stage(view, group)
        stages = st.multiselect(
            "by taking out parts of",
            view.removable,
            default=[worst] if worst is not None else [],
            key="remove-stages",
            placeholder="Choose stages",
            help="Every layer of every stage that is chosen gets a strength of its own.",
        )
    if not stages:
        st.caption("Choose the stages that may be taken out.")
        return None
    return Target(
        estimator=view.estimator,
        settings=view.settings,
        # Whichever order they were chosen in, the same question must find the same stored answer.
        stages=[stage for stage in view.removable if stage in stages],
        by=view.by,
        group=group,
        control=None if control == _OTHERS else control,
        # Equal to what the command line reads back from :g, or its result would not be found.
        tolerance=round(points / 100, 6),
    )


def arguments(view: RemovalView, target: Target) -> tuple[str, ...]:
    """The command line of the search."""
    # Only names the stages; the search chooses a strength for each of their layers.
    full = view.edit(dict.fromkeys(target.stages, 1.0))
    control = () if target.control is None else ("--control", target.control)
    wanted = ("--close-gap", target.group, *control, "--tolerance", f"{target.tolerance:g}")
    return (*view.arguments(full), *wanted)


def _start(view: RemovalView, target: Target) -> None:
    chosen = arguments(view, target)
    if components.only_shown():
        return
    if job_progress.job_state(chosen, "Try again"):
        st.caption("The search measures edits on the validation part only.")
        return
    st.button(
        "Find the smallest edit",
        type="primary",
        icon=":material/target:",
        on_click=job_progress.begin,
        args=(chosen, "The search"),
    )


def _show(view: RemovalView, found: Found) -> None:
    components.text_block(found.sentence())
    if not found.edit.strengths:
        return
    strengths = {
        stage: {layer: found.edit.strength(stage, layer) for layer in layers}
        for stage, layers in found.edit.layers.items()
    }
    colors = [charts.stage_color(view.workspace.stages.index(stage)) for stage in strengths]
    with st.expander("Strength by layer"):
        chart = drawing.chart(layer_strengths, strengths, colors, charts.EITHER)
        components.show(chart, "remove-layers", edited_models.about(view, found.edit, ""))
