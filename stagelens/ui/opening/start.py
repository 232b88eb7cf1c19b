"""The start page: the demo, a run folder, or checkpoints to make a run of."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st

from stagelens.contracts import StageLensError
from stagelens.ui.pieces import components, state
from stagelens.ui.server import jobs, settings

from . import assembling

DEMO_COMMAND = ("demo", "digits")


def _demo() -> tuple[str, ...]:
    """What finds the job that builds the demo."""
    return jobs.into(DEMO_COMMAND, settings.demo_folder())


def current_run() -> Path | None:
    """The open run's folder, checked; None where none is open, after showing how to open one."""
    reference = state.reference()
    demo_job = jobs.find(_demo())
    if reference == settings.DEMO and not settings.demo_built():
        waiting = demo_job is not None and demo_job.running
        # While it is being built, the card of the demo says how far it is.
        note = None if waiting else "The digits demo has not been built on this server yet."
        welcome(note)
        return None
    if reference is None:
        welcome()
        return None
    try:
        return settings.resolve(reference)
    except StageLensError as error:
        components.error_state(str(error))
        welcome()
        return None


def welcome(note: str | None = None) -> None:
    """The first visit: what this is, the demo, and ways to open or make a run."""
    st.title("Which stage is to credit, and which to blame?")
    st.markdown(
        "A model is the product of several training stages. StageLens shows, for one example, a "
        "group or a whole evaluation set, **what the model would do had a stage not happened**, "
        "and says how far each number can be trusted."
    )
    if note:
        st.info(components.plain(note), icon=":material/info:")
    left, right = st.columns(2, gap="medium")
    with left, st.container(border=True, height="stretch"):
        _demo_card()
    with right, st.container(border=True, height="stretch"):
        _folder_card()
    if not settings.read_only():
        with st.container(border=True):
            assembling.card()


def _demo_card() -> None:
    st.header("See it on real digits", anchor=False)
    st.markdown(
        "A small network, trained in four stages on the real handwritten digits that scikit-learn "
        "ships. Two faults are **planted**, on purpose: a stamp in the corner of the images of one "
        "class, and wrong labels. Watch StageLens find the stages that learned them."
    )
    if not settings.demo_built() and components.only_shown():
        return
    if components.job_state(_demo(), "Try again"):
        st.caption("The demo is being trained and measured. You can leave this page open.")
        return
    built = settings.demo_built()
    if st.button(
        "Open the digits demo",
        type="primary",
        icon=":material/play_arrow:",
        key="open-demo",
        help=None if built else "Trains the demo on this machine first; it takes under a minute.",
    ):
        with components.errors_told():
            if not settings.demo_built():
                jobs.start(DEMO_COMMAND, "Building the digits demo", out=settings.demo_folder())
            # Opened before it is built: this page shows the progress until it is.
            state.open_reference(settings.DEMO)
            st.rerun()
    if not built:
        st.caption("Built on first use, in under a minute. Nothing is downloaded.")


def _folder_card() -> None:
    st.header("Open a run folder", anchor=False)
    st.markdown("A run that you recorded with `stagelens.Recorder`.")
    known = settings.known_runs()
    if known:
        picked = st.selectbox(
            "Runs on this server", known, index=None, placeholder="Choose a run", key="known-run"
        )
        if picked:
            _open(picked)
    with st.form("open-run", border=False):
        typed = st.text_input(
            "Path of a run folder",
            max_chars=1024,
            placeholder="runs/my-run",
            help="Absolute, or relative to one of the folders below.",
        )
        sent = st.form_submit_button("Open", icon=":material/folder_open:")
    roots = "\n".join(str(root) for root in settings.roots())
    st.caption("Runs may be opened below these folders (set with STAGELENS_ROOTS):")
    st.code(roots, language=None, wrap_lines=True)
    if sent:
        _open(typed)


def _open(text: str) -> None:
    try:
        found = settings.resolve(os.fspath(text))
    except StageLensError as error:
        components.error_state(str(error))
        return
    # Not as it was typed: the short name works on any server with the same roots.
    state.open_reference(settings.reference_for(found))
    st.rerun()
