"""The switchboard of the Overview: its numbers are those of the stored models, in words too."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from streamlit.testing.v1 import AppTest

from stagelens.effects.coalition_results import FOLDER, load_coalitions
from stagelens.effects.results import load_result
from stagelens.runs.run import open_run
from tests.pages.reading import boards, check, labels, words


def board(app: AppTest) -> dict[str, Any]:
    """What the component is given."""
    return boards(check(app))[0]


def test_all_on_is_the_final_model_and_one_off_is_its_stage_effect(open_page, demo: Path) -> None:
    shown = board(open_page(demo.parent, "run=digits&group=stamped"))
    result = load_result(open_run(demo), "test", "effects", "replay")
    assert result is not None
    rows = result.table[(result.table["group"] == "stamped")]
    rows = rows[rows["behaviour"] == rows["behaviour"].iloc[0]]
    for place, stage in enumerate(shown["stages"]):
        own = rows[rows["stage"] == stage["name"]]
        final = (own["prediction"] == own["label"]).mean()
        without = (own["prediction_without"] == own["label"]).mean()
        assert shown["models"][""]["value"] == final
        assert shown["models"][str(place)]["value"] == without
        bar = shown["bars"]["rows"][place]
        assert bar["side"] == ("credit" if final > without else "blame")
        assert bar["amount"].startswith("▲" if final > without else "▼")
    assert shown["models"][""]["text"] == f"{100 * final:.1f} %"
    assert shown["about"] == "Accuracy on stamped images"


def test_every_combination_answers_as_its_coalition_model(open_page, demo: Path) -> None:
    shown = board(open_page(demo.parent, "run=digits&group=clean"))
    assert len(shown["models"]) == 16
    run = open_run(demo)
    stored = load_coalitions(run, "test", "replay")
    assert stored is not None
    clean = (run.evaluation_set("test").table()["group"] == "clean").to_numpy()
    for key, model in shown["models"].items():
        off = [int(place) for place in key.split(",") if place]
        mask = stored.full - sum(1 << place for place in off)
        assert model["value"] == pytest.approx(stored.value(mask, "accuracy")[clean].mean())
        assert model["seal"].startswith("● exact")
    ids = stored.examples["example_id"].tolist()
    answers = stored.predictions(0)
    of_none = shown["models"]["0,1,2,3"]
    for card, code in zip(shown["cards"], of_none["answers"], strict=True):
        assert shown["answers"][code] == str(answers[ids.index(card["id"])])


def test_the_group_of_the_strongest_headline_is_shown_and_all_are_one_click_away(
    open_page, demo: Path
) -> None:
    app = open_page(demo.parent, "run=digits")
    shown = board(app)
    assert "stamped images, which the first headline is about" in shown["title"]
    assert "60 of 447 images" in shown["sampled"]
    assert [(way["text"], way["chosen"]) for way in shown["ways"]] == [
        ("stamped images", True),
        ("all images", False),
    ]
    shown = board(open_page(demo.parent, "run=digits&wall=all"))
    assert shown["about"] == "Accuracy on all images"
    assert "60 of 894 images" in shown["sampled"]
    assert [way["chosen"] for way in shown["ways"]] == [False, True]
    # A group that somebody chose is shown without a word of headlines.
    shown = board(open_page(demo.parent, "run=digits&group=clean"))
    assert shown["ways"] == [] and "headline" not in shown["title"]


def test_a_link_says_what_is_off_and_names_that_are_no_stage_are_told(
    open_page, demo: Path
) -> None:
    app = open_page(demo.parent, "run=digits&off=adapt,gone,,shortcut,![](x.png)")
    assert board(app)["off"] == [1, 3]
    (said,) = [each.value for each in app.warning if "switches off" in each.value]
    assert "no stage gone, " in said and "adapt" not in said and "![](" not in said
    assert board(open_page(demo.parent, "run=digits&off="))["off"] == []


def test_a_behaviour_without_right_and_wrong_tints_its_cards(open_page, demo: Path) -> None:
    shown = board(open_page(demo.parent, "run=digits&measure=loss&group=stamped"))
    final = shown["models"][""]
    assert shown["tinted"] and "right" not in final
    assert len(final["tints"]) == len(final["values"]) == len(shown["cards"]) == 60
    assert final["tints"] == sorted(final["tints"])  # the worst first
    assert final["tints"][0] < 0 < final["tints"][-1]
    assert "the mean loss would be" in shown["models"]["1"]["said"]


def test_cards_and_bars_lead_to_their_examples(open_page, demo: Path) -> None:
    shown = board(open_page(demo.parent, "run=digits"))
    first, bar = shown["cards"][0], shown["bars"]["rows"][1]
    query = dict(parse_qsl(first["href"].removeprefix("Examples?")))
    # The group was chosen for the reader: a card does not choose it on other pages, a bar names it.
    assert query["run"] == "digits" and "group" not in query
    assert query["example"] == first["id"]
    assert "stage=shortcut&side=blame" in bar["href"] and "group=stamped" in bar["href"]


@pytest.mark.slow
def test_a_combination_that_is_not_known_says_what_it_takes(open_page, demo_copy: Path) -> None:
    shutil.rmtree(demo_copy / FOLDER)
    app = open_page(demo_copy.parent, "run=digits&off=shortcut,adapt")
    assert sorted(board(app)["models"]) == ["", "0", "1", "2", "3"]
    assert board(app)["unknown"].endswith("see below what it takes.")
    said = words(app)
    assert "16 models, " in said and "trainings of the whole run" in said
    assert "Compute combinations" in labels(app)
    # A single one is known without them.
    assert "Compute combinations" not in labels(open_page(demo_copy.parent, "run=digits&off=adapt"))
