"""Whether first order says anything of a stage's training data: the check, and the way to it."""

from __future__ import annotations

import streamlit as st

from stagelens.analyses.smoothness.sentences import cost, outweighed, verdict
from stagelens.analyses.smoothness.smoothness import Smoothness, load_smoothness, smoothness_path
from stagelens.estimators.durations import STARTING, paces
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress
from stagelens.ui.server import settings

from . import expected_errors
from .contributions import Asked


def first_order_says_something(workspace: Workspace, asked: Asked, key: str, warned: bool) -> bool:
    """Show what is known of it, or the button that checks; False where rankings would mislead.

    Two checks stand here, and the worse one is told first: how far first order is expected to
    hold, and whether the smallest changes are smooth, which is no pass by itself.

    Args:
        workspace: The run.
        asked: Whose behaviour, and which stage.
        key: Tells the controls of one tab from those of another.
        warned: Whether a graver warning stands above.
    """
    path = smoothness_path(workspace.run, asked.stage, workspace.examples)
    found = None
    if path.exists():
        found = _load(str(path), path.stat().st_mtime_ns, workspace, asked.stage)
    rough = found is not None and not found.smooth(asked.behaviour.name)
    if found is not None and rough:
        st.warning(components.plain(verdict(found, asked.behaviour)), icon=":material/warning:")
    holds = expected_errors.said(workspace, asked, muted=rough)
    if found is None:
        _offer(workspace, asked, key)
    elif not rough:
        horizons = expected_errors.stored_horizons(workspace, asked)
        # Also where no bound is known: then it is not known whether first order holds.
        known = horizons is None or (horizons.holds and horizons.promised)
        graver = warned or not known
        said = verdict(found, asked.behaviour)
        if graver:  # read as a pass otherwise
            said = outweighed(found, asked.behaviour, asked.about)
        components.text_block(said, muted=True)
    return holds and not rough


@st.cache_resource(max_entries=16, show_spinner=False)
def _load(path: str, stamp: int, _workspace: Workspace, _stage: str) -> Smoothness | None:
    # The path says what was checked. A file that is written again is read again, by its stamp.
    return load_smoothness(_workspace.run, _stage, _workspace.examples)


def _offer(workspace: Workspace, asked: Asked, key: str) -> None:
    """The button that starts the check."""
    arguments = (
        *("smoothness", *workspace.at.words, "--stage", asked.stage),
        *("--set", workspace.examples.name),
    )
    if job_progress.job_state(arguments, "Try again"):
        return
    known = paces(workspace.run)
    later = known.stages[workspace.stages.index(asked.stage) :]
    seconds = None
    if all(pace.seconds is not None for pace in later):
        seconds = STARTING + 3 * sum(pace.seconds or 0.0 for pace in later)
    took = job_progress.predicted(known, seconds)
    with components.aside():
        st.button(
            "Check first order",
            type="tertiary",
            disabled=settings.read_only(),
            icon=":material/rule:",
            key=f"check-smoothness-{key}",
            on_click=job_progress.begin,
            args=(arguments, "The smoothness check"),
            help=settings.READ_ONLY
            if settings.read_only()
            else f"{cost()} Runs in the background: python -m stagelens smoothness.",
        )
        components.text_block(
            f"Does its ranking of {asked.stage} say anything? Three replays tell.{took}", muted=True
        )
