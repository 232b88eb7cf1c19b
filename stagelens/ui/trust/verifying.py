"""Verify by replay: what to verify, how long it will take, and the job itself."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from stagelens.estimators import registry
from stagelens.estimators.durations import paces
from stagelens.estimators.sharing_out import processes_of_a_command
from stagelens.estimators.stage_trust import REPLAY
from stagelens.trust import durations
from stagelens.ui.opening.progressive import VERIFICATION
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress
from stagelens.ui.reading import loaders
from stagelens.ui.server import jobs, settings
from stagelens.wording import numbers

_TITLE = "The verification"
ORDERS = (0, 1, 2, 3, 5)


def arguments(
    workspace: Workspace, estimators: list[str], budgets: list[str], orders: int
) -> tuple[str, ...]:
    """The command line of a verification."""
    words = ["verify", *workspace.at.words, "--set", workspace.examples.name]
    # In the registry's order: the command is the job's key, whatever order people click in.
    for name in registry.verifiable():
        words += ["--estimator", name] if name in estimators else []
    for text, budget in _offered_budgets().items():
        if text in budgets and _take_budget(estimators):
            words += ["--budget", f"{budget:g}"]
    return (*words, "--orders", str(orders))


def _offered_budgets() -> dict[str, float]:
    """Label to budget, over all estimators that take one."""
    kinds = (registry.find(name) for name in registry.verifiable())
    return {text: budget for kind in kinds for text, budget in kind.budgets.items()}


def _take_budget(estimators: Sequence[str]) -> bool:
    """Whether any of these estimators takes a budget."""
    return any(registry.find(name).budgets for name in estimators)


def nothing_yet(workspace: Workspace) -> None:
    """The message where no estimate is stored: what a verification would tell."""
    st.info(
        "Nothing has been compared with a replay on this set yet. A verification replays the "
        "later stages without each stage, and compares the estimates with that: then every number "
        "says whether it is close enough to rely on, how far it is off, and, with other orders of "
        "the batches, which effects are within training noise.",
        icon=":material/science:",
    )


def verification_form(workspace: Workspace) -> None:
    """Controls, prediction and button; while the job runs, its progress in their place."""
    st.header("Verify by replay", anchor=False)
    refused = _refusal(workspace)
    if refused:
        components.text_block(refused)
        return
    with st.container(border=True):
        left, right = st.columns([3, 2], gap="medium")
        with left:
            names = st.pills(
                "Estimators",
                registry.verifiable(),
                selection_mode="multi",
                default=registry.proposed(),
                key="verify",
                bind="query-params",
                help="Which estimates are compared with replay. The unrolled ones cost more than "
                "a replay; they are for derivatives.",
            )
        with right:
            budgets = st.pills(
                "Budgets of coarse replay",
                list(_offered_budgets()),
                selection_mode="multi",
                default=["1/4"],
                key="budgets",
                bind="query-params",
                disabled=not _take_budget(names),
                help="Shares of replay's cost.",
            )
        with left:
            orders = st.segmented_control(
                "Other orders of the batches, for the noise floor",
                ORDERS,
                default=1,
                key="orders",
                bind="query-params",
                required=True,
                help="Each costs two more replays per stage; 0 measures no noise floor, 3 give a "
                "stable one.",
            )
        chosen = arguments(workspace, list(names), list(budgets), int(orders or 0))
        _run(workspace, chosen, bool(names) and bool(budgets or not _take_budget(names)))


def _refusal(workspace: Workspace) -> str | None:
    if len(workspace.stages) < 2:
        return "This run has one stage: its effect is exact, and there is nothing to verify."
    # The first stage is never replayed, so it need not have kept its batches.
    why = next((stage.no_replay for stage in workspace.run.stages[1:] if stage.no_replay), "")
    return f"Refused: {why}." if why else None


def _run(workspace: Workspace, chosen: tuple[str, ...], complete: bool) -> None:
    started: tuple[str, ...] | None = st.session_state.get(VERIFICATION)
    # The first four words name the run and the set: a job of another set is not shown here.
    mine = started is not None and started[:4] == chosen[:4] and jobs.find(started) is not None
    shown = started if started is not None and mine else chosen
    if job_progress.job_state(shown, "Dismiss"):
        st.session_state[VERIFICATION] = shown
        return
    job = jobs.find(shown)
    if started is not None and job is not None and job.status().state == "done":
        del st.session_state[VERIFICATION]
        st.toast(
            f"Compared with replay in {job.status().seconds:.0f} s.", icon=":material/verified:"
        )
    _prediction(workspace, chosen)
    if not complete:
        st.caption("Choose at least one estimator, and a budget for coarse-replay.")
    st.button(
        "Verify by replay",
        type="primary",
        icon=":material/verified:",
        disabled=not complete or settings.read_only(),
        key="start-verify",
        help=settings.READ_ONLY
        if settings.read_only()
        else "Runs in the background: python -m stagelens verify.",
        on_click=_begin,
        args=(chosen,),
    )


def _begin(chosen: tuple[str, ...]) -> None:
    job_progress.begin(chosen, _TITLE)
    st.session_state[VERIFICATION] = chosen


def _prediction(workspace: Workspace, chosen: tuple[str, ...]) -> None:
    stored = loaders.stored_estimates(workspace.at, workspace.examples.name)
    wanted: list[tuple[str, dict[str, float]]] = []
    # Behind the run and the set, arguments() gives nothing but pairs of option and value.
    values = list(zip(chosen[4::2], chosen[5::2], strict=True))
    budgets = [{"budget": float(value)} for option, value in values if option == "--budget"]
    for option, value in values:
        if option == "--estimator":
            wanted += [(value, each) for each in (budgets if _take_budget([value]) else [{}])]
    orders = int(chosen[-1])
    facts = list(stored.values())
    known = paces(workspace.run)
    run = workspace.run
    shared = processes_of_a_command(run, registry.make_estimator(REPLAY), run.stages[:-1])
    seconds = durations.verify_seconds(known.stages, wanted, orders, facts, shared)
    if seconds is None:
        text = "How long it takes is not known: the recording has no timings."
    else:
        present = numbers.predicted_time(known.of_a_job(seconds, jobs.running()))
        text = f"Predicted: {present}, from {known.source} and how busy this machine is now."
    if REPLAY in stored and len(stored[REPLAY].stages) == len(workspace.stages):
        text += " The replay itself is stored already."
    components.text_block(text, muted=True)
