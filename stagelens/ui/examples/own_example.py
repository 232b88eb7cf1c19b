"""The own example: typed or uploaded, and answered at once by every model of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import PurePath

import pandas as pd
import streamlit as st

from stagelens.contracts import Behaviour, StageLensError
from stagelens.estimators.registry import free_estimator
from stagelens.runs.sets.images import display_png
from stagelens.runs.sets.uploads import MOST_PIXELS
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, inputs
from stagelens.ui.pieces.trust_marks import trust_badges
from stagelens.ui.reading import browse
from stagelens.ui.reading.loaders import Effects
from stagelens.ui.server import settings
from stagelens.wording.numbers import count_text, phrase
from stagelens.wording.sentences import Part, Sentence, is_certain

from . import answers, canvas, drawings, drilldown, live_answers, tokens
from .drawings import Paper
from .live_answers import Asked, Question

_KINDS = ("png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm")
_MANY = 200
"""With more classes than this, the label is typed instead of picked from a list."""
_LARGE = 256
"""Pixels on the longer side of the image as it is shown."""
_UPLOAD = live_answers.widget("upload")
_LABEL = live_answers.widget("label")
_FORM = live_answers.widget("form")
_FORM_NAMES = {
    ("prompt", "completion", "rejected"): "Prompt and completion",
    ("text",): "Whole text",
}
"""Input fields that are asked for together, and the name of that choice."""
_HELP = {
    "completion": "The text that follows the prompt. The two are joined as they are, so a "
    "completion that follows a space must begin with that space.",
    "rejected": "Optional: another completion of the same prompt, to compare the first one with.",
}
_STAYS = "It stays in this server's memory while your session lasts."


@st.fragment
@components.errors_told()
def own_example_tab(workspace: Workspace) -> None:
    """The box, and below it what the models say about its content."""
    if not workspace.computable:
        st.info("No model can be asked without the run's task.", icon=":material/info:")
        return
    paper = why = None
    if workspace.noun == "image":
        try:
            paper = drawings.paper_of(workspace.run.task)
        except StageLensError as error:
            why = f"No canvas: {error}."
    if paper is not None:
        _drawn(workspace, paper)
        return
    try:
        with st.container(border=True):
            label = (_image_box if workspace.noun == "image" else _text_box)(workspace)
        if why is not None:
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


def _drawn(workspace: Workspace, paper: Paper) -> None:
    """The canvas, and beside it what the models say about what is on it."""
    left, right = st.columns([1, 2], gap="medium")
    asked = None
    with left:
        # Filled last, because it also shows an uploaded file as the models see it.
        board = st.container()
        label = _label(workspace)
        _upload()
    with right:
        question = live_answers.question()
        try:
            if question is None:
                _invite(workspace)
            else:
                asked = live_answers.answered(workspace, question, label)
                told = _told(workspace, asked)
                _verdict(workspace, told.row)
                _changed(workspace, told)
                _bars(workspace, told)
                _words(workspace, told)
        except StageLensError as error:
            components.error_state(str(error))
    with board:
        canvas.show(workspace, paper, None if asked is None else asked.pixels)
        if question is not None and asked is not None:
            components.text_block(_of_image(question, asked), muted=True)


def _invite(workspace: Workspace) -> None:
    count = count_text(len(workspace.stages), "counterfactual")
    components.text_block(
        f"The final model and its {count}, one without each stage, answer at once: what is "
        "predicted, and which stage is to credit or to blame or, without a label, which pushes "
        "towards the answer.",
        muted=True,
    )


# ---------------------------------------------------------------------------------------- asking


def _image_box(workspace: Workspace) -> str | None:
    """The upload of an image; returns the label chosen for it."""
    left, right = st.columns([2, 1])
    with left:
        _upload()
    with right:
        return _label(workspace)


def _upload() -> None:
    def take() -> None:
        # None once the file is removed: then nothing is asked. A browser may send a whole path.
        file = st.session_state[_UPLOAD]
        live_answers.put(file and Question({"image": file.getvalue()}, PurePath(file.name).name))

    st.file_uploader(
        "An image of your own",
        type=list(_KINDS),
        key=_UPLOAD,
        disabled=settings.read_only(),
        on_change=take,
        help=settings.READ_ONLY
        if settings.read_only()
        else f"{_STAYS} Up to 10 MB and {MOST_PIXELS // 10**6} million pixels; it is converted "
        f"to what the model takes. {_memory_help()}",
    )


def _text_box(workspace: Workspace) -> str | None:
    """The fields for texts; returns the label chosen for them."""
    fields = _fields(workspace)

    def take() -> None:
        typed = {field: st.session_state[live_answers.widget(field)] for field in fields}
        content = {field: text for field, text in typed.items() if text}
        live_answers.put(Question(content) if content else None)

    # In a form, so that the models are asked once and not after every field.
    with st.form(_FORM, border=False):
        for field in fields:
            st.text_area(
                "A text of your own" if field == "text" else inputs.title(field),
                key=live_answers.widget(field),
                max_chars=live_answers.MOST_CHARACTERS,
                height=120 if field == "text" else 68,
                help=_HELP.get(field) or f"{_STAYS} {_memory_help()}",
                persist_state="session",
            )
        label = _label(workspace)
        st.form_submit_button(
            "Ask the models",
            type="primary",
            icon=":material/forum:",
            on_click=take,
        )
    return label


def _fields(workspace: Workspace) -> Sequence[str]:
    """The input fields to ask for: the set's, or the chosen ones of a task with several forms."""
    own = workspace.examples.inputs
    known = workspace.traits
    if known is None or len(known.input_forms) == 1:
        return own
    forms = {_FORM_NAMES[form]: form for form in known.input_forms}
    usual = next(iter(forms))
    kind = st.segmented_control(
        "What is asked about",
        list(forms),
        default=_FORM_NAMES[own] if own in known.input_forms else usual,
        key=live_answers.widget("kind"),
        required=True,
        persist_state="session",
    )
    return forms[kind or usual]


def _memory_help() -> str:
    return (
        "The models' weights stay in memory within a limit (STAGELENS_MEMORY, now "
        f"{settings.memory() / 1e9:.3g} GB)."
    )


def _label(workspace: Workspace) -> str | None:
    """The chosen label; None without one, or where the task has no classes."""
    classes = workspace.run.file.task.config.get("classes")
    typed = workspace.traits is not None and workspace.traits.typed_label
    if not isinstance(classes, list):
        classes = []
    if not typed and not classes:
        return None
    text = (
        "The right answer. Without a label, the behaviours are about the final model's own answer."
    )
    none = "The model's own answer"
    if typed or len(classes) > _MANY:
        return st.text_input("Label", key=_LABEL, placeholder=none, help=text) or None
    names = [str(name) for name in classes]
    if workspace.traits is not None and workspace.traits.several_labels:
        chosen = st.multiselect(
            "Label", names, placeholder=none, key=_LABEL, help=text, persist_state="session"
        )
        return ", ".join(chosen) or None
    return st.selectbox(
        "Label", names, None, placeholder=none, key=_LABEL, help=text, persist_state="session"
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
    has_value = [name for name in effects.behaviours if effects.of(name)["final"].notna().any()]
    # Where none has a value, the control still needs something to offer.
    known = has_value or list(effects.behaviours)
    own = workspace.of_one(effects)
    if own.name in known:
        return own
    components.text_block(
        f"The {own.name} of this example is not known: the {known[0]} is shown.", muted=True
    )
    return effects.behaviours[known[0]]


def _row(workspace: Workspace, effects: Effects, behaviour: Behaviour, asked: Asked) -> pd.Series:
    parts = [effects.of(behaviour.name)]
    row = browse.example_frame(parts, behaviour, workspace.stages, ()).iloc[0]
    # Without a given label, behaviours are about the model's own answer: none is right or wrong.
    return row if asked.answer.label_given else row.where(row.index != "label", None)


def _verdict(workspace: Workspace, row: pd.Series) -> None:
    said = "goes on with" if workspace.continues_text else "answers"
    sure = f", {100 * row['confidence']:.0f} % sure" if isfinite(row["confidence"]) else ""
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
