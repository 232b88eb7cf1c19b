"""What a canvas sends is taken only where it is a drawing of the task's size."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from stagelens.contracts import StageLensError
from stagelens.tasks.image_classification import ImageClassification
from stagelens.ui.examples.drawings import Paper, cells_of, paper_of, received

GREY, COLOURS = Paper(1, 4, 6, 240), Paper(3, 4, 6, 255)


def task(*shape: int, scale: float = 255.0) -> ImageClassification:
    return ImageClassification(["a", "b"], shape, scale=scale)


def encoded(count: int) -> str:
    return base64.b64encode(bytes(range(count))).decode()


@pytest.mark.parametrize("paper", [GREY, COLOURS])
def test_what_is_drawn_on_comes_back_as_it_was(paper: Paper) -> None:
    shape = (4, 6) if paper.channels == 1 else (4, 6, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    back = received(cells_of(pixels, paper), paper)
    assert back.dtype == np.uint8 and np.array_equal(back, pixels)
    assert not received(cells_of(None, paper), paper).any()


@pytest.mark.parametrize(
    "cells",
    [None, 3, [0] * 24, {"cells": "AAAA"}, b"A" * 32, "", encoded(23)[:-1], encoded(21),
     encoded(25), encoded(72), "A" * 10**7, "!" * 32, "é" * 32, "A" * 31 + "=", " " + "A" * 31],
)  # fmt: skip
def test_anything_else_is_refused_in_words(cells: Any) -> None:
    with pytest.raises(StageLensError, match=r"the drawing .*; reload the page"):
        received(cells, GREY)


def test_examples_are_drawn_on_as_the_task_reads_them() -> None:
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    colours = np.repeat(grey[:, :, None], 3, axis=2)
    see_through = np.concatenate([colours, colours[:, :, :1]], axis=2)
    assert np.array_equal(received(cells_of(colours, GREY), GREY), grey)
    assert np.array_equal(received(cells_of(grey, COLOURS), COLOURS), colours)
    assert np.array_equal(received(cells_of(see_through, COLOURS), COLOURS), colours)
    assert received(cells_of(np.full((4, 6), 0.5), GREY), GREY).tolist() == [[120] * 6] * 4


@pytest.mark.parametrize(
    ("pixels", "said"),
    [(np.zeros((6, 4), np.uint8), "size"), (np.full((4, 6), 300, np.uint16), "8 bits"),
     (np.full((4, 6), -0.5), "outside 0 and 1"), (np.full((4, 6), 2.0), "outside 0 and 1")],
)  # fmt: skip
def test_what_no_canvas_holds_is_not_put_on_one(pixels: np.ndarray, said: str) -> None:
    with pytest.raises(StageLensError, match=said):
        cells_of(pixels, GREY)


def test_a_canvas_has_the_size_of_the_tasks_images() -> None:
    assert paper_of(task(1, 8, 8, scale=240)) == Paper(1, 8, 8, 240)
    assert paper_of(task(3, 64, 48)) == Paper(3, 64, 48, 255)


@pytest.mark.parametrize(
    ("shape", "scale", "said"),
    [((1, 65, 8), 255, "8 × 65 pixels, and at most 64 × 64"), ((2, 8, 8), 255, "2 channels"),
     ((1, 8, 8), 65535, "65535, and 8 bits")],
)  # fmt: skip
def test_a_task_without_a_canvas_says_why(shape: tuple[int, ...], scale: float, said: str) -> None:
    with pytest.raises(StageLensError, match=said):
        paper_of(task(*shape, scale=scale))
