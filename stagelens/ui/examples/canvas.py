"""The canvas: an image drawn by hand, cell by cell, on which every model answers.

Drawn by a component of our own, since no control of Streamlit's can be painted on. What is painted
stays in the browser, which sends the whole drawing when a stroke has ended; a drawing is then an
own example like an uploaded file.
"""

from __future__ import annotations

import numpy as np
import streamlit as st

from stagelens.contracts import StageLensError
from stagelens.runs.sets.images import encode_pixels
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import state
from stagelens.ui.reading import loaders

from . import drawings, editor, live_answers
from .drawings import Paper
from .live_answers import Question

DRAWING = "your drawing"
"""What a drawing is called where a file has its name."""

_KEY = "canvas"
_WRONG = state.session_key("drawn-wrong")


_component = editor.component("canvas")


def show(workspace: Workspace, paper: Paper, pixels: np.ndarray | None) -> None:
    """The canvas, and what was wrong with what it sent.

    Args:
        workspace: Of its set the examples can be drawn on.
        paper: Of the task.
        pixels: The own example that was asked last, as the models see it; None for none.
    """

    def drawn() -> None:
        sent = st.session_state[_KEY].get("drawn")
        _take(paper, sent.get("cells") if isinstance(sent, dict) else sent)

    def begun() -> None:
        asked = st.session_state[_KEY].get("begin")
        if isinstance(asked, dict):
            _begin(workspace, paper, asked.get("example"))

    try:
        cells = drawings.cells_of(pixels, paper)
    except StageLensError as error:
        cells = drawings.cells_of(None, paper)
        st.session_state[_WRONG] = f"This image cannot be drawn on: {error}."
    _component(
        key=_KEY,
        data={
            "channels": paper.channels,
            "height": paper.height,
            "width": paper.width,
            "white": paper.white,
            "cells": cells,
            "from": live_answers.mark(DRAWING),
        },
        on_drawn_change=drawn,
        on_begin_change=begun,
    )
    wrong = st.session_state.pop(_WRONG, None)
    if wrong is not None:
        st.warning(wrong)


def _take(paper: Paper, cells: object) -> None:
    """Ask about what was drawn; a callback, so the answer comes with the same rerun."""
    try:
        pixels = drawings.received(cells, paper)
    except StageLensError as error:
        st.session_state[_WRONG] = f"{str(error).capitalize()}."
        return
    live_answers.put(Question({"image": encode_pixels(pixels)}, DRAWING))


def _begin(workspace: Workspace, paper: Paper, example: object) -> None:
    """Start from an example of the set, or from any of them."""
    found = live_answers.example_named(workspace, example)
    if found is None:
        st.session_state[_WRONG] = "The set has no example of this name."
        return
    start_from(workspace, paper, found)


def start_from(workspace: Workspace, paper: Paper, example_id: str) -> None:
    """Put an example of the set on the canvas, and open it."""
    example = loaders.evaluation_set(workspace.at, workspace.examples.name).by_id([example_id])[0]
    try:
        cells = drawings.cells_of(np.asarray(example.input["image"]), paper)
    except StageLensError as error:
        st.session_state[_WRONG] = f"{example_id} cannot be drawn on: {error}."
        return
    pixels = drawings.received(cells, paper)
    live_answers.put(Question({"image": encode_pixels(pixels)}, example_id))
    st.session_state[state.VIEW] = state.OWN


def button(workspace: Workspace, example_id: str) -> None:
    """Opens an example of the set on the canvas, where the task has one."""
    if not workspace.computable:
        return
    # By the config: the task itself would bring torch into the server for a look at an example.
    config = workspace.run.file.task.config
    try:
        paper = drawings.paper_for(config.get("image_shape"), config.get("scale"))
    except StageLensError:
        return
    st.button(
        "Draw on it and ask again",
        icon=":material/edit:",
        key="draw-on",
        on_click=start_from,
        args=(workspace, paper, example_id),
        help="Opens it as an own example.",
    )
    # The click reruns this fragment only, and the tabs that it switches are outside.
    if st.session_state.get("draw-on"):
        st.rerun()
