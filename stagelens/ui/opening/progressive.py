"""Answers that improve on their own: free at once, coarse in the background, replay last.

The task vector is there within seconds. ``coarse-replay`` within a budget follows by itself, unless
replay would take hardly longer, and ``replay`` where it is predicted to take less than a minute;
otherwise a button starts it. One job at a time, in child processes. A page that shows the best
numbers moves on to better ones when they arrive; where somebody chose others on purpose, the better
ones are offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from stagelens.contracts import StageLensError
from stagelens.estimators import registry
from stagelens.estimators.coarse_replay import CoarseReplay
from stagelens.estimators.durations import replay_seconds
from stagelens.estimators.stage_trust import REPLAY
from stagelens.runs.run import Run
from stagelens.trust import estimates
from stagelens.ui.pieces import components, state
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Source
from stagelens.ui.server import jobs, settings
from stagelens.wording import numbers

VERIFICATION = state.session_key("verification")
"""Arguments of the verification that this session started; it computes the same tables."""

_SEEN = state.session_key("best-estimate")
_LONG = 600.0
"""Seconds; a coarse replay predicted to take longer waits for its button."""

_REPLAY_HELP = (
    "Replay runs the recorded steps of the later stages again, without the stage. It is exact, "
    "and takes about as long as these stages took to train."
)
_BUDGET_HELP = (
    "What coarse replay may spend, as a share of the cost of replay. A larger budget gives a "
    "better estimate; each is computed in the background and kept."
)


@dataclass(frozen=True)
class Computable:
    """What can be computed for one set of a run.

    Attributes:
        at: The run folder as it is now.
        run: The run.
        set_name: The evaluation set.
        stored: Names of the stored estimates.
    """

    at: Source
    run: Run
    set_name: str
    stored: tuple[str, ...]

    @classmethod
    def of(cls, at: Source, set_name: str) -> Computable:
        """For a set, as it is now."""
        return cls(at, loaders.run(at), set_name, tuple(loaders.available(at, set_name)))

    def arguments(self, estimator: str, budget: float | None = None) -> tuple[str, ...]:
        """The command line that measures the set."""
        settings = () if budget is None else ("--budget", f"{budget:g}")
        return (
            *("attribute", self.at.path, "--estimator", estimator),
            *("--set", self.set_name, *settings),
        )

    @property
    def coarse(self) -> bool:
        """Whether batches of the later stages were kept."""
        # Coarse replay runs what comes after the stage left out, so never the first stage.
        later = self.run.stages[1:]
        return bool(later) and all(s.steps and s.facts.keep_batches != "none" for s in later)

    @property
    def replayable(self) -> bool:
        """Whether the later stages can be replayed; without later stages all is exact already."""
        return all(stage.replayable for stage in self.run.stages[1:])

    @property
    def seconds(self) -> float | None:
        """How long replay is predicted to take; None where that is not known."""
        return replay_seconds(self.run.stages)

    @property
    def short(self) -> bool:
        """Whether replay starts by itself."""
        return self.replayable and self.seconds is not None and self.seconds < estimates.SHORT


def first(computable: Computable) -> None:
    """Where nothing is stored yet: start the task vector, and show how far it is."""
    if _verifying() or components.only_shown():
        return
    free = computable.arguments(registry.free_estimator().name)
    job = jobs.find(free)
    if job is None:
        _start(free, "The task vector")
    if components.job_state(free, "Try again"):
        return
    # What somebody cancelled starts only at the press of a button.
    if job is not None and job.status().state == "cancelled":
        _button(free, "Task vector (free)", "The task vector", "Weights only; takes seconds.")
    exact = computable.arguments(REPLAY)
    if computable.replayable and not components.job_state(exact, "Try again"):
        _button(exact, _replay_label(computable), "Replay", _REPLAY_HELP)


def follow(at: Source, set_name: str, available: Sequence[str]) -> None:
    """Move on to better numbers that have just arrived, where the best ones were shown."""
    where, best = st.session_state.get(_SEEN, (None, None))
    here = (at.path, set_name)
    shown = st.session_state.get("estimator")
    # Other numbers were chosen on purpose: they stay, and offer_best shows the way.
    if where == here and best != available[0] and shown in (best, None):
        st.session_state["estimator"] = available[0]
        st.toast(
            f"Better numbers have arrived: {components.plain(available[0])}.",
            icon=":material/trending_up:",
        )
    st.session_state[_SEEN] = (here, available[0])


def offer_best(available: Sequence[str], shown: str) -> None:
    """Where other numbers than the best were chosen: a button that shows the best."""
    best = available[0]
    if shown == best:
        return

    def show_best() -> None:
        st.session_state["estimator"] = best

    st.button(
        f"Show the better {best}",
        icon=":material/trending_up:",
        on_click=show_best,
        key="show-best",
        width="stretch",
    )


def better(computable: Computable) -> None:
    """Below the estimator: what is being computed, or can be."""
    if REPLAY in computable.stored or settings.read_only() or _verifying():
        return
    replay = computable.arguments(REPLAY)
    if _running(replay, "Replay"):
        return
    waiting = False
    if computable.coarse:
        budget = _budget()
        # Replay takes less than a minute, and a coarse replay would not even halve that.
        at_once = computable.short and not registry.saves_time(
            computable.run.stages, CoarseReplay.name, {"budget": budget}
        )
        if not at_once:
            waiting = _coarse(computable, budget)
        elif jobs.find(replay) is None:
            st.caption(
                "Replay should take hardly longer here than coarse replay, so it is running now."
            )
    # One job at a time: replay follows when the coarse numbers have arrived.
    if waiting or not computable.replayable:
        return
    # A job that failed or was cancelled is still found, and does not start again by itself.
    if computable.short and jobs.find(replay) is None:
        _start(replay, "Replay")
    if not _running(replay, "Replay"):
        _button(replay, _replay_label(computable), "Replay", _REPLAY_HELP)


def _verifying() -> bool:
    """Show this session's verification if it is running: nothing else is started beside it."""
    arguments: tuple[str, ...] | None = st.session_state.get(VERIFICATION)
    job = None if arguments is None else jobs.find(arguments)
    if arguments is None or job is None or not job.running:
        return False
    st.caption("A verification by replay is running; better numbers will come with it.")
    return components.job_state(arguments, "Dismiss")


def _budget() -> float:
    options = list(CoarseReplay.budgets)
    chosen = st.segmented_control(
        "Budget of coarse replay",
        options,
        default="1/4",
        key="budget",
        bind="query-params",
        required=True,
        help=_BUDGET_HELP,
    )
    return CoarseReplay.budgets[chosen or "1/4"]


def _coarse(computable: Computable, budget: float) -> bool:
    """Start coarse replay where its table is missing; returns whether it is running."""
    name = registry.estimate_name(CoarseReplay.name, {"budget": budget})
    if name in computable.stored:
        return False
    arguments = computable.arguments(CoarseReplay.name, budget)
    title = f"Coarse replay, budget {registry.budget_text(budget)}"
    seconds = registry.estimate_seconds(
        computable.run.stages, CoarseReplay.name, {"budget": budget}
    )
    if jobs.find(arguments) is None and (seconds is None or seconds < _LONG):
        _start(arguments, title)
    if _running(arguments, title):
        return True
    job = jobs.find(arguments)
    if job is None or job.status().state == "cancelled":
        long = "" if seconds is None else f" ({numbers.predicted_time(seconds)})"
        _button(arguments, f"{title}{long}", title, _BUDGET_HELP)
    return False


def _start(arguments: tuple[str, ...], title: str) -> None:
    """Start what nobody asked for; a full queue is no reason to show nothing else."""
    try:
        jobs.start(arguments, title)
    except StageLensError as error:
        st.caption(components.plain(f"{title} does not start by itself: {error}"))


def _running(arguments: tuple[str, ...], title: str) -> bool:
    job = jobs.find(arguments)
    if job is not None and job.running:
        st.caption(f"{title} is being computed; the page switches to it when it is ready.")
    return components.job_state(arguments, "Try again")


def _replay_label(computable: Computable) -> str:
    seconds = computable.seconds
    return "Replay (exact)" if seconds is None else f"Replay ({numbers.predicted_time(seconds)})"


def _button(arguments: tuple[str, ...], label: str, title: str, text: str) -> None:
    # The estimator's name; see Computable.arguments.
    key = f"start-{arguments[3]}"
    if st.button(label, icon=":material/replay:", help=text, key=key, width="stretch"):
        jobs.start(arguments, title)
        st.rerun()
