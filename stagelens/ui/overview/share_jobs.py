"""Where shares are not known yet: what they take, and a button that computes them."""

from __future__ import annotations

import streamlit as st

from stagelens.analyses.shares.stored import wanted_masks
from stagelens.contracts import StageLensError
from stagelens.estimators.coalition_plan import ESTIMATORS, Cost, cost, refusal
from stagelens.estimators.durations import paces
from stagelens.estimators.parties import Parties, parties_of, stage_masks
from stagelens.runs.run import Run
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress
from stagelens.ui.reading import shares
from stagelens.ui.server import jobs
from stagelens.wording.numbers import count_text, predicted_time

_TITLE = "Shares"


def arguments(workspace: Workspace, estimator: str, together: tuple[str, ...]) -> tuple[str, ...]:
    """The command line that computes what shares take."""
    words: tuple[str, ...] = ("shares", *workspace.at.words, "--set", workspace.examples.name)
    words += ("--estimator", estimator)
    if together:
        words += ("--together", ",".join(together))
    return words


def offer(workspace: Workspace, together: tuple[str, ...]) -> None:
    """Where there are no shares: the cost and the button, or the progress in their place."""
    st.info(
        "Shares need the models in which only some of the stages happened, and these have not been "
        "measured yet.",
        icon=":material/info:",
    )
    if not workspace.computable:
        components.text_block("They cannot be measured here: the run's model cannot be built.")
        return
    _compute(workspace, together, ESTIMATORS)


def offer_combinations(workspace: Workspace) -> None:
    """Where switches ask for a model that was not measured: what all of them take."""
    if shares.known(workspace.at, workspace.examples.name):
        components.text_block(
            "Of so many stages, only the models that shares are read off were measured, and this "
            "is none of them.",
            muted=True,
        )
        return
    if workspace.computable:
        _compute(workspace, (), ESTIMATORS, "combinations")


def offer_better(workspace: Workspace, together: tuple[str, ...], shown: str) -> None:
    """Where shares are estimated: the same for better ones; nothing where there are none."""
    if not workspace.computable or shown not in ESTIMATORS[1:]:
        return
    with st.expander(f"These shares are by {shown}: what better ones take"):
        _compute(workspace, together, ESTIMATORS[: ESTIMATORS.index(shown)])


def _compute(
    workspace: Workspace,
    together: tuple[str, ...],
    estimators: tuple[str, ...],
    key: str = "shares",
) -> None:
    run = workspace.run
    parties = _parties(run, together)
    try:
        masks = list(stage_masks(run, parties, wanted_masks(run, parties)).values())
    except StageLensError as error:  # too many stages, unless some are taken as one
        components.error_state(str(error))
        return
    possible = [each for each in estimators if not _refused(run, masks, each)]
    if not possible:
        components.text_block(f"Refused: {_refused(run, masks, estimators[0])}")
        return
    estimator = st.segmented_control(
        "Measured by",
        possible,
        default=possible[0],
        key=f"{key}-by",
        required=True,
        help="Replay trains the stages again and is exact; coarse replay does so with larger "
        "steps; a task vector trains nothing, and is rough where stages interact.",
    )
    asked = arguments(workspace, estimator or possible[0], together)
    start(asked, cost_text(run, cost(run, masks, estimator or possible[0])), key)


def start(asked: tuple[str, ...], told: str, key: str) -> None:
    """What a command takes with the button that starts it, or its progress in their place.

    Args:
        asked: The command line.
        told: Its cost.
        key: Of the button; says what is computed.
    """
    if job_progress.job_state(asked, "Dismiss"):
        return
    job = jobs.find(asked)
    if job is not None and job.status().state == "done":
        jobs.forget(asked)
        st.rerun()
    components.text_block(told)
    if components.only_shown():
        return
    st.button(
        f"Compute {key}",
        type="primary",
        icon=":material/pie_chart:",
        key=f"start-{key}",
        help=f"Runs in the background: python -m stagelens {asked[0]}.",
        on_click=job_progress.begin,
        args=(asked, _TITLE),
    )


def cost_text(run: Run, price: Cost) -> str:
    """What shares take, in replays of the whole training and in time."""
    said = f"{count_text(price.coalitions, 'model')}"
    if not price.passes:
        return f"{said}: no training, only forward passes."
    said += (
        f", {price.recorded} of them recorded: {count_text(price.passes, 'stage')} trained again, "
        f"as much as {price.replays:.1f} trainings of the whole run"
    )
    if price.seconds is None:
        return f"{said}. How long it takes is not known: the recording has no timings."
    present = paces(run).of_a_job(price.seconds, jobs.running())
    return f"{said}. Predicted: {predicted_time(present)}."


def _refused(run: Run, masks: list[int], estimator: str) -> str:
    return next((why for mask in masks if (why := refusal(run, mask, estimator))), "")


def _parties(run: Run, together: tuple[str, ...]) -> Parties:
    return parties_of(run, [together] if together else [])
