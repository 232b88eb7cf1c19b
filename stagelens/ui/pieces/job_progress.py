"""A job on a page: how far it is, how long it still takes, or why it failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import streamlit as st

from stagelens.charts.style import AMOUNT, HAIRLINE
from stagelens.trust.replay_plan import TIMED
from stagelens.ui.server import jobs
from stagelens.ui.server.child import Status
from stagelens.wording.numbers import predicted_time

from .components import error_state, errors_told, text_block
from .escaping import plain

if TYPE_CHECKING:
    from stagelens.estimators.durations import Paces

GOES_ON = "You can close this page: it goes on, and the result will be here."
"""Jobs are the server's, and what they make is kept with the run."""
_MOVING = (
    "<style>@keyframes sl-moving{from{left:-30%}to{left:100%}}"
    "@media (prefers-reduced-motion:reduce){.sl-moving div{animation:none!important}}</style>"
    "<div class='sl-moving' role='progressbar' aria-label='Starting' style='position:relative;"
    f"height:.5rem;border-radius:.25rem;overflow:hidden;background:{HAIRLINE};margin-bottom:.4rem'>"
    "<div style='position:absolute;top:0;height:100%;width:30%;border-radius:.25rem;"
    f"background:{AMOUNT};animation:sl-moving 1.6s linear infinite'></div></div>"
)
"""A bar that moves without saying how far."""


def job_state(
    arguments: Sequence[str],
    again: str,
    worded: Callable[[str], str] = str,
    limit: float | None = None,
) -> bool:
    """Show a job's progress or failure.

    Args:
        arguments: Of its command line.
        again: Label of the button that drops a failed job.
        worded: Puts the command line's message into the words of the page.
        limit: Seconds within which its replays end; None where it has no limit.

    Returns:
        Whether it is running, so that the page offers nothing else in its place.
    """
    job = jobs.find(arguments)
    if job is None:
        return False
    status = job.status()
    if job.running:
        _progress(tuple(arguments), limit)
        return True
    if status.state == "failed":
        error_state(f"{job.title} failed: {worded(status.error or 'it says nothing')}")
        log = job.log().strip()
        # The log may be no more than the error, which is not shown twice.
        if log and log != status.error:
            with st.expander("Last output of the process"):
                st.code(log, language=None, wrap_lines=True)
        st.button(again, on_click=jobs.forget, args=(tuple(arguments),), key=f"again-{arguments}")
    return False


def predicted(known: Paces, seconds: float | None, on_button: bool = False) -> str:
    """`` Predicted: about 12 s, from steps timed here.``, beside what a button would do.

    Args:
        known: What ``seconds`` were predicted from.
        seconds: On the machine as busy as it was then; empty where they are not known.
        on_button: For the button's own words, ``, predicted: about 12 s``.
    """
    if seconds is None:
        return ""
    present = predicted_time(known.at_present(seconds, jobs.running()))
    if on_button:
        return f", predicted: {present}"
    return f" Predicted: {present}, from {known.source}."


def begin(arguments: tuple[str, ...], title: str) -> None:
    """Start a job: the ``on_click`` of its button, so that no rerun can lose the press."""
    # A callback, whose errors no page would tell.
    with errors_told():
        jobs.start(arguments, title)


@st.fragment(run_every=0.5)
def _progress(arguments: tuple[str, ...], limit: float | None) -> None:
    job = jobs.find(arguments)
    if job is None or not job.running:
        # The whole page: what the job made is shown outside this fragment.
        st.rerun()
    status = job.status()
    if status.waiting or status.starting:
        # Nothing tells how far it is: a bar at 0 % would say that nothing happens.
        # Apart from the words: markup that changes is drawn anew, and would start from the left.
        st.html(_MOVING)
        text_block(_so_far(status, limit))
    else:
        st.progress(status.done, text=_so_far(status, limit))
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.button("Cancel", on_click=job.cancel, key=f"cancel-{arguments}", icon=":material/close:")
        st.caption(GOES_ON)


def _so_far(status: Status, limit: float | None) -> str:
    """What a job is doing, how far it is, and how long it will take: within its limit."""
    if status.waiting:
        return status.text
    if status.starting:
        return f"{status.text} · {status.seconds:.0f} s"
    left = status.left
    if limit is not None and left is not None:
        # Before its steps are timed, a job cannot say what will fit. What is under way when the
        # limit ends is finished, and nothing tells when.
        known = status.done > TIMED and status.seconds < limit
        left = min(left, limit - status.seconds) if known else None
    said = "" if left is None else f" · {predicted_time(left)} left"
    return f"{plain(status.text)} · {100 * status.done:.0f} % · {status.seconds:.0f} s{said}"
