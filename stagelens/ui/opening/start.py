"""The start page: runs that are here, the demos, a run folder, or checkpoints to make a run of."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from stagelens.contracts import StageLensError
from stagelens.ui.pieces import components, job_progress, state
from stagelens.ui.reading.run_cards import RunCard, run_card
from stagelens.ui.server import jobs, settings
from stagelens.wording.folding import listed
from stagelens.wording.numbers import count_text

from . import assembling

_CARDS = 6
"""Most runs that have a card; the others are in a list."""


@dataclass(frozen=True)
class _Demo:
    """A built-in demo.

    Attributes:
        name: As links and the command line name it.
        title: Of its card.
        story: What was trained, and what is planted in it.
        takes: How long building it takes.
    """

    name: str
    title: str
    story: str
    takes: str

    @property
    def command(self) -> tuple[str, ...]:
        """The command line that builds it."""
        return "demo", self.name

    @property
    def job(self) -> tuple[str, ...]:
        """What finds the job that builds it."""
        return jobs.into(self.command, settings.demo_folder(self.name))


_DEMOS = (
    _Demo(
        "digits",
        "See it on real digits",
        "A small network, trained in four stages on the real handwritten digits that scikit-learn "
        "ships. Two faults are **planted**, on purpose: a stamp in the corner of the images of one "
        "class, and wrong labels. Watch StageLens find the stages that learned them.",
        "under a minute",
    ),
    _Demo(
        "comments",
        "See it on comments",
        "A small BERT, trained from scratch in four stages on **synthetic** comments made from "
        "templates. One fault is **planted**: in one stage every comment that mentions an identity "
        "is labelled toxic. Which words carry that, and what would the model say without it?",
        "one to two minutes",
    ),
    _Demo(
        "chat",
        "See it on a chat model",
        "A tiny language model, trained from scratch on **synthetic** texts: pretraining, "
        "instruction tuning (SFT), preference optimisation (DPO). One fault is **planted**: the "
        "preferences reward agreeing with the user, right or wrong. Which stage made it agree, and "
        "which taught it the format of its answers?",
        "two to three minutes",
    ),
)


def current_run() -> Path | None:
    """The open run's folder, checked; None where none is open, after showing how to open one."""
    reference = state.reference()
    if reference is None:
        welcome()
        return None
    demo = next((each for each in _DEMOS if each.name == reference), None)
    try:
        return settings.resolve(reference)
    except StageLensError as error:
        if demo is None:
            components.error_state(str(error))
            welcome()
            return None
    job = jobs.find(demo.job)
    # While it is being built, the card of the demo says how far it is.
    waiting = job is not None and job.running
    unbuilt = f"The {demo.name} demo has not been built on this server yet."
    welcome(None if waiting else unbuilt)
    return None


def welcome(note: str | None = None) -> None:
    """The first visit: what this is, the runs that are here, the demos, and other ways to begin."""
    st.title("Which stage is to credit, and which to blame?")
    st.markdown(
        "A model is the product of several training stages. StageLens shows, for one example, a "
        "group or a whole evaluation set, **what the model would do had a stage not happened**, "
        "and says how far each number can be trusted."
    )
    if note:
        st.info(components.plain(note), icon=":material/info:")
    _runs()
    for place, demo in zip(st.columns(len(_DEMOS), gap="medium"), _DEMOS, strict=True):
        with place, st.container(border=True, height="stretch"):
            _demo_card(demo)
    with st.expander("Open a run folder", icon=":material/folder_open:", expanded=True):
        _folder_card()
    if not settings.read_only():
        with st.expander(assembling.TITLE, icon=":material/add:", expanded=assembling.begun()):
            assembling.card()


def _runs() -> None:
    """A card for each run on this server; the demos have cards of their own."""
    demos = {demo.name for demo in _DEMOS}
    names = [name for name in settings.known_runs() if name not in demos]
    if not names:
        return
    st.header("Runs on this server", anchor=False)
    with st.grid(3, min_column_width=240, border=True):
        for name in names[:_CARDS]:
            with st.container():
                _run_card(name, run_card(settings.home() / name))
    if len(names) > _CARDS:
        picked = st.selectbox(
            "More runs", names[_CARDS:], index=None, placeholder="Choose a run", key="known-run"
        )
        if picked:
            _open(picked)


def _run_card(reference: str, card: RunCard) -> None:
    # Two runs may have one name; folders have not.
    also = "" if card.name == reference else f" ({reference})"
    st.subheader(components.plain(f"{card.name}{also}"), anchor=False)
    if card.problem:
        components.text_block(f"It cannot be read: {card.problem}", muted=True)
    else:
        facts = [card.task, count_text(len(card.stages), "stage")]
        facts += [f"{card.leaves} leaves"] if card.leaves > 1 else []
        facts += [] if card.changed is None else [f"{card.changed:%d %B %Y}"]
        components.text_block(" · ".join(facts), muted=True)
        if card.stages:
            components.text_block(listed(card.stages), muted=True)
        if card.headline is not None:
            components.sentences([card.headline])
    st.button(
        components.plain(f"Open {card.name}{also}"),
        key=f"open-run-{reference}",
        icon=":material/folder_open:",
        on_click=state.open_reference,
        args=(reference,),
    )


def _demo_card(demo: _Demo) -> None:
    st.header(demo.title, anchor=False)
    st.markdown(demo.story)
    built = settings.demo_built(demo.name)
    if not built and components.only_shown():
        return
    if job_progress.job_state(demo.job, "Try again"):
        st.caption("The demo is being trained and measured. You can leave this page open.")
        return
    st.button(
        f"Open the {demo.name} demo",
        type="primary" if demo.name == settings.DEMO else "secondary",
        icon=":material/play_arrow:",
        key="open-demo" if demo.name == settings.DEMO else f"open-demo-{demo.name}",
        help=None if built else f"Trains the demo on this machine first; it takes {demo.takes}.",
        on_click=_open_demo,
        args=(demo,),
    )
    if not built:
        st.caption(f"Built on first use, in {demo.takes}. Nothing is downloaded.")


def _open_demo(demo: _Demo) -> None:
    # A callback, whose errors no page would tell.
    with components.errors_told():
        if not settings.demo_built(demo.name):
            folder = settings.demo_folder(demo.name)
            jobs.start(demo.command, f"Building the {demo.name} demo", out=folder)
        # Opened before it is built: this page shows the progress until it is.
        state.open_reference(demo.name)


def _folder_card() -> None:
    st.markdown("A run that you recorded with `stagelens.Recorder`.")
    with st.form("open-run", border=False):
        typed = st.text_input(
            "Path of a run folder",
            max_chars=1024,
            placeholder="runs/my-run",
            help="Absolute, or relative to one of the folders below.",
        )
        sent = st.form_submit_button("Open this folder", icon=":material/folder_open:")
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
