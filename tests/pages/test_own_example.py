"""The own example on the Examples page: asked and answered without a browser."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from stagelens import charts
from stagelens.contracts import Behaviour
from stagelens.effects.results import Result, load_result
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import open_run
from stagelens.runs.sets.images import encode_pixels
from stagelens.trust.verification import trusted
from stagelens.ui.examples import live_answers
from stagelens.wording.sentences import example_sentence
from tests.pages.reading import check, drawn, words

PAGE = "pages/1_Examples.py"
OWN = "run=digits&view=Own+example"


def picture(demo: Path, example_id: str) -> bytes:
    """An image of the set as a file."""
    example = open_run(demo).evaluation_set("test").by_id([example_id])[0]
    return encode_pixels(example.input["image"])


def upload(app: AppTest, data: bytes, name: str = "mine.png") -> AppTest:
    app.file_uploader[0].set_value((name, data, "image/png"))
    return app.run()


def stored(demo: Path, estimator: str, settings: dict) -> Result:
    run = open_run(demo)
    result = load_result(run, "test", "effects", estimator, settings)
    assert result is not None
    return trusted(run, result)


def sentence(row: dict, trust: StageTrust) -> str:
    """What is said of a row of the effect table, as far as it goes in every case."""
    if np.isnan(row["effect"]):
        return f"Without {row['stage']} : not known."  # markup stood between
    kind = Behaviour(row["behaviour"], "lower" if row["behaviour"] == "loss" else "higher")
    return str(example_sentence(row["stage"], kind, row["effect"], trust)).rstrip(".")


def test_a_link_opens_the_box_and_nothing_is_asked_yet(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, OWN, PAGE))
    assert len(app.file_uploader) == 1 and len(app.dataframe) == 0
    assert "its 4 counterfactuals, one without each stage, answer at once" in words(app)


@pytest.mark.parametrize(
    ("estimator", "settings", "name"),
    [("replay", {}, "replay"), ("coarse-replay", {"budget": 0.25}, "coarse-replay 1/4"),
     ("task-vector", {}, "task-vector")],
)  # fmt: skip
def test_an_image_of_the_set_has_the_numbers_of_the_set(
    open_page, demo: Path, estimator: str, settings: dict, name: str
) -> None:
    result = stored(demo, estimator, settings)
    rows, trust = result.table[result.table["example_id"] == "stamped-003"], result.trust
    app = open_page(demo.parent, f"{OWN}&estimator={name}", PAGE)
    check(upload(app, picture(demo, "stamped-003")))
    label = rows["label"].iloc[0]
    app.selectbox(key="own-label").select(label)
    for behaviour in ("loss", "margin"):
        app.selectbox(key="measure").select(behaviour)
        said = words(check(app.run()))
        for row in rows[rows["behaviour"] == behaviour].to_dict("records"):
            assert sentence(row, trust[row["stage"]]) in said
    assert f"The final model answers {rows['prediction'].iloc[0]}" in said
    assert "adapt: exact" in said
    assert drawn(app)[0].startswith("Effect of each stage on this example's margin.")
    for stage, answer in zip(rows["stage"], rows["prediction_without"], strict=True):
        assert re.search(
            rf"without {stage}\s+{re.escape(answer if isinstance(answer, str) else '?')}\s", said
        )


def test_without_a_label_it_is_about_the_models_own_answer(open_page, demo: Path) -> None:
    app = open_page(demo.parent, OWN, PAGE)
    said = words(check(upload(app, picture(demo, "clean-003"))))
    assert "No label was chosen, so the margin is about this answer, right or wrong" in said
    bars = next(e.proto.body for e in app.get("html") if "← away from" in e.proto.body)
    assert "▲" not in bars and "▼" not in bars
    assert charts.CREDIT not in bars and charts.BLAME not in bars
    assert "✓ right" not in said and "✗ wrong" not in said


def test_what_was_done_to_an_image_of_another_size_is_said(open_page, demo: Path) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (60, 40), (200, 10, 10, 100)).save(file, "WEBP")
    app = check(upload(open_page(demo.parent, OWN, PAGE), file.getvalue(), "mine.webp"))
    said = words(app)
    assert (
        "mine.webp, as the model sees it: only the colours of transparent parts are read; colours "
        "became grey; only the middle 40 × 40 of 60 × 40 pixels were kept; scaled from 40 × 40 to "
        "8 × 8 pixels."
    ) in said
    assert "The final model answers" in said


@pytest.mark.parametrize(
    ("data", "said"), [(b"no image", "not an image of a kind that can be read"), (b"", "is empty")]
)
def test_a_wrong_file_is_refused_in_words(open_page, demo: Path, data: bytes, said: str) -> None:
    app = check(upload(open_page(demo.parent, OWN, PAGE), data))
    assert said in words(app) and "The final model answers" not in words(app)
    check(upload(app, picture(demo, "clean-003")))  # and the next one is answered
    assert "The final model answers" in words(app) and not app.error


def test_a_removed_image_is_asked_no_more(open_page, demo: Path) -> None:
    app = check(upload(open_page(demo.parent, OWN, PAGE), picture(demo, "clean-003")))
    app.file_uploader[0].clear()
    assert "The final model answers" not in words(check(app.run()))


def test_before_anything_is_measured_the_task_vector_answers(open_page, demo_copy: Path) -> None:
    shutil.rmtree(demo_copy / "results")
    app = open_page(demo_copy.parent, OWN, PAGE)
    said = words(check(upload(app, picture(demo_copy, "clean-003"))))
    assert "The final model answers" in said and "Counterfactuals: task-vector." in said
    assert "pretrain: rough" in said and "adapt: exact" in said


def test_the_filters_are_as_they_were_when_one_comes_back(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&label=3&stage=shortcut&example=clean-003", PAGE))
    before = words(app)
    for view in ("Own example", "Evaluation set"):
        app.session_state["view"] = view
        check(app.run())
    assert words(app) == before


@pytest.mark.parametrize("memory", ["a lot", "-1 GB", "5"])
def test_a_limit_that_is_none_is_named(
    open_page, demo: Path, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    monkeypatch.setenv("STAGELENS_MEMORY", memory)
    app = check(open_page(demo.parent, OWN, PAGE))
    assert f"STAGELENS_MEMORY is '{memory}'" in words(app)


def test_the_limit_on_memory_is_told(open_page, demo: Path, monkeypatch) -> None:
    monkeypatch.setenv("STAGELENS_MEMORY", "1.5gb")
    app = check(open_page(demo.parent, OWN, PAGE))
    assert "STAGELENS_MEMORY, now 1.5 GB" in app.file_uploader[0].help


def test_what_the_box_cuts_is_not_asked_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_answers, "MOST_CHARACTERS", 5)
    state: dict[str, object] = {}
    monkeypatch.setattr(live_answers.st, "session_state", state)
    live_answers.start_from({"text": "a longer text"})
    asked = live_answers.question()
    assert asked is not None and asked.content == {"text": "a lon"}
    assert state[live_answers.widget("text")] == "a lon"
