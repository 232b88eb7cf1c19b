"""Answers that improve on their own: free at once, then exact as far as a time limit allows.

One job does it all (see ``trust.settling``): the task vector within seconds, then replay of one
stage after the other within the limit that the user sets, then coarse replay of what does not fit.
Pages move on whenever a stage is done. What did not fit is listed with its price, and a button
starts it. A page that shows the best numbers moves on to better ones when they arrive; where
somebody chose others on purpose, the better ones are offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from stagelens.contracts import StageLensError
from stagelens.estimators.coarse_replay import CoarseReplay
from stagelens.estimators.durations import STARTING, coarse_seconds, paces
from stagelens.estimators.stage_trust import REPLAY
from stagelens.runs.run import Run
from stagelens.trust import replay_plan
from stagelens.trust.replay_plan import Left
from stagelens.ui.pieces import components, job_progress, state
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import MEASURED, Source
from stagelens.ui.server import jobs, settings
from stagelens.wording import numbers
from stagelens.wording.numbers import count_text

VERIFICATION = state.session_key("verification")
"""Arguments of the verification that this session started; it computes the same tables."""

LIMITS = {"30 s": 30, "2 min": 120, "10 min": 600, "1 h": 3600}
"""Label to seconds that replays may take together before nobody has asked for more."""
USUAL = "2 min"

_SEEN = state.session_key("best-estimate")
_TITLE = "Replay"
_HELP = (
    "Replay runs the recorded steps of the later stages again, without the stage: exact, and about "
    "as long as these stages took to train. What is predicted to fit into this time is replayed "
    "in the background, the stages whose numbers may be furthest off first; the others are "
    "estimated by coarse replay."
)


@dataclass(frozen=True)
class Computable:
    """What can be computed for one set of a run.

    Attributes:
        at: The run folder as it is now.
        run: The run.
        set_name: The evaluation set.
    """

    at: Source
    run: Run
    set_name: str

    @classmethod
    def of(cls, at: Source, set_name: str) -> Computable:
        """For a set, as it is now."""
        return cls(at, loaders.run(at), set_name)

    def within(self, limit: str) -> tuple[str, ...]:
        """The command line that makes as many stages exact as a limit allows."""
        return ("attribute", *self.at.words, "--set", self.set_name, "--time", f"{LIMITS[limit]}")

    def replay(self, stage: str) -> tuple[str, ...]:
        """The command line that replays one stage, however long it takes."""
        return (
            *("attribute", *self.at.words, "--estimator", REPLAY),
            *("--set", self.set_name, "--stage", stage),
        )

    @property
    def open(self) -> list[str]:
        """Stages that are neither settled nor replayed yet."""
        return _open(self.at, self.set_name)

    @property
    def left(self) -> list[Left]:
        """Those of them that can be replayed, with their prices."""
        stages = [self.run.stage(name) for name in self.open]
        return replay_plan.left_out(self.run, self.set_name, stages)

    @property
    def coarse(self) -> list[str]:
        """Those of them that coarse replay can still estimate."""
        if not CoarseReplay.possible(self.run):
            return []
        there = replay_plan.estimated(self.run, self.set_name)
        return [name for name in self.open if name not in there]

    def worth(self, limit: str) -> bool:
        """Whether anything is predicted to be ready within a limit that is not there yet."""
        known, seconds = paces(self.run), LIMITS[limit]
        if known.taken is None:  # only timing some steps can tell
            return bool(self.left or self.coarse)
        if any(one.seconds is None or one.seconds + STARTING < seconds for one in self.left):
            return True
        indices = [self.run.stage(name).index for name in self.coarse]
        takes = coarse_seconds(known.stages, CoarseReplay.default_budget, indices)
        return bool(indices) and (takes is None or takes < seconds)


@st.cache_data(max_entries=32, show_spinner=False, hash_funcs=MEASURED)
def _open(at: Source, set_name: str) -> list[str]:
    return [stage.name for stage in replay_plan.open_stages(loaders.run(at), set_name)]


def first(computable: Computable) -> None:
    """Where nothing is stored yet: start with the task vector, and show how far it is."""
    if _verifying() or components.only_shown():
        return
    with st.sidebar:
        limit = _limit()
    arguments = computable.within(limit)
    job = jobs.find(arguments)
    if job is None:
        _start(arguments)
    if _running(computable, arguments, "", LIMITS[limit]):
        return
    # What somebody cancelled starts only at the press of a button.
    if job is not None and job.status().state == "cancelled":
        _again(arguments, limit)


def follow(at: Source, set_name: str, available: Sequence[str]) -> None:
    """Move on to better numbers that have just arrived, where the best ones were shown."""
    where, best = st.session_state.get(_SEEN, (None, None))
    here = (*at.words, set_name)
    chosen = state.chosen("estimator")
    # Other numbers were chosen on purpose: they stay, and offer_best shows the way.
    if where == here and best != available[0] and chosen in (best, None):
        state.choose_shared("estimator", None)
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

    st.button(
        f"Show the numbers by {best}",
        icon=":material/trending_up:",
        help="Less is known of how far off the numbers are that are shown now.",
        on_click=state.choose_shared,
        args=("estimator", None),
        key="show-best",
        width="stretch",
    )


def better(computable: Computable) -> None:
    """Below the estimator: what is being computed, or can be."""
    if not computable.open or settings.read_only() or _verifying():
        return
    left = computable.left
    if not left and not computable.coarse:
        return
    limit = _limit()
    arguments = computable.within(limit)
    job = jobs.find(arguments)
    # A job that failed or was cancelled is still found, and does not start again by itself.
    if job is None and computable.worth(limit):
        _start(arguments)
        job = jobs.find(arguments)
    said = f"Replays are running, for up to {limit}."
    if _running(computable, arguments, said, LIMITS[limit]):
        return
    for one in left:
        if _running(computable, computable.replay(one.stage), f"{one.stage} is being replayed."):
            return
    if job is not None and job.status().state == "cancelled":
        _again(arguments, limit)
    count = len(computable.run.stages)
    st.caption(f"{count - len(computable.open)} of {count_text(count, 'stage')} are exact.")
    if left:
        _prices(computable, left)


def _prices(computable: Computable, left: Sequence[Left]) -> None:
    """What did not fit into the limit: how long it takes, a button, and the command."""
    with st.popover(f"Not exact yet: {len(left)}", icon=":material/replay:", width="stretch"):
        for number, one in enumerate(left):
            components.text_block(f"{one.stage}: {one.said}.")
            time = "" if one.seconds is None else f" ({numbers.predicted_time(one.seconds)})"
            st.button(
                components.plain(f"Replay {one.stage}{time}"),
                icon=":material/replay:",
                key=f"replay-{number}",
                on_click=job_progress.begin,
                args=(computable.replay(one.stage), f"Replay of {one.stage}"),
                width="stretch",
            )
            command = replay_plan.replay_command(
                computable.at.path, computable.set_name, one.stage, computable.at.leaf
            )
            st.code(command, language=None, wrap_lines=True)


def _limit() -> str:
    chosen = st.segmented_control(
        "Replay within",
        list(LIMITS),
        default=USUAL,
        key="time",
        bind="query-params",
        required=True,
        help=_HELP,
    )
    return chosen or USUAL


def _verifying() -> bool:
    """Show this session's verification if it is running: nothing else is started beside it."""
    arguments: tuple[str, ...] | None = st.session_state.get(VERIFICATION)
    job = None if arguments is None else jobs.find(arguments)
    if arguments is None or job is None or not job.running:
        return False
    st.caption("A verification by replay is running; better numbers will come with it.")
    return job_progress.job_state(arguments, "Dismiss")


def _start(arguments: tuple[str, ...]) -> None:
    """Start what nobody asked for; a full queue is no reason to show nothing else."""
    try:
        jobs.start(arguments, _TITLE)
    except StageLensError as error:
        st.caption(components.plain(f"{_TITLE} does not start by itself: {error}"))


def _again(arguments: tuple[str, ...], limit: str) -> None:
    st.button(
        f"Replay within {limit}",
        icon=":material/replay:",
        help=_HELP,
        key="start-replay",
        on_click=job_progress.begin,
        args=(arguments, "Replay of all stages"),
        width="stretch",
    )


def _running(
    computable: Computable, arguments: tuple[str, ...], said: str, limit: float | None = None
) -> bool:
    """Show a job while it runs, and rerun the page whenever it has stored something."""
    job = jobs.find(arguments)
    if job is not None and job.running:
        if said:
            st.caption(components.plain(said))
        _watch(computable.at.path, computable.at.results)
    return job_progress.job_state(arguments, "Try again", limit=limit)


@st.fragment(run_every=1.0)
def _watch(path: str, results: str) -> None:
    if loaders.source(Path(path)).results != results:
        st.rerun()
