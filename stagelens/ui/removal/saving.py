"""Comparing an edit with the real counterfactual, and saving it."""

from __future__ import annotations

import re
from pathlib import Path

import streamlit as st

from stagelens import charts
from stagelens.analyses.removal.comparison import AFTER, BEFORE
from stagelens.analyses.removal.spec import Edit
from stagelens.charts.removal import group_accuracy
from stagelens.contracts import StageLensError
from stagelens.estimators.stage_trust import REPLAY
from stagelens.ui.pieces import components, drawing, job_progress, state
from stagelens.ui.server import jobs, settings

from . import edited_models
from .edited_models import RemovalView, Wanted

_SAVED = state.session_key("removal-saved")
_TOLD = state.session_key("removal-not-saved")
# No separator and no leading dot: the name stays below the home, and is not hidden.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _replayed(stage: str) -> Edit:
    return Edit(estimator=REPLAY, strengths={stage: 1.0})


def check(view: RemovalView, wanted: Wanted) -> None:
    """Compare the edit with the model that training without the stage would really have given."""
    st.header("Check by replay", anchor=False)
    edit = wanted.edit
    stages = list(edit.strengths)
    # Comparing a replay with itself would prove nothing.
    if any(edit == _replayed(stage) for stage in stages):
        components.text_block(
            "This edit is the replay itself: the later stages were run again without "
            f"{stages[0]}, step by step, and the figures above are those of the real "
            "counterfactual."
        )
        return
    if edited_models.is_counterfactual(view, edit):
        reason = view.effects.trust[stages[0]].reason
        components.text_block(f"There is nothing to check, because it is exact. {reason}")
        return
    missing = [stage for stage in stages if edited_models.find(view, _replayed(stage)) is None]
    if not missing:
        _settled(view, edit)
        return
    later = view.workspace.run.stages[min(map(view.workspace.stages.index, missing)) + 1 :]
    if why := next((stage.no_replay for stage in later if stage.no_replay), ""):
        components.text_block(f"Refused: {why}.")
        return
    components.text_block(
        "Replay runs the recorded steps of the later stages again without the stage. That is the "
        "real counterfactual; the edit above only estimates it."
    )
    if components.only_shown():
        return
    arguments = view.arguments(_replayed(missing[0]))
    if job_progress.job_state(arguments, "Try again"):
        return
    st.button(
        "Check by replay",
        icon=":material/verified:",
        key="remove-check",
        on_click=job_progress.begin,
        args=(arguments, f"Replay without {missing[0]}"),
    )


def _settled(view: RemovalView, edit: Edit) -> None:
    """Edit and replay, side by side."""
    before, after = edited_models.find(view, view.edit({})), edited_models.find(view, edit)
    assert before is not None and after is not None, "they were measured above"
    for stage in edit.strengths:
        replayed = edited_models.find(view, _replayed(stage))
        assert replayed is not None, "nothing is missing"
        name = f"replay without {stage}"
        compared = edited_models.compare(view, {BEFORE: before, AFTER: after, name: replayed})
        same = (
            compared.answers[AFTER]["prediction"] == compared.answers[name]["prediction"]
        ).mean()
        partly = edit.strengths[stage] < 1 or len(edit.strengths) > 1 or bool(edit.layers)
        components.text_block(
            f"Settled: the edited model and the model that was really trained without {stage} give "
            f"the same answer on {100 * same:.1f} % of the examples."
            + (
                " The edit takes out something other than this stage as a whole, so the two need "
                "not agree."
                if partly
                else ""
            )
        )
        rows = compared.rows(view.by).dropna(subset="accuracy")
        if len(rows):
            chart = drawing.chart(group_accuracy, rows, charts.EITHER)
            components.show(chart, f"remove-settled-{stage}", edited_models.about(view, edit))


def save(view: RemovalView, wanted: Wanted) -> None:
    """Write the edited model below the home, under a name that nothing has yet."""
    st.header("Save the edited model", anchor=False)
    folder = settings.home() / "edited"
    components.text_block(
        "As an ordinary checkpoint: weights as safetensors, the configuration, the tokenizer where "
        "there is one, and a model card that says how it was made, how far that can be trusted, "
        "and what was measured before and after."
    )
    if components.only_shown():
        return
    stages = "-".join(wanted.edit.strengths)
    proposed = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{view.workspace.run.name}-without-{stages}")[:64]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        key = f"save-as-{proposed}"  # another edit is proposed another name
        st.text_input("Name of the folder", proposed, max_chars=64, width=360, key=key)
        st.button(
            "Save",
            icon=":material/save:",
            type="primary",
            key="remove-save",
            on_click=_save,
            args=(wanted.arguments, key),
        )
    if told := st.session_state.pop(_TOLD, None):
        components.error_state(told)
    saved: tuple[tuple[str, ...], Path] | None = st.session_state.get(_SAVED)
    # After a moved slider, the last message would be about another edit.
    if saved is None or saved[0] != wanted.arguments:
        st.caption(f"It is written below {components.plain(str(folder))}.")
    elif not job_progress.job_state(making := jobs.into(*saved), "Dismiss"):
        job = jobs.find(making)
        if job is not None and job.status().state == "done":
            st.success(components.plain(f"Saved in {saved[1]}"), icon=":material/check_circle:")


def _save(arguments: tuple[str, ...], key: str) -> None:
    """Start saving under the name that was typed, or keep why not for the page to tell."""
    name = st.session_state[key]
    out = settings.home() / "edited" / name
    try:
        if not _NAME.fullmatch(name):
            raise StageLensError(
                f"{name!r} is not a usable name; use letters, digits, '.', '_' and '-'"
            )
        if out.exists():  # refused now, and not only by the rename at the end of the work
            raise StageLensError(
                f"{out} already exists, and nothing is ever overwritten; choose another name"
            )
        jobs.start(arguments, "Saving the edited model", out=out)
    except StageLensError as error:
        st.session_state[_TOLD] = str(error)
    else:
        st.session_state[_SAVED] = (arguments, out)
