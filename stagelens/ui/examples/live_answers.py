"""Asking a run's models about one example, in this process; torch is loaded only then."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import choice
from secrets import token_hex
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from stagelens.contracts import TaskError
from stagelens.effects.results import ResultFacts
from stagelens.runs.sets.uploads import fit_image
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import state
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Source
from stagelens.ui.server import forward_passes, settings

if TYPE_CHECKING:
    from stagelens.analyses.own_example import Answer
    from stagelens.analyses.own_words import Pushes, Word
    from stagelens.measuring.loaded_weights import LoadedWeights

MOST_CHARACTERS = 200_000
"""Longest text that is accepted; a task truncates it to far fewer tokens anyway."""

PROMPT = "asked"
"""Names the widget of a prompt that models are to answer."""
_QUESTION = state.session_key("question")
_ANSWERED = state.session_key("answered")
_FROM = state.session_key("begun-with")
"""What the browser began with, and a word for it."""


@dataclass(frozen=True)
class Question:
    """What was asked: an image file, or texts by the name of their field.

    Attributes:
        content: The input, by the task's fields.
        name: The file's name; empty for texts.
    """

    content: Mapping[str, bytes | str]
    name: str = ""

    @property
    def key(self) -> str:
        """The same for the same content."""
        # Sorted: the same texts are the same question in whichever order they were filled in.
        return hashlib.sha256(repr(sorted(self.content.items())).encode()).hexdigest()

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing to ask about, but spaces perhaps; an empty file is told of."""
        return all(isinstance(part, str) and not part.strip() for part in self.content.values())


@dataclass(frozen=True)
class Asked:
    """An answer, and what it is about.

    Attributes:
        answer: What the models say.
        pixels: The image as the models see it; None for texts.
        notes: What was done to make the input fit.
        words: Of a single text.
        pushes: What each of them pushes; None where that is not asked.
        unshaded: Why it is not.
    """

    answer: Answer
    pixels: np.ndarray | None
    notes: tuple[str, ...]
    words: tuple[Word, ...] = ()
    pushes: Pushes | None = None
    unshaded: str = ""


def question() -> Question | None:
    """What this session asked last."""
    asked: Question | None = st.session_state.get(_QUESTION)
    return asked


def put(asked: Question | None) -> None:
    """Ask something else, or nothing."""
    st.session_state[_QUESTION] = asked


def mark(own: str) -> str:
    """Another word whenever the browser is to begin with something else than it shows.

    Args:
        own: The name of questions that came from the browser, which it need not be told.
    """
    asked = question()
    key = "" if asked is None else asked.key
    before, word = st.session_state.get(_FROM, (None, ""))
    if asked is not None and asked.name == own:
        key, word = own, word or token_hex(4)
    elif key != before:
        word = token_hex(4)
    st.session_state[_FROM] = key, word
    return str(word)


def example_named(workspace: Workspace, example: object) -> str | None:
    """The example that a browser asks to begin with, or any; None if the set has none such."""
    ids = loaders.examples(workspace.at, workspace.examples.name)["example_id"]
    if example is None:
        return str(choice(ids.tolist()))
    return example if isinstance(example, str) and example in set(ids) else None


def widget(field: str) -> str:
    """Key of the widget that a text of this field is typed into."""
    return f"{state.OWN_WIDGET}{field}"


def start_from(content: Mapping[str, str]) -> None:
    """Put texts into the box, and open it."""
    # A text of the set may be longer than what the box accepts; what it shows is what is asked.
    kept = {field: text[:MOST_CHARACTERS] for field, text in content.items()}
    for field, text in kept.items():
        st.session_state[widget(field)] = text
    st.session_state[widget(PROMPT)] = kept.get("prompt") or kept.get("text", "")
    put(Question(kept))
    st.session_state[state.VIEW] = state.OWN


@st.cache_resource(show_spinner=False)
def _loaded() -> LoadedWeights:
    """The weights in memory, of which a server has one store for all sessions."""
    # Imports torch, which would make the first visit of every page some seconds slower.
    from stagelens.measuring.loaded_weights import LoadedWeights

    return LoadedWeights(settings.memory())


def _known(
    at: Source, set_name: str, estimate: str | None
) -> tuple[ResultFacts | None, dict[str, ResultFacts]]:
    """What a table says of itself, and for stages that it lacks the table that is shown instead."""
    found = None if estimate is None else loaders.effects(at, set_name, estimate)
    if estimate is None or found is None:
        return None, {}
    other = {stage: name for stage, name in found.sources.items() if name != estimate}
    tables = {stage: loaders.facts(at, set_name, name) for stage, name in other.items()}
    known = {stage: table for stage, table in tables.items() if table is not None}
    return loaders.facts(at, set_name, estimate), known


def is_loaded() -> bool:
    """Whether this server has asked models before: the first answer waits for torch."""
    return "stagelens.measuring.loaded_weights" in sys.modules


def answered(workspace: Workspace, asked: Question, label: str | None) -> Asked:
    """The answer to a question; models are asked only if something has changed.

    Raises:
        StageLensError: The input does not fit, or the models cannot be asked; says what to do.
    """
    estimate = None if workspace.effects is None else workspace.effects.estimator
    key = (workspace.at, workspace.examples.name, estimate, asked.key, label)
    # In the session, not in a shared cache: own examples are private and end with the session.
    before = st.session_state.get(_ANSWERED)
    if before is None or before[0] != key:
        before = st.session_state[_ANSWERED] = (key, _ask(workspace, asked, label, estimate))
    found: Asked = before[1]
    return found


def _ask(workspace: Workspace, asked: Question, label: str | None, estimate: str | None) -> Asked:
    from stagelens.analyses import own_example, own_words

    task = workspace.run.task
    # A copy, because pixels replace the file in it, and the question is found by its bytes.
    content: dict[str, object] = dict(asked.content)
    pixels = None
    notes: list[str] = []
    if isinstance(data := content.get("image"), bytes):
        fitted = fit_image(data, task.image_shape, getattr(task, "scale", None))
        content["image"] = pixels = fitted.pixels
        notes += fitted.changes
    try:
        notes += [note for note in [task.check_input(content)] if note]
    except ValueError as error:
        raise TaskError(f"this {task.input_kind} {error}") from None
    example = own_example.own_example(task, content, label)
    known, others = _known(workspace.at, workspace.examples.name, estimate)
    # Torch's threads, random state and modules are shared by all sessions of a server.
    given = (known, _loaded(), others)
    with forward_passes.alone():
        answer = own_example.answer(workspace.run, example, *given)
        if set(content) != {"text"}:
            return Asked(answer, pixels, tuple(notes))
        words = own_words.words_of(task, str(content["text"]))
        pushes, why = None, own_words.why_unshaded(workspace.run, words)
        if not why:
            labelled = replace(example, label=answer.label)
            pushes = own_words.pushes(workspace.run, labelled, words, *given)
    return Asked(answer, None, tuple(notes), tuple(words), pushes, why)


@st.cache_resource(max_entries=64, show_spinner=False)
def about(at: Source, set_name: str, estimate: str, example_id: str) -> Answer:
    """What the models say about an example of a set, chiefly its stage effects per token.

    Raises:
        StageLensError: The models cannot be asked; says what to do.
    """
    from stagelens.analyses import own_example

    example = loaders.evaluation_set(at, set_name).by_id([example_id])[0]
    known, others = _known(at, set_name, estimate)
    with forward_passes.alone():
        return own_example.answer(loaders.run(at), example, known, _loaded(), others)
