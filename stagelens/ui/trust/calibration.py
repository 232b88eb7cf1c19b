"""What promises are worth on the Trust page, and where this run's estimates lie."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from stagelens import charts
from stagelens.charts.calibration import MOST_POINTS, OwnEstimate, calibration_plot
from stagelens.estimators import calibration
from stagelens.estimators.stage_trust import AGREES_ERROR, AGREES_R, REPLAY, StageTrust
from stagelens.trust.coverage import Coverage, coverage
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, drawing
from stagelens.ui.pieces.folding import when_opened
from stagelens.ui.pieces.pinning import About
from stagelens.ui.reading import loaders
from stagelens.wording.kinds_of_runs import kind_of_run
from stagelens.wording.numbers import count_text
from stagelens.wording.trust_words import percent, trust_label

OBSERVED = "other training runs, whose true errors are known"


@st.cache_resource(show_spinner=False)
def _bench() -> tuple[pd.DataFrame, Coverage]:
    points = calibration.points()
    return points, coverage(points)


def what_promises_are_worth(workspace: Workspace) -> None:
    """The bench's promised and true errors, with this run's estimates among them."""
    (points, found), own = _bench(), _own(workspace)
    st.header("What a promised error is worth", anchor=False)
    components.text_block(_in_words(found))
    when_opened(
        "promises",
        "Every promise against the true error, with those of this run",
        lambda: _plot(workspace, points, own),
    )
    components.text_block(_where(own), muted=True)


def _plot(workspace: Workspace, points: pd.DataFrame, own: tuple[OwnEstimate, ...]) -> None:
    chart = drawing.chart(calibration_plot, points, own, charts.EITHER)
    trust = [t for name in _estimates(workspace) for t in _stages(workspace, name)]
    components.show(chart, "calibration", About(observed=OBSERVED, trust=trust, filters={}))
    if len(points) > MOST_POINTS:
        components.text_block(
            f"Drawn are {MOST_POINTS:,} of the {len(points):,} points: all that were called "
            "reliable and were not close enough, and a sample of the others. Errors beyond the "
            "frame lie on its edge.",
            muted=True,
        )


def _in_words(found: Coverage) -> str:
    """What the bench says, in plain words with its counts."""
    said = (
        "An estimate promises how far off it is, without a replay. Are such promises kept? They "
        f"were tried on other training runs of {found.families:,} kinds (a kind is a data set "
        "with a way to train on it), where a replay tells the truth. Each point is one estimate: "
        "across, the error that was promised by a formula that had seen no run of that kind; "
        "upwards, the true one. "
    )
    if found.reliable:
        said += (
            f"Of {count_text(found.reliable, 'estimate')} called reliable, on kinds of runs that "
            f"the formula had not seen, {percent(found.close / found.reliable)} were close enough "
            f"to a replay (r at least {AGREES_R:g}, error at most {percent(AGREES_ERROR)}); in the "
            f"worst kind ({kind_of_run(found.worst or '')}), {percent(found.worst_share)}. "
        )
    if found.estimates:
        said += (
            f"Of all {found.estimates:,}, {percent(found.within / found.estimates)} were within "
            f"the promised error; in the worst kind ({kind_of_run(found.widest or '')}), "
            f"{percent(found.widest_share)}."
        )
    return said


def _where(own: tuple[OwnEstimate, ...]) -> str:
    if not own:
        return "No estimate of this run on this set promises an error, so none has a mark."
    checked = [one for one in own if np.isfinite(one.error)]
    kept = sum(one.error <= one.promised for one in checked)
    count = count_text(len(own), "estimate")
    said = f"Dashed in the picture: the promise of {count} of this run on this set. "
    if not checked:
        return f"{said}None has been compared with a replay yet."
    return (
        f"{said}{count_text(len(checked), 'estimate')} compared with a replay: "
        f"{kept:,} within the promised error."
    )


def _estimates(workspace: Workspace) -> list[str]:
    found = loaders.available(workspace.at, workspace.examples.name)
    return [name for name in found if name != REPLAY]


def _stages(workspace: Workspace, estimate: str) -> list[StageTrust]:
    facts = loaders.facts(workspace.at, workspace.examples.name, estimate)
    known = [] if facts is None else facts.stages
    return [one for one in known if one.trust != "exact" and one.expected_error is not None]


def _own(workspace: Workspace) -> tuple[OwnEstimate, ...]:
    names = [name for name in _estimates(workspace) if _stages(workspace, name)]
    found = []
    for name in names:
        for one in _stages(workspace, name):
            # What is promised is about the first behaviour.
            checked = one.agreements[0] if one.agreements else None
            found.append(
                OwnEstimate(
                    name=one.stage if len(names) == 1 else f"{one.stage}, {name}",
                    promised=float(one.expected_error or 0.0),
                    error=float("nan") if checked is None else checked.relative_error,
                    known=trust_label(one, None if checked is None else checked.behaviour),
                )
            )
    return tuple(found)
