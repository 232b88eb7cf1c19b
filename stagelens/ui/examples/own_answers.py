"""A prompt of one's own, answered by the final model and by those without each stage, in turn.

Models generate in a child process, which writes what they say into a file that this page reads
while it grows. Prompt and answers are in a private folder that ends with the session.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import streamlit as st

from stagelens.compute import temporaries
from stagelens.contracts import StageLensError
from stagelens.estimators.registry import estimators, free_estimator, options
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress, state
from stagelens.ui.reading import loaders, scored
from stagelens.ui.server import jobs, settings
from stagelens.wording.numbers import count_text

from . import live_answers, model_answers, own_form, prompt_hints

_TURN = state.session_key("own-answers")
_TITLE = "Answers to a prompt of your own"
_LENGTHS = (16, 64, 256)
_USUAL = 64


@dataclass(frozen=True)
class _Turn:
    """A prompt that was asked.

    Attributes:
        folder: Holds what is asked and answered; it goes with the session.
        prompt: As it was typed.
        arguments: Of the command line.
        models: How many are to answer.
    """

    folder: TemporaryDirectory[str]
    prompt: str
    arguments: tuple[str, ...]
    models: int

    def replies(self) -> list[dict[str, Any]]:
        """What is said so far."""
        try:
            found = json.loads(_replies(self.folder).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # nothing yet
            return []
        return list(found["models"])


def _replies(folder: TemporaryDirectory[str]) -> Path:
    return Path(folder.name) / "replies.json"


def section(workspace: Workspace) -> None:
    """The prompt, and below it what the models answer."""
    key = live_answers.widget(live_answers.PROMPT)
    count = count_text(len(workspace.stages), "counterfactual")
    prompt = st.text_area(
        "A prompt of your own",
        key=key,
        height=110,
        max_chars=live_answers.MOST_CHARACTERS,
        placeholder="The models go on from what stands here, as it is",
        help=f"{own_form.STAYS} A chat model reads its template only if it is typed here.",
        persist_state="session",
    )
    prompt_hints.starts(workspace, key)
    for hint in prompt_hints.hints(workspace, prompt or ""):
        components.text_block(hint)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        length = st.segmented_control(
            "Most tokens",
            _LENGTHS,
            default=_USUAL,
            key=live_answers.widget("length"),
            required=True,
            help="Of each answer, which is greedy: the best token each time.",
            persist_state="session",
        )
        st.button(
            "Have all models answer",
            type="primary",
            icon=":material/forum:",
            key="ask-models",
            disabled=settings.read_only(),
            help=settings.READ_ONLY if settings.read_only() else None,
            on_click=_ask,
            args=(workspace, key, length or _USUAL),
        )
    turn: _Turn | None = st.session_state.get(_TURN)
    if turn is None:
        components.text_block(
            f"The final model answers first, then its {count}, one without each stage, each as "
            "soon as it is there. One that is not known yet is computed first.",
            muted=True,
        )
        return
    if turn.prompt != (prompt or ""):
        components.text_block("The answers below are to the prompt as it was.", muted=True)
    job = jobs.find(turn.arguments)
    if job is not None and job.running:
        _while_running(turn)
        return
    if not job_progress.job_state(turn.arguments, "Dismiss"):
        replies = turn.replies()
        done = _done(replies)
        if done == turn.models:
            _all_answered(turn)
        elif job is not None and job.status().state == "cancelled":
            said = f"Cancelled: {done} of {turn.models} models answered."
            components.text_block(said, muted=True)
        _show(replies)


def _done(replies: list[dict[str, Any]]) -> int:
    return len([each for each in replies if each["done"]])


def _all_answered(turn: _Turn) -> None:
    components.text_block(f"All {turn.models} models answered.", muted=True)


def _ask(workspace: Workspace, key: str, length: int) -> None:
    """Start, in the place of what was asked before: the callback of the button."""
    prompt = str(st.session_state.get(key) or "")
    before: _Turn | None = st.session_state.pop(_TURN, None)
    if before is not None:
        jobs.leave(before.arguments)
    with components.errors_told():
        if not prompt.strip():
            raise StageLensError("There is no prompt yet; type one, and have the models answer it")
        folder = temporaries.folder("stagelens-asked")
        asked = Path(folder.name) / "prompt.txt"
        asked.write_text(prompt, encoding="utf-8")
        arguments = (
            *("ask", *workspace.at.words, "--prompt-file", str(asked)),
            *("--replies", str(_replies(folder)), "--max-tokens", str(length)),
            *_estimator(workspace),
        )
        jobs.start(arguments, _TITLE)
        models = len(workspace.stages) + 1
        st.session_state[_TURN] = _Turn(folder, prompt, arguments, models)


def _estimator(workspace: Workspace) -> tuple[str, ...]:
    """How the models without a stage are obtained: as the page's effects were, else for free."""
    effects, at, name = workspace.effects, workspace.at, workspace.examples.name
    known = [each.any for each in scored.scores(at, name).values()]
    if effects is not None and (found := loaders.facts(at, name, effects.estimator)) is not None:
        known = [found]
    for facts in known:
        if facts.estimator in estimators():  # not what made models elsewhere
            return ("--estimator", facts.estimator, *options(facts.settings))
    return ("--estimator", free_estimator().name)


@st.fragment(run_every=0.5)
def _while_running(turn: _Turn) -> None:
    """What is said so far, again and again, with a button that ends it."""
    job = jobs.find(turn.arguments)
    if job is None or not job.running:
        st.rerun()
    status = job.status()
    replies = turn.replies()
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        done = _done(replies)
        if done == turn.models:  # the process needs seconds to end; there is nothing to cancel
            _all_answered(turn)
        else:
            waits = status.waiting or status.starting
            text = status.text if waits else f"{done} of {turn.models} models answered"
            components.text_block(f"{text} · {status.seconds:.0f} s", muted=True)
            st.button(
                "Cancel",
                icon=":material/close:",
                key="cancel-ask",
                on_click=jobs.leave,
                args=(turn.arguments,),
            )
    _show(replies)


def _show(replies: list[dict[str, Any]]) -> None:
    """A card for every model that has begun to speak."""
    if not replies:
        return
    final = str(replies[0]["answer"]) if replies[0]["done"] else None
    cards = [model_answers.reply_card(each, final) for each in replies]
    st.html(f"{model_answers.STYLE}<div class='sl-answers' role='log'>{''.join(cards)}</div>")
