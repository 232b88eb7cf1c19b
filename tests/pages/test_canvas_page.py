"""The canvas of the own example: what it is given, and what its drawings are answered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from stagelens.effects.results import load_result
from stagelens.runs.run import open_run
from stagelens.runs.sets.images import encode_pixels
from stagelens.ui.examples import canvas, drawings, live_answers
from stagelens.ui.examples.drawings import Paper
from stagelens.ui.examples.live_answers import Question
from tests.pages.reading import boards, check, words

PAGE, OWN = "pages/1_Examples.py", "run=digits&view=Own+example"
PAPER = Paper(1, 8, 8, 240)


def given(app: AppTest) -> dict[str, Any]:
    """What the canvas is given."""
    (one,) = boards(check(app))
    return one


def ask(app: AppTest, pixels: np.ndarray, name: str = canvas.DRAWING) -> AppTest:
    app.session_state["stagelens:question"] = Question({"image": encode_pixels(pixels)}, name)
    return app.run()


def test_an_empty_canvas_of_the_tasks_size_is_offered(open_page, demo: Path) -> None:
    shown = given(open_page(demo.parent, OWN, PAGE))
    assert (shown["height"], shown["width"], shown["channels"], shown["white"]) == (8, 8, 1, 240)
    assert not drawings.received(shown["cells"], PAPER).any()


def test_a_drawing_is_answered_as_the_same_image_of_the_set(open_page, demo: Path) -> None:
    run = open_run(demo)
    pixels = run.evaluation_set("test").by_id(["stamped-003"])[0].input["image"]
    app = ask(open_page(demo.parent, OWN, PAGE), pixels)
    shown, said = given(app), words(app)
    assert np.array_equal(drawings.received(shown["cells"], PAPER), pixels)
    result = load_result(run, "test", "effects", "replay")
    assert result is not None
    rows = result.table[result.table["example_id"] == "stamped-003"].drop_duplicates("stage")
    final = rows["prediction"].iloc[0]
    assert f"The final model answers {final}" in said and "The models see your drawing." in said
    for stage, without in zip(rows["stage"], rows["prediction_without"], strict=True):
        told = re.search(rf"Without\s+{stage}\s*:\s+{without}\s*\.", said)
        assert (told is not None) == (without != final)


def test_the_browser_keeps_its_drawing_until_something_else_is_put_there(
    open_page, demo: Path
) -> None:
    app = open_page(demo.parent, OWN, PAGE)
    stroke, other = np.zeros((8, 8), np.uint8), np.full((8, 8), 9, np.uint8)
    begun = given(ask(app, other, "clean-003"))["from"]
    assert given(app.run())["from"] == begun
    stroke[2:6, 3] = 240
    assert given(ask(app, stroke))["from"] == begun
    assert given(ask(app, other))["from"] == begun
    # The same once more is something else than what was drawn meanwhile.
    assert given(ask(app, other, "clean-003"))["from"] != begun


def test_hostile_cells_are_told_and_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    state: dict[str, object] = {}
    monkeypatch.setattr(canvas.st, "session_state", state)
    for cells in (None, 7, "A" * 10**6, "<script>", {"cells": 1}):
        canvas._take(PAPER, cells)
        assert str(state.pop("stagelens:drawn-wrong")).startswith("The drawing ")
        assert live_answers.question() is None


def test_where_nothing_may_be_written_one_may_draw(
    open_page, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGELENS_READ_ONLY", "1")
    app = ask(open_page(demo.parent, OWN, PAGE), np.eye(8, dtype=np.uint8) * 240)
    assert given(app) and "The final model answers" in words(app)


def test_an_opened_example_can_be_drawn_on(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&example=stamped-003", PAGE))
    shown = given(app.button(key="draw-on").click().run())
    pixels = open_run(demo).evaluation_set("test").by_id(["stamped-003"])[0].input["image"]
    assert np.array_equal(drawings.received(shown["cells"], PAPER), pixels)
    assert "stamped-003, as it is in the file." in words(app)
