"""The own example: typed or uploaded, and answered at once by every model of the run.

The forward passes run in this process, so torch is loaded here, and only once somebody asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import PurePath
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from ..contracts import Behaviour, StageLensError
from ..results import ResultFacts
from ..runs.images import display_png
from ..runs.uploads import MOST_PIXELS, Fitted, fit_image
from ..summary import count_text, phrase
from . import browse, components, drilldown, loaders, settings, state
from .loaders import Effects
from .workspace import Workspace

if TYPE_CHECKING:
    from ..loaded_weights import LoadedWeights
    from ..own_example import Answer

_QUESTION = state.own("question")
_ANSWERED = state.own("answered")
_UPLOAD = "own-upload"
_LABEL = "own-label"
_KINDS = ("png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm")
_MANY = 200
"""More classes than this are typed, not listed."""
_LARGE = 256
"""Pixels on the longer side of the image as it is shown."""


@dataclass(frozen=True)
class _Question:
    """What was asked: an image file, or texts by the name of their field."""

    content: Mapping[str, bytes | str]
    name: str = ""

    @property
    def key(self) -> str:
        """The same for the same content."""
        return hashlib.sha256(repr(sorted(self.content.items())).encode()).hexdigest()


@st.cache_resource(show_spinner=False)
def _loaded() -> LoadedWeights:
    """The one of this server, shared between all sessions."""
    from ..loaded_weights import LoadedWeights

    return LoadedWeights(settings.memory())


@st.fragment
def panel(workspace: Workspace) -> None:
    """The box, and below it what the models say of what is in it."""
    if not workspace.computable:
        st.info("Without the run's task no model can be asked.", icon=":material/info:")
        return
    try:
        with st.container(border=True):
            label = _image_box(workspace)
        question = st.session_state.get(_QUESTION)
        if question is None:
            _invite(workspace)
            return
        with st.spinner("Asking the final model and every counterfactual"):
            answer, fitted = _answered(workspace, question, label)
    except StageLensError as error:
        components.error_state(str(error))
    else:
        _show(workspace, question, answer, fitted)


def _invite(workspace: Workspace) -> None:
    count = count_text(len(workspace.stages), "counterfactual")
    components.text_block(
        f"The final model and its {count}, one without each stage, answer at once: what is "
        "predicted, and which stage is to credit or to blame.",
        muted=True,
    )


# ---------------------------------------------------------------------------------------- asking


def _image_box(workspace: Workspace) -> str | None:
    """The place for an image, and the label that was chosen for it."""

    def take() -> None:
        file = st.session_state[_UPLOAD]
        asked = None
        if file is not None:
            asked = _Question({"image": file.getvalue()}, PurePath(file.name).name)
        st.session_state[_QUESTION] = asked

    left, right = st.columns([2, 1])
    with left:
        st.file_uploader(
            "An image of your own",
            type=list(_KINDS),
            key=_UPLOAD,
            on_change=take,
            help="It stays on this server, in memory, while your session lasts. Up to 10 MB and "
            f"{MOST_PIXELS // 10**6} million pixels; it is made to fit what the model takes. "
            + _memory_help(),
        )
    with right:
        return _label(workspace)


def _memory_help() -> str:
    return (
        "The weights of the models stay loaded within a limit on memory (STAGELENS_MEMORY, now "
        f"{settings.memory() / 1e9:.3g} GB)."
    )


def _label(workspace: Workspace) -> str | None:
    """The label that was chosen; None for none, or where the task has no classes."""
    classes = workspace.run.file.task.config.get("classes")
    if not isinstance(classes, list):
        return None
    text = (
        "What the right answer is. Without a label, the behaviours are about the final model's own "
        "answer."
    )
    none = "The model's own answer"
    if len(classes) <= _MANY:
        names = [str(name) for name in classes]
        return st.selectbox("Label", names, None, placeholder=none, key=_LABEL, help=text)
    return st.text_input("Label", key=_LABEL, placeholder=none, help=text) or None


def _answered(
    workspace: Workspace, question: _Question, label: str | None
) -> tuple[Answer, Fitted | None]:
    """The answer to what is asked now; models are asked only where something changed."""
    known = _known(workspace)
    estimate = None if known is None else (known.estimator, str(known.settings), known.set_digest)
    key = (workspace.at, estimate, question.key, label)
    before = st.session_state.get(_ANSWERED)
    if before is not None and before[0] == key:
        answered: tuple[Answer, Fitted | None] = before[1]
        return answered
    answered = _ask(workspace, question, label, known)
    st.session_state[_ANSWERED] = (key, answered)
    return answered


def _known(workspace: Workspace) -> ResultFacts | None:
    if workspace.effects is None:
        return None
    found = loaders.result(workspace.at, workspace.examples.name, workspace.effects.estimator)
    return None if found is None else found.facts


def _ask(
    workspace: Workspace, question: _Question, label: str | None, known: ResultFacts | None
) -> tuple[Answer, Fitted | None]:
    from .. import own_example

    task = workspace.run.task
    fitted = None
    content: dict[str, object] = dict(question.content)
    if (data := question.content.get("image")) is not None and isinstance(data, bytes):
        fitted = fit_image(data, task.image_shape)
        content["image"] = fitted.pixels
    example = own_example.own_example(task, content, label)
    return own_example.answer(workspace.run, example, known, _loaded()), fitted


# --------------------------------------------------------------------------------------- showing


def _show(workspace: Workspace, question: _Question, answer: Answer, fitted: Fitted | None) -> None:
    """What the models say: like an example of the set, without a way through the boundaries."""
    behaviours = {b.name: b for b in answer.behaviours}
    estimator = workspace.effects.estimator if workspace.effects else "task-vector"
    effects = Effects(estimator, answer.table, behaviours, answer.trust)
    grid = st.grid(3, min_column_width=240, gap="medium")
    with grid.cell():
        _input(question, fitted)
    with grid.cell(column_span=2):
        verdict, choice = st.columns([2, 1], vertical_alignment="bottom")
        with choice:
            behaviour = _behaviour(behaviours)
        row = _row(effects, behaviour, workspace.stages, answer)
        with verdict:
            _verdict(row)
        if answer.label is not None and not answer.label_given:
            components.text_block(
                f"No label was chosen, so the {phrase(behaviour)} is about this answer.", muted=True
            )
        drilldown.sentences(workspace.stages, effects, behaviour, row)
        said = f"Counterfactuals: {estimator}. Training noise is not known for an own example."
        components.text_block(said, muted=True)
        components.trust_badges(answer.trust.values(), behaviour.name)
    st.subheader("Answers", anchor=False)
    drilldown.answers(workspace.stages, effects, behaviour, row)
    st.subheader("Effect of each stage", anchor=False)
    drilldown.bars(workspace.stages, effects, behaviour, row)


def _behaviour(behaviours: Mapping[str, Behaviour]) -> Behaviour:
    names = sorted(behaviours, key=lambda name: name != "loss")
    name = st.selectbox(
        "Behaviour",
        names,
        key="behaviour",
        bind="query-params",
        help="One number per example measured on a model; stage effects are about it.",
    )
    return behaviours[name]


def _row(effects: Effects, behaviour: Behaviour, stages: list[str], answer: Answer) -> pd.Series:
    row = browse.example_frame(effects.table, behaviour, stages, ()).iloc[0]
    # The model's own answer is what the behaviours are about, but no verdict on the answers.
    return row if answer.label_given else row.where(row.index != "label", None)


def _verdict(row: pd.Series) -> None:
    sure = f", {100 * row['confidence']:.0f} % sure" if isfinite(row["confidence"]) else ""
    said = components.plain(f"The final model answers {row['prediction']}{sure}")
    st.subheader(said, anchor=False)


def _input(question: _Question, fitted: Fitted | None) -> None:
    if fitted is None:
        return
    st.image(
        display_png(fitted.pixels, _LARGE),
        width="stretch",
        alt="The own example as the model sees it",
    )
    said = "; ".join(fitted.changes)
    components.text_block(
        f"{question.name}, as the model sees it: {said}."
        if said
        else f"{question.name}, as it is in the file.",
        muted=True,
    )
