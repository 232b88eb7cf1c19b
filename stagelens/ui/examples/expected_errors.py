"""How far ahead first order holds for a stage: the stored answer as a curve, or the way to it."""

from __future__ import annotations

import streamlit as st

from stagelens import charts
from stagelens.analyses.contributions.durations import horizons_seconds
from stagelens.analyses.contributions.horizon_table import (
    SHARE,
    Horizons,
    horizons_path,
    load_horizons,
    promised,
    sentence,
)
from stagelens.charts.expected_errors import expected_error_curve
from stagelens.estimators.durations import paces
from stagelens.report.provenance import FIRST_ORDER
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, drawing, job_progress
from stagelens.ui.pieces.pinning import About
from stagelens.ui.server import settings
from stagelens.wording.numbers import phrase

from .contributions import Asked, impossible


def stored_horizons(workspace: Workspace, asked: Asked) -> Horizons | None:
    """The stored answer to the question that the tab is about."""
    path = horizons_path(
        *(workspace.run, workspace.examples, asked.behaviour.name, asked.ids, asked.stage, SHARE)
    )
    return _load(str(path), path.stat().st_mtime_ns, workspace, asked) if path.exists() else None


@st.cache_resource(max_entries=32, show_spinner=False)
def _load(path: str, stamp: int, _workspace: Workspace, _asked: Asked) -> Horizons | None:
    # The path says what was asked. A file that is written again is read again, by its stamp.
    run, stage = _workspace.run, _workspace.run.stage(_asked.stage)
    return load_horizons(run, _workspace.examples, _asked.behaviour.name, _asked.ids, stage)


def said(workspace: Workspace, asked: Asked, muted: bool = False) -> bool:
    """How far first order holds in a sentence, where it is known.

    Args:
        workspace: The run.
        asked: Whose behaviour, and which stage.
        muted: Whether a graver warning stands above it.

    Returns:
        False where it says nothing, not even of the next step.
    """
    found = stored_horizons(workspace, asked)
    if found is None:
        return True
    if (found.holds and found.promised) or muted:
        components.text_block(sentence(found), muted=muted)
    else:
        st.warning(components.plain(sentence(found)), icon=":material/warning:")
    return found.holds or found.furthest() is not None


def expected_errors_section(workspace: Workspace, asked: Asked) -> None:
    """The curve of expected errors, or a button that has it computed."""
    st.subheader("How far first order holds", anchor=False)
    found = stored_horizons(workspace, asked)
    if found is None:
        offer(workspace, asked, "expected-errors-job")
        return
    said(workspace, asked)
    chart = drawing.chart(expected_error_curve, found, charts.EITHER)
    about = About(
        title=f"How far first order holds in {asked.stage}, {asked.about}",
        behaviour=asked.behaviour.name,
        estimator=FIRST_ORDER,
        trust=(),
        filters=asked.filters,
    )
    components.show(chart, "expected-errors", about)
    components.text_block(
        f"Estimated without a replay: a random {100 * found.facts.share:.0f} % of the training "
        f"examples ({found.facts.left_out:,}) is left out of stretches of the stage, and the "
        "second-order term that first order neglects is taken relative to the effect with it. "
        f"{_whiskers(found)}To ask about the model some steps later: stagelens contributions with "
        "--horizon.",
        muted=True,
    )


def _whiskers(found: Horizons) -> str:
    """What the upper ends of the curve mean, with a space after it; empty where there are none."""
    said = promised(found)
    return f"The upper ends are what nine of ten errors stay within: {said} " if said else ""


def offer(workspace: Workspace, asked: Asked, key: str) -> None:
    """What the estimate would say, and its button.

    Args:
        workspace: The run.
        asked: Whose behaviour, and which stage.
        key: Of the button.
    """
    if impossible(workspace, asked) is not None:
        components.text_block("Not known.", muted=True)
        return
    arguments = (
        *("horizon", *workspace.at.words, "--set", workspace.examples.name),
        *("--behaviour", asked.behaviour.name, "--stage", asked.stage, *asked.options),
    )
    known = paces(workspace.run)
    since = known.stages[workspace.stages.index(asked.stage) :]
    if job_progress.job_state(arguments, "Try again"):
        return
    took = job_progress.predicted(known, horizons_seconds(since))
    with components.aside():
        st.button(
            "Estimate how far it holds",
            type="tertiary",
            disabled=settings.read_only(),
            icon=":material/ssid_chart:",
            key=key,
            on_click=job_progress.begin,
            args=(arguments, "The estimate of how far first order holds"),
            help=settings.READ_ONLY
            if settings.read_only()
            else f"The expected error of first order of {asked.stage}, a step later up to the "
            "final model. Runs in the background: python -m stagelens horizon.",
        )
        components.text_block(
            f"By how much is first order off on the {phrase(asked.behaviour)} of {asked.about}? "
            f"Estimated without a replay.{took}",
            muted=True,
        )
