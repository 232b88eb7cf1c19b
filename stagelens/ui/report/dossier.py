"""The dossier on the Report page: what people say of the run, and the document as a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import streamlit as st

from stagelens.contracts import StageLensError
from stagelens.report.dossier.building import dossier
from stagelens.report.dossier.computing import stored
from stagelens.report.dossier.content import Dossier
from stagelens.report.dossier.writing import as_html, as_json, as_markdown
from stagelens.runs import described
from stagelens.runs.run import Run
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress, state
from stagelens.ui.server import settings
from stagelens.wording.numbers import count_text

_SAID = state.session_key("described")
_SHOWN = state.session_key("described-shown-")
_KEPT = state.session_key("described-kept")
_LONGEST = 4000
_KINDS: tuple[tuple[str, str, str, Callable[[Dossier], bytes]], ...] = (
    ("Dossier as HTML", "html", "text/html", as_html),
    ("as JSON", "json", "application/json", as_json),
    ("for a model card", "md", "text/markdown", as_markdown),
)


def section(workspace: Workspace) -> None:
    """A fold with the files, and a form for what cannot be seen in the run."""
    run = workspace.run
    with st.expander("Dossier: for those who must answer for this model", icon=":material/badge:"):
        components.text_block(
            "Per stage: who trained it, why, on what data, under which licences, the computing "
            "that it took and its share of the whole, what it is measured to have done, known "
            "limits, and how each number can be checked. What nobody said stands as not known."
        )
        try:
            said = described.answers(run)
        except StageLensError as error:
            components.error_state(str(error))
            return
        _files(run)
        _counting(workspace)
        _form(run, said)


def _files(run: Run) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        for label, ending, mime, write in _KINDS:
            st.download_button(
                label,
                data=_writer(run, write),
                file_name=f"{run.name}-dossier.{ending}",
                mime=mime,
                icon=":material/download:",
                on_click="ignore",
                key=f"dossier-{ending}",
            )


def _writer(run: Run, write: Callable[[Dossier], bytes]) -> Callable[[], bytes]:
    """Makes the file when somebody downloads it, of what is known then."""
    return lambda: write(dossier(run, stored(run)))


def _counting(workspace: Workspace) -> None:
    """Where what the stages took was not counted: a button that does."""
    if stored(workspace.run) is not None or not workspace.computable:
        return
    out = workspace.run.files.inside("results/dossier.html")
    asked = ("dossier", *workspace.at.words, "--force", "--out", str(out))
    if job_progress.job_state(asked, "Dismiss"):
        return
    components.text_block("The computing that each stage took has not been counted.", muted=True)
    if not components.only_shown():
        st.button(
            "Count it",
            key="count-operations",
            icon=":material/calculate:",
            help="Takes seconds.",
            on_click=job_progress.begin,
            args=(asked, "Counting operations"),
        )


def _form(run: Run, said: described.RunAnswers) -> None:
    left = sum(map(len, described.unanswered(run, said).values()))
    asked = len(described.OF_RUN) + len(described.OF_STAGE) * len(run.stages)
    components.text_block(
        f"{asked - left} of {count_text(asked, 'question')} answered.", muted=True
    )
    stages = [stage.name for stage in run.stages]
    about = st.selectbox(
        "What to describe",
        ["", *stages],
        format_func=lambda name: f"Stage {components.plain(name)}" if name else "The model",
        key="describe",
    )
    of_stage = bool(about)
    questions = described.OF_STAGE if of_stage else described.OF_RUN
    own = said.of(about) if of_stage else said
    with st.form(f"describe-{about}", border=False):
        # What was shown first: only what is changed is written, so that nobody's answers are lost.
        now = {field: _text(getattr(own, field)) for field in questions}
        before = st.session_state.setdefault(_SHOWN + about, now)
        kept = st.session_state.get(_KEPT, 0)
        given = {
            field: st.text_area(
                components.plain(question),
                before[field],
                key=f"said-{about}-{field}-{kept}",
                max_chars=_LONGEST,
                height=68,
                disabled=settings.read_only(),
            )
            for field, question in questions.items()
        }
        if st.form_submit_button("Keep answers", disabled=settings.read_only()):
            changed = {field: text for field, text in given.items() if text != before[field]}
            _keep(run, about, changed)
    if (problem := st.session_state.pop(_SAID, None)) is not None:
        components.error_state(problem)


def _text(value: str | float | None) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else value


def _keep(run: Run, stage: str, given: Mapping[str, str]) -> None:
    said: dict[str, str | float | None] = {
        name: text.strip() or None for name, text in given.items()
    }
    try:
        if (text := said.get("base_operations")) is not None:
            said["base_operations"] = described.operations_of(str(text))
        whole = {"stages": {stage: said}} if stage else said
        described.keep(run, described.from_given(run, whole, "The description"))
        # New keys: the fields show what is kept now, by whomever.
        st.session_state[_KEPT] = st.session_state.get(_KEPT, 0) + 1
        st.session_state.pop(_SHOWN + stage, None)
    except StageLensError as error:
        st.session_state[_SAID] = str(error)
    st.rerun()
