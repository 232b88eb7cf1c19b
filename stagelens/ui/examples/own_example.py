"""The own example: typed or uploaded, and answered at once by every model of the run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import isfinite

import pandas as pd
import streamlit as st

from stagelens.contracts import Behaviour, StageLensError
from stagelens.estimators.registry import free_estimator
from stagelens.runs.sets.images import display_png
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, inputs
from stagelens.ui.pieces.trust_marks import trust_badges
from stagelens.ui.reading import browse
from stagelens.ui.reading.loaders import Effects
from stagelens.ui.server import settings
from stagelens.wording.numbers import certainty_text, count_text, phrase
from stagelens.wording.sentences import Part, Sentence, is_certain

from . import (
    answers,
    canvas,
    drawings,
    drilldown,
    live_answers,
    own_answers,
    own_form,
    tokens,
    word_board,
)
from .drawings import Paper
from .live_answers import Asked, Question

_LARGE = 256
"""Pixels on the longer side of the image as it is shown."""


@st.fragment
@components.errors_told()
def own_example_tab(workspace: Workspace) -> None:
    """The box, and below it what the models say about its content."""
    if not workspace.computable:
        st.info("No model can be asked without the run's task.", icon=":material/info:")
        return
    if workspace.noun == "image":
        try:
            _live(workspace, drawings.paper_of(workspace.run.task))
        except StageLensError as error:
            _asked_once(workspace, (), f"No canvas: {error}.")
        return
    fields = own_form.fields(workspace)
    if fields == own_form.ANSWERS:
        own_answers.section(workspace)
    elif why := _not_live(workspace, fields):
        _asked_once(workspace, fields, why)
    else:
        _live(workspace, fields[0])


def _not_live(workspace: Workspace, fields: Sequence[str]) -> str:
    """Why texts are not answered while they are typed; empty where they are."""
    if len(fields) > 1:
        return (
            "Not answered while you type: an answer is about all of these texts together, so the "
            "models are asked when you say that they are there."
        )
    end = workspace.run.last.facts.end
    size = 0 if end is None else sum(file.bytes for file in end.shards)
    needed = size * (len(workspace.stages) + 1)
    if needed > settings.memory():
        return (
            f"Not answered while you type: all models together take {needed / 1e9:.3g} GB, more "
            "than stays in memory (STAGELENS_MEMORY), so each question reads them anew."
        )
    return ""


def _asked_once(workspace: Workspace, fields: Sequence[str], why: str) -> None:
    """A form, and below it what the models say when it was sent."""
    try:
        with st.container(border=True):
            label = (
                own_form.text_box(workspace, fields) if fields else own_form.image_box(workspace)
            )
        components.text_block(why, muted=True)
        question = live_answers.question()
        if question is None:
            _invite(workspace)
            return
        with st.spinner("Asking the final model and every counterfactual"):
            asked = live_answers.answered(workspace, question, label)
    except StageLensError as error:
        components.error_state(str(error))
    else:
        _show(workspace, question, asked)


def _live(workspace: Workspace, board: Paper | str) -> None:
    """What is drawn or typed, and beside it what the models say about it as it changes.

    Args:
        workspace: What is open.
        board: What is drawn on, or the field that a text is typed into.
    """
    left, right = st.columns([1, 2] if isinstance(board, Paper) else [2, 3], gap="medium")
    asked = told = None
    with left:
        # Filled last, because it also shows what the models made of it.
        place = st.container()
        label = own_form.label(workspace)
        if isinstance(board, Paper):
            own_form.upload()
    with right:
        question = live_answers.question()
        try:
            if question is None or question.is_blank:
                _invite(workspace)
            else:
                # Later answers come before anybody could read that they are on their way.
                first = not live_answers.is_loaded()
                with st.spinner("Loading the models") if first else nullcontext():
                    asked = live_answers.answered(workspace, question, label)
                told = _told(workspace, asked)
                _verdict(workspace, told.row)
                if not workspace.continues_text:
                    _changed(workspace, told)
                _bars(workspace, told)
                _words(workspace, told)
        except StageLensError as error:
            components.error_state(str(error))
    with place:
        if isinstance(board, Paper):
            canvas.show(workspace, board, None if asked is None else asked.pixels)
            if question is not None and asked is not None:
                components.text_block(_of_image(question, asked), muted=True)
            return
        shown = (None, None) if told is None else (told.behaviour, told.towards)
        word_board.show(workspace, board, asked, *shown)
        for note in () if asked is None else word_board.notes(asked):
            components.text_block(note)
    if asked is not None:
        _tokens(workspace, asked)


def _invite(workspace: Workspace) -> None:
    count = count_text(len(workspace.stages), "counterfactual")
    components.text_block(
        f"The final model and its {count}, one without each stage, answer at once: what is "
        "predicted, and which stage is to credit or to blame or, without a label, which pushes "
        "towards the answer.",
        muted=True,
    )


# --------------------------------------------------------------------------------------- showing


@dataclass(frozen=True)
class _Told:
    """An answer in the form in which examples of the set are shown.

    Attributes:
        effects: Of this one example.
        behaviour: The one to show.
        row: Its answers and effects side by side.
        towards: The answer that the behaviour is about, where nobody has said that it is right.
    """

    effects: Effects
    behaviour: Behaviour
    row: pd.Series
    towards: str | None


def _told(workspace: Workspace, asked: Asked) -> _Told:
    answer = asked.answer
    behaviours = {b.name: b for b in answer.behaviours}
    # Before anything is measured, the estimator that needs nothing but weights answers.
    estimator = workspace.effects.estimator if workspace.effects else free_estimator().name
    effects = Effects.holding(estimator, answer.table, behaviours, answer.trust)
    behaviour = _behaviour(workspace, effects)
    row = _row(workspace, effects, behaviour, asked)
    return _Told(effects, behaviour, row, None if answer.label_given else answer.label)


def _show(workspace: Workspace, question: Question, asked: Asked) -> None:
    """What the models say, as for an example of the set but without its path."""
    grid = st.grid(3, min_column_width=240, gap="medium")
    with grid.cell():
        _input(question, asked)
    with grid.cell(column_span=2):
        told = _told(workspace, asked)
        _verdict(workspace, told.row)
        _words(workspace, told)
    _bars(workspace, told)
    _tokens(workspace, asked)


def _words(workspace: Workspace, told: _Told) -> None:
    effects, behaviour = told.effects, told.behaviour
    if told.towards is not None:
        components.text_block(
            f"No label was chosen, so the {phrase(behaviour)} is about this answer, right or "
            "wrong: stages push towards it or away from it, and there is no credit or blame.",
            muted=True,
        )
    drilldown.sentences(workspace, effects, behaviour, told.row)
    said = f"Counterfactuals: {effects.estimator}. Training noise is not known for an own example."
    components.text_block(said, muted=True)
    trust_badges(effects.trust.values(), behaviour.name)


def _bars(workspace: Workspace, told: _Told) -> None:
    about = (workspace, told.effects, told.behaviour, told.row)
    drilldown.bars(*about, answers.answers_html(*about), own=True, towards=told.towards)


def _tokens(workspace: Workspace, asked: Asked) -> None:
    answer = asked.answer
    if answer.tokens is not None:
        tokens.token_effects(workspace.stages, answer.tokens, answer.behaviours[0], answer.trust)


def _behaviour(workspace: Workspace, effects: Effects) -> Behaviour:
    """The behaviour to show, of those that have a value on this example."""

    def has_value(name: str) -> bool:
        return bool(effects.of(name)["final"].notna().any())

    own = workspace.of_one(effects)
    if has_value(own.name):
        return own
    # Where none has a value, the control still needs something to offer.
    known = next((name for name in effects.behaviours if has_value(name)), own.name)
    if known != own.name:
        components.text_block(
            f"The {own.name} of this example is not known: the {known} is shown.", muted=True
        )
    return effects.behaviours[known]


def _row(workspace: Workspace, effects: Effects, behaviour: Behaviour, asked: Asked) -> pd.Series:
    parts = [effects.of(behaviour.name)]
    row = browse.example_frame(parts, behaviour, workspace.stages, ()).iloc[0]
    # Without a given label, behaviours are about the model's own answer: none is right or wrong.
    return row if asked.answer.label_given else row.where(row.index != "label", None)


def _verdict(workspace: Workspace, row: pd.Series) -> None:
    said = "goes on with" if workspace.continues_text else "answers"
    sure = f", {certainty_text(row['confidence'])}" if isfinite(row["confidence"]) else ""
    st.header(components.plain(f"The final model {said} {row['prediction']}{sure}"), anchor=False)


def _changed(workspace: Workspace, told: _Told) -> None:
    """Without which stages the answer would be another one, first of all."""
    found = []
    for stage in workspace.stages:
        trust, without = told.effects.trust.get(stage), told.row[browse.answer_column(stage)]
        refused = trust is None or trust.trust == "refused"
        if not refused and without != told.row["prediction"]:
            perhaps = "" if is_certain(trust, told.behaviour) else "perhaps "
            parts = (Part("Without "), Part(stage, "stage"), Part(f": {perhaps}"))
            found.append(Sentence((*parts, Part(str(without), "amount"), Part("."))))
    same = Sentence((Part("The answer is the same without any one stage that is known."),))
    components.sentences(found or [same], size="1.15rem", brief=True)


def _input(question: Question, asked: Asked) -> None:
    notes = "; ".join(asked.notes)
    if asked.pixels is None:
        inputs.texts({field: str(text) for field, text in question.content.items()})
        if notes:
            components.text_block(f"As the model reads it: {notes}.")
        return
    inputs.image(
        display_png(asked.pixels, _LARGE, framed=True), "The own example as the model sees it"
    )
    components.text_block(_of_image(question, asked), muted=True)


def _of_image(question: Question, asked: Asked) -> str:
    """Where an image is from, and what was done to it."""
    notes = "; ".join(asked.notes)
    if question.name == canvas.DRAWING:
        return f"The models see {question.name}."
    said = f"as the model sees it: {notes}" if notes else "as it is in the file"
    return f"{question.name}, {said}."
