"""Verify by replay: what to verify, how long it should take, and the job itself."""

from __future__ import annotations

import streamlit as st

from stagelens.effects import durations
from stagelens.trust import estimates
from stagelens.ui.opening.progressive import VERIFICATION
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.reading import loaders
from stagelens.ui.server import jobs, settings
from stagelens.wording import numbers

_TITLE = "The verification"
ORDERS = (0, 1, 2, 3, 5)
OFFERED = ("task-vector", "coarse-replay", "unrolled-jump", "unrolled-scale")
_DEFAULT = ("task-vector", "coarse-replay")


def arguments(
    workspace: Workspace, estimators: list[str], budgets: list[str], orders: int
) -> tuple[str, ...]:
    """The command line of a verification."""
    words = ["verify", workspace.at.path, "--set", workspace.examples.name]
    for name in OFFERED:
        words += ["--estimator", name] if name in estimators else []
    for text, budget in estimates.BUDGETS.items():
        if text in budgets and "coarse-replay" in estimators:
            words += ["--budget", f"{budget:g}"]
    return (*words, "--orders", str(orders))


def nothing_yet(workspace: Workspace) -> None:
    """Where no estimate is stored: what would be learnt."""
    st.info(
        "Nothing has been verified on this set yet. A verification replays the later stages "
        "without each stage, and holds the estimates against that: then every number says "
        "whether it is close enough to lean on, how far it is off, and, with other orders of the "
        "batches, which effects are within training noise.",
        icon=":material/science:",
    )


def verification_form(workspace: Workspace) -> None:
    """The controls, the prediction, the button; the progress in their place while it runs."""
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
                OFFERED,
                selection_mode="multi",
                default=list(_DEFAULT),
                key="verify",
                bind="query-params",
                help="Which estimates are held against replay. The unrolled ones cost more than "
                "a replay; they are for derivatives.",
            )
        with right:
            budgets = st.pills(
                "Budgets of coarse replay",
                list(estimates.BUDGETS),
                selection_mode="multi",
                default=["1/4"],
                key="budgets",
                bind="query-params",
                disabled="coarse-replay" not in names,
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
                "steady one.",
            )
        chosen = arguments(workspace, list(names), list(budgets), int(orders or 0))
        _run(workspace, chosen, bool(names) and bool(budgets or "coarse-replay" not in names))


def _refusal(workspace: Workspace) -> str | None:
    if len(workspace.stages) < 2:
        return "This run has one stage: its effect is exact, and there is nothing to verify."
    for stage in workspace.run.stages[1:]:
        if stage.facts.origin == "assembled":
            return f"Refused: {stage.not_recorded}."
        if not stage.replayable:
            return (
                f"Refused: stage {stage.name} cannot be replayed, because its batches were not "
                'all kept. Record it with keep_batches="all" to verify its run.'
            )
    return None


def _run(workspace: Workspace, chosen: tuple[str, ...], complete: bool) -> None:
    started: tuple[str, ...] | None = st.session_state.get(VERIFICATION)
    mine = started is not None and started[:4] == chosen[:4] and jobs.find(started) is not None
    shown = started if started is not None and mine else chosen
    if components.job_state(shown, "Dismiss"):
        st.session_state[VERIFICATION] = shown
        st.caption("The page stays usable; the result appears when the replays are done.")
        return
    job = jobs.find(shown)
    if started is not None and job is not None and job.status().state == "done":
        del st.session_state[VERIFICATION]
        st.toast(f"Verified in {job.status().seconds:.0f} s.", icon=":material/verified:")
    _prediction(workspace, chosen)
    if not complete:
        st.caption("Choose at least one estimator, and a budget for coarse-replay.")
    if st.button(
        "Verify by replay",
        type="primary",
        icon=":material/verified:",
        disabled=not complete or settings.read_only(),
        key="start-verify",
        help=settings.READ_ONLY
        if settings.read_only()
        else "Runs in the background: python -m stagelens verify.",
    ):
        jobs.start(chosen, _TITLE)
        st.session_state[VERIFICATION] = chosen
        st.rerun()


def _prediction(workspace: Workspace, chosen: tuple[str, ...]) -> None:
    stored = loaders.stored_estimates(workspace.at, workspace.examples.name)
    wanted: list[tuple[str, dict[str, float]]] = []
    values = list(zip(chosen[4::2], chosen[5::2], strict=True))
    budgets = [{"budget": float(value)} for option, value in values if option == "--budget"]
    for option, value in values:
        if option == "--estimator":
            wanted += [(value, each) for each in (budgets if value == "coarse-replay" else [{}])]
    orders = int(chosen[-1])
    facts = list(stored.values())
    seconds = durations.verify_seconds(workspace.run.stages, wanted, orders, facts)
    if seconds is None:
        text = "How long it takes is not known: the recording did not note its seconds."
    else:
        text = f"Predicted: {numbers.predicted_time(seconds)}, from the seconds that were recorded."
    if "replay" in stored:
        text += " The replay itself is stored already."
    components.text_block(text, muted=True)
