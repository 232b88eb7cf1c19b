"""The Remove a stage page: what removal is, how much of each stage goes, and what follows."""

from __future__ import annotations

import html
from dataclasses import replace

import streamlit as st

from stagelens import charts
from stagelens.analyses.removal.spec import Edit
from stagelens.charts.style import short
from stagelens.contracts import StageLensError
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.pieces.trust_marks import trust_badge
from stagelens.ui.reading.loaders import Effects
from stagelens.wording.folding import listed
from stagelens.wording.numbers import count_text
from stagelens.wording.sentences import slice_parts

from . import before_and_after, edited_models, targeting
from .edited_models import RemovalView, Wanted

BY_HAND, TARGETED = "By hand", "Targeted"
_STEP = 5
_CHOSEN = state.session_key("removal-chosen")
"""The stage that the preset took out last."""


def heading(workspace: Workspace) -> None:
    """What removal is, in plain words."""
    components.text_block(
        "Removal is an edit of the weights: the final ones minus a strength times what a stage did "
        "to them, as the chosen estimator says."
    )


def nothing_computable() -> None:
    """The message where the run's models cannot be built on this machine."""
    st.info(
        "Taking a stage out needs the model itself, which cannot be built here.",
        icon=":material/block:",
    )


@st.fragment
@components.errors_told()
def removal_controls(workspace: Workspace, effects: Effects) -> None:
    """Controls above, figures below; moving a slider reruns nothing else."""
    try:
        view = RemovalView.of(workspace, effects)
        if not view.removable:
            st.info(
                "This estimator refused every stage; choose another one above.",
                icon=":material/block:",
            )
            return
        with st.container(border=True):
            if _mode(view) == TARGETED:
                wanted = targeting.controls(view)
            else:
                edit = view.edit(_sliders(view))
                wanted = Wanted(edit, view.arguments(edit), by_hand=True)
        view = replace(view, held_back=wanted is None or _was_chosen(wanted))
        _parts(view)
        if wanted is None:
            return
        _what_it_is(view, wanted.edit)
        if not wanted.edit.strengths:
            st.info(
                "Nothing is taken out yet: the figures below are those of the final model. Raise "
                "a strength, or let the page choose."
                if workspace.labelled
                else "Nothing is taken out yet. Raise a strength to see which answers change.",
                icon=":material/tune:",
            )
        before_and_after.figures(view, wanted)
    except StageLensError as error:
        components.error_state(str(error))


def _mode(view: RemovalView) -> str:
    """How strengths are chosen: by hand alone where no label says what serves a group better."""
    if not view.workspace.labelled:
        return BY_HAND
    mode = st.segmented_control(
        "Strengths",
        (BY_HAND, TARGETED),
        default=BY_HAND,
        key="remove-mode",
        bind="query-params",
        required=True,
        help="By hand: one strength for each stage. Targeted: the smallest edit, with a "
        "strength of its own for every layer, that closes a gap between two groups.",
    )
    return str(mode)


# --------------------------------------------------------------------------------------- by hand


def _sliders(view: RemovalView) -> dict[str, float]:
    """One strength per stage, 0 to 1."""
    stages = view.workspace.stages
    _preset(view)
    strengths = {}
    with st.grid(min(len(stages), 4), min_column_width=150, gap="medium"):
        for number, stage in enumerate(stages):
            with st.container(gap="small"):
                _name(view, number, stage)
                percent = st.slider(
                    f"Strength of {stage}",
                    min_value=0,
                    max_value=100,
                    step=_STEP,
                    format="%d %%",
                    # By number: the key becomes part of the address, and names may hold anything.
                    key=f"remove-{number}",
                    bind="query-params",
                    disabled=stage not in view.removable,
                    label_visibility="collapsed",
                    help="How much of what the stage did to the weights is taken out; 0 leaves "
                    "the final model.",
                )
            if stage in view.removable:
                strengths[stage] = percent / 100
    if view.elsewhere:
        st.caption(
            components.plain(
                f"{view.effects.estimator} does not hold {listed(view.elsewhere)} yet: choose "
                "another estimator above, or have it replayed."
            )
        )
    return strengths


def _name(view: RemovalView, number: int, stage: str) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.html(
            "<div style='display:flex;align-items:center;gap:.45em;font-weight:600;"
            "overflow-wrap:anywhere'><span style='flex:none;width:.8em;height:.8em;"
            f"border-radius:.2em;background:{charts.stage_color(number)}'></span>"
            f"{html.escape(stage)}</div>",
            width="content",
        )
        trust = view.effects.trust.get(stage)
        if trust is not None:
            # An edit changes every behaviour, so the one that agrees least with replay decides.
            trust_badge(trust, None)


def _preset(view: RemovalView) -> None:
    """A button that takes out the stage to blame most for a group: the bar's, or the worst one."""
    stages = view.workspace.stages
    group = edited_models.asked_group(view)
    judged = group is not None and edited_models.judged(view, group)
    parts = slice_parts(view.workspace.noun, view.by, group)
    named = "".join(short(part.text, 40) for part in parts)

    # Called by the buttons: a slider's value can be set only before it is drawn again.
    def set_all(worst: str | None) -> None:
        for number, stage in enumerate(stages):
            st.session_state[f"remove-{number}"] = 100 if stage == worst else 0

    def remove_worst() -> None:
        assert group is not None, "offered for a group only"
        worst = edited_models.worst_stage(view, group)
        if worst is None:
            st.toast(
                f"No stage is to blame for {components.plain(str(group))}: without any one of them "
                "the model would answer it less well.",
                icon=":material/info:",
            )
        set_all(worst)
        st.session_state[_CHOSEN] = worst

    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if judged:
            st.button(
                components.plain(f"Remove the worst stage for {named}"),
                icon=":material/auto_fix_high:",
                key="remove-worst",
                on_click=remove_worst,
                type="primary",
                help="The one without which the group would be answered best.",
            )
        st.button("Reset", icon=":material/restart_alt:", on_click=set_all, args=(None,))
    chosen = view.workspace.bar.group is not None
    if group is not None and chosen and not judged and view.workspace.labelled:
        components.text_block(
            f"No labelled example of {group} is in the validation part, so nothing says which "
            "stage is worst for it.",
            muted=True,
        )
    if judged and not chosen:
        components.text_block(
            f"The final model answers {named} worst; choose another group above.", muted=True
        )


def _was_chosen(wanted: Wanted) -> bool:
    """Whether the page chose the edit on the validation part, by a preset or a search."""
    chosen = st.session_state.get(_CHOSEN)
    return not wanted.by_hand or (chosen is not None and wanted.edit.strengths == {chosen: 1.0})


def _what_it_is(view: RemovalView, edit: Edit) -> None:
    """What the edited model is, which depends on the estimator and on the strengths."""
    if not edit.strengths:
        return
    said = edited_models.what_it_is(view, edit)
    if edited_models.is_counterfactual(view, edit):
        components.text_block(f"This is {said}.")
        return
    replayable = not any(stage.no_replay for stage in view.workspace.run.stages[1:])
    check = "check the edit by replay, and " if replayable else ""
    components.text_block(
        f"This is {said}. The method behind it claims guidance for interventions, not a cure: "
        f"{check}measure it on what the model is for."
    )


def _parts(view: RemovalView) -> None:
    """Which examples the figures are of, and which they are not."""
    name, rows, noun = view.workspace.examples.name, view.rows, view.workspace.noun
    shown, kept = int(rows.sum()), int((~rows).sum())
    if not view.held_back:
        said = f"Figures are of all {count_text(shown, noun)} of set {name}"
        if view.workspace.labelled:
            said += (
                ": nothing was chosen for you. Presets and targeted edits are chosen on one part "
                "of it; figures are of the other part then"
            )
        components.text_block(f"{said}.", muted=True)
        return
    components.text_block(
        f"Set {name} is split in two by its ids, within every group and label. Presets and "
        f"targeted edits are chosen on the validation part ({count_text(kept, noun)}); all "
        f"figures below are those of the report part ({count_text(shown, noun)}), on which "
        "nothing is chosen for you.",
        muted=True,
    )
