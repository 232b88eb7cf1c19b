"""Editable words: a text that every model answers as it is typed, each word shaded by its push.

Drawn by a component of our own, because no control of Streamlit's shades words or sends what is
typed before the field is left. What is typed stays in the browser, which sends the whole text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import streamlit as st

from stagelens.analyses.spurious.ranking import strongest
from stagelens.charts.tokens import largest_effect, shade
from stagelens.contracts import Behaviour
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.reading import loaders
from stagelens.ui.reading.found_features import found_features
from stagelens.ui.server import settings
from stagelens.wording.numbers import amount_text, phrase
from stagelens.wording.trust_words import signs_known

from . import editor, live_answers, own_form
from .live_answers import Asked, Question

WRITTEN = "your text"
"""What a text that was typed is called where a file has its name."""
FINAL = "Final model"
"""What shades words unless a stage does."""

_KEY = "words"
_WRONG = state.session_key("written-wrong")
_FOUND = 6
"""Found words that are offered."""
_HELP = f"Every model answers as you type; buttons act on the word at the cursor. {own_form.STAYS}"
_UNKNOWN = "unknown to the tokenizer, so the models read it as any other unknown word"


_component = editor.component("words")


def show(
    workspace: Workspace,
    field: str,
    asked: Asked | None,
    behaviour: Behaviour | None,
    towards: str | None,
) -> None:
    """The text, and what was wrong with what the browser sent.

    Args:
        workspace: Of its set the examples can be begun with.
        field: The task's only field.
        asked: What the models say of the text; None where nothing was asked, or none answers.
        behaviour: The one that is shown; None likewise.
        towards: The answer that it is about, where nobody has said that it is right.
    """

    def typed() -> None:
        _take(field, st.session_state[_KEY].get("typed"))

    def begun() -> None:
        begin = st.session_state[_KEY].get("begin")
        if isinstance(begin, dict):
            _begin(workspace, begin.get("example"))

    words_found = _found(workspace)
    question = live_answers.question()
    text = "" if question is None else str(question.content.get(field, ""))
    sent = st.session_state.get(_KEY, {}).get("typed")
    looks, why = [], ""
    if asked is not None and behaviour is not None:
        if asked.pushes is not None:
            looks = _looks(asked, behaviour, towards)
        else:
            why = asked.unshaded
    _component(
        key=_KEY,
        data={
            "text": text,
            "from": live_answers.mark(WRITTEN),
            "number": sent["number"] if _is_typed(sent) else 0,
            "most": live_answers.MOST_CHARACTERS,
            "words": [] if asked is None else _spans(text, asked),
            "looks": looks,
            "found": words_found or [],
            "unknown": _UNKNOWN,
            "idle": why or ("Choose a word with the cursor: what it pushes is told." * bool(looks)),
            "help": _HELP,
        },
        on_typed_change=typed,
        on_begin_change=begun,
    )
    if words_found is None:
        st.page_link(
            components.FEATURES,
            label="Find words",
            icon=":material/troubleshoot:",
            help="Words that go with a stage's effect are offered here once they have been found.",
            query_params=components.here(**{state.PART: state.FOUND}),
        )
    wrong = st.session_state.pop(_WRONG, None)
    if wrong is not None:
        st.warning(wrong)


def _is_typed(sent: Any) -> bool:
    return (
        isinstance(sent, dict)
        and isinstance(sent.get("number"), int | float)
        and isinstance(sent.get("text"), str)
        and len(sent["text"]) <= live_answers.MOST_CHARACTERS
    )


def _take(field: str, sent: Any) -> None:
    """Ask about what was typed; a callback, so the answer comes with the same rerun."""
    if _is_typed(sent):
        live_answers.put(Question({field: sent["text"]}, WRITTEN))
    else:
        st.session_state[_WRONG] = "The text cannot be read; reload the page."


def _begin(workspace: Workspace, example: object) -> None:
    """Start from an example of the set, or from any of them."""
    found = live_answers.example_named(workspace, example)
    if found is None:
        st.session_state[_WRONG] = "The set has no example of this name."
        return
    content = loaders.texts(workspace.at, workspace.examples.name, [found])[0]
    live_answers.start_from({name: text for name, text in content.items() if text is not None})


# -------------------------------------------------------------------------------------- words


def _spans(text: str, asked: Asked) -> list[tuple[int, int, bool]]:
    """Where words are as the browser counts: in units of 16 bits."""
    wide = np.cumsum([0, *(1 + (ord(each) > 0xFFFF) for each in text)]).tolist()
    return [(wide[word.start], wide[word.end], word.unknown) for word in asked.words]


def _looks(asked: Asked, behaviour: Behaviour, towards: str | None) -> list[dict[str, Any]]:
    """For the final model and each stage, how every word is shaded and what is said of it."""
    pushes, answer = asked.pushes, asked.answer
    assert pushes is not None
    about = answer.label if isinstance(answer.label, str) else None
    own = behaviour.sign * pushes.final[behaviour.name]
    looks = [_look(FINAL, own, behaviour, _pushed(about, behaviour), largest_effect([own]), True)]
    stages = {name: behaviour.sign * one[behaviour.name] for name, one in pushes.stages.items()}
    # Over all stages, so that shades of one can be compared with those of another.
    largest = largest_effect(list(stages.values()))
    for stage, gains in stages.items():
        more, less = _pushed(about, behaviour)
        said = (f"{more}, by way of {stage}", f"{less}, by way of {stage}")
        if towards is None:
            said = f"credit to {stage}", f"blame to {stage}"
        signed = signs_known(answer.trust.get(stage), behaviour.name)
        looks.append(_look(stage, gains, behaviour, said, largest, signed, towards is not None))
    return looks


def _pushed(about: str | None, behaviour: Behaviour) -> tuple[str, str]:
    """What a word of either sign does to the final model."""
    if about is None:
        return f"more {phrase(behaviour)}", f"less {phrase(behaviour)}"
    return f"towards {about}", f"away from {about}"


def _look(
    name: str,
    gains: np.ndarray,
    behaviour: Behaviour,
    said: tuple[str, str],
    largest: float,
    signed: bool,
    pushing: bool = True,
) -> dict[str, Any]:
    words: list[dict[str, str] | None] = []
    for gain in gains.tolist():
        if gain != gain:
            words.append(None)
            continue
        background, line = shade(gain, largest, signed, pushing)
        amount = amount_text(gain, behaviour)
        if not any(digit in amount for digit in "123456789"):
            told = "no push"
        else:
            told = f"{amount} {said[gain < 0]}" if signed else f"{amount}, the sign is uncertain"
        words.append({"background": background, "line": line, "said": told})
    return {"name": name, "words": words}


def _found(workspace: Workspace) -> list[dict[str, str]] | None:
    """Words that a search has found to go with a stage's effect, the strongest first.

    None where nobody has searched yet, and somebody could.
    """
    if workspace.effects is None:
        return []
    found = found_features(workspace.at, workspace.examples.name, workspace.effects.estimator)
    if found is None:
        return [] if settings.read_only() or not workspace.computable else None
    named: dict[str, tuple[float, str]] = {}
    for one in found.facts.stages:
        rows = strongest(found, one.stage)
        for row in rows[rows["kind"] == "word"].head(_FOUND).to_dict("records"):
            name, weight = str(row["name"]), float(row["weight"])
            if weight > named.get(name, (0.0, ""))[0]:
                named[name] = weight, one.stage
    order = sorted(named, key=lambda name: -named[name][0])[:_FOUND]
    return [
        {"word": name, "said": f"Found to go with the effect of {named[name][1]}"} for name in order
    ]


def notes(asked: Asked) -> Sequence[str]:
    """What was done to make the text fit, as the models read it."""
    return [f"As the models read it: {note}." for note in asked.notes]
