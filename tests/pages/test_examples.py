"""The Examples page on the real demo: filters, table, one example, links."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from stagelens.charts.style import BLAME, CREDIT, see_through
from stagelens.effects.results import load_result
from stagelens.runs.run import open_run
from stagelens.ui.examples.drilldown import CLOSED
from stagelens.ui.reading.browse import PAGE_SIZE
from tests.pages.reading import check, drawn, figures, table, words

PAGE = "pages/1_Examples.py"
STAGES = ["pretrain", "shortcut", "mislabelled", "adapt"]


@pytest.fixture(scope="module")
def effects(demo: Path) -> pd.DataFrame:
    result = load_result(open_run(demo), "test", "effects", "replay")
    assert result is not None
    return result.table


def pick(app: AppTest, row: int) -> AppTest:
    """Click a row of the table."""
    key = app.dataframe[0].key
    app.session_state[key] = {"selection": {"rows": [row], "columns": [], "cells": []}}
    return app.run()


def press(app: AppTest, label: str) -> AppTest:
    return next(b for b in app.button if b.label == label).click().run()


def test_without_a_run_the_page_offers_the_demo(open_page) -> None:
    app = check(open_page(None, page=PAGE))
    assert "Open the digits demo" in {b.label for b in app.button}


def test_a_page_of_the_table_is_all_that_is_sent(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits", PAGE))
    assert len(table(app)) == PAGE_SIZE
    assert "894 images" in words(app)
    assert table(app)["input"].str.startswith("data:image/png;base64,").all()


def test_what_is_planted_is_called_planted(open_page, demo: Path) -> None:
    assert "planted" in words(open_page(demo.parent, "run=digits", PAGE))


@pytest.mark.parametrize(
    ("link", "condition"),
    [
        ("label=3", lambda t: t["label"] == "3"),
        ("group=stamped", lambda t: t["group"] == "stamped"),
        ("answers=wrong&answer=3", lambda t: (t["prediction"] == "3") & (t["label"] != "3")),
        ("stage=shortcut&side=blame", lambda t: t["effect"] > 0),
        ("stage=shortcut&side=credit", lambda t: t["effect"] < 0),
        ("stage=shortcut&changed=true", lambda t: t["prediction"] != t["prediction_without"]),
        ("q=CLEAN-00", lambda t: t["example_id"].str.contains("clean-00")),
        ("stage=shortcut&strength=2&measure=loss", lambda t: t["effect"].abs() >= 2),
    ],
)  # fmt: skip
def test_every_filter_in_a_link_leaves_what_it_says(
    open_page, demo: Path, effects: pd.DataFrame, link: str, condition
) -> None:
    rows = effects[(effects["stage"] == "shortcut") & (effects["behaviour"] == "loss")]
    expected = int(condition(rows).sum())
    assert 0 < expected < 894
    app = check(open_page(demo.parent, f"run=digits&{link}", PAGE))
    assert f"{expected:,} of 894 images" in words(app)


def test_filters_hold_together(open_page, demo: Path, effects: pd.DataFrame) -> None:
    app = check(
        open_page(
            demo.parent,
            "run=digits&measure=loss&stage=shortcut&side=blame&group=stamped&answers=wrong"
            "&sort=most+blame",
            PAGE,
        )
    )
    rows = effects[
        (effects["stage"] == "shortcut")
        & (effects["behaviour"] == "loss")
        & (effects["group"] == "stamped")
        & (effects["prediction"] != effects["label"])
        & (effects["effect"] > 0)
    ].sort_values("effect", ascending=False, kind="stable")
    shown = table(app)
    assert shown["id"].tolist() == rows["example_id"].head(PAGE_SIZE).tolist()
    # With a stage chosen, what the model without it answers stands beside the final answer.
    without = (f"{'✓' if r.prediction_without == r.label else '✗'} {r.prediction_without}"
               for r in rows.head(PAGE_SIZE).itertuples())  # fmt: skip
    assert shown["answer without"].tolist() == list(without)


def test_nothing_left_says_what_to_do(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&q=no-such-id", PAGE))
    assert "Loosen a filter" in words(app)


def test_a_picked_row_shows_the_example_everywhere(
    open_page, demo: Path, effects: pd.DataFrame
) -> None:
    app = open_page(demo.parent, "run=digits&measure=loss&stage=shortcut&sort=most+blame", PAGE)
    chosen = table(app)["id"][2]
    check(pick(app, 2))
    assert app.query_params["example"] == chosen
    said = words(app)
    rows = effects[(effects["example_id"] == chosen) & (effects["behaviour"] == "loss")]
    for row in rows.to_dict("records"):
        way = "higher" if row["effect"] < 0 else "lower"
        assert f"Without {row['stage']}, the loss would be" in said
        if row["stage"] == "shortcut":
            assert f"the loss would be {abs(row['effect']):.2f} {way}" in said
    for stage in STAGES:
        assert f"without {stage}" in said  # its answer, side by side
    (bars,) = drawn(app)
    assert bars.startswith("Effect of each stage on this example's loss.")
    assert chosen in app.header[0].value.replace("\\", "")


def test_a_link_opens_what_it_asks_of_the_example(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&measure=loss&example=clean-003&look=When", PAGE))
    (path,) = figures(app)
    assert path["alt"].startswith("Loss observed. base: ") and "after shortcut: " in path["alt"]
    assert "without shortcut" not in words(app)
    # The address says whose loss is asked about, and no more once it is this example's again.
    for value, said in (("Mean of the examples shown", True), ("This example", False)):
        check(app.segmented_control(key="asked-about").set_value(value).run())
        assert ("about" in app.query_params) == said
        # What stands beside the mean is not one example's.
        assert ("clean-003 is one of them." in words(app)) == said


def test_a_choice_survives_a_filter_that_moves_its_row(open_page, demo: Path) -> None:
    app = open_page(demo.parent, "run=digits&sort=id", PAGE)
    check(pick(app, 5))
    chosen = app.query_params["example"]
    app.selectbox(key="group").select("stamped")
    check(app.run())
    assert app.query_params["example"] == chosen
    assert "does not pass the filters" in words(app)


def test_previous_and_next_walk_through_what_is_left(open_page, demo: Path) -> None:
    app = open_page(demo.parent, "run=digits&sort=id&group=stamped", PAGE)
    check(pick(app, PAGE_SIZE - 1))
    check(press(app, "Next"))
    second = app.query_params["example"]
    check(press(app, "Back to the table"))
    assert second == table(app)["id"][0] and app.query_params["page"] == "2"
    assert "example" not in app.query_params
    check(pick(app, 0))
    assert app.query_params["example"] == second
    first = check(press(app, "Previous")).query_params["example"]
    check(press(app, "Back to the table"))
    assert first == table(app)["id"][PAGE_SIZE - 1] and "page" not in app.query_params


def test_an_example_stands_in_the_place_of_the_table(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&sort=id&label=3&answers=right", PAGE))
    ids = table(app)["id"].tolist()
    check(press(app, "Open the first"))
    assert app.query_params["example"] == ids[0] and not app.dataframe
    assert "1 of " in words(app)
    check(press(app, "Next"))
    assert app.query_params["example"] == ids[1] and "2 of " in words(app)
    # The filters are still there for what is next.
    assert app.selectbox(key="label").value == "3"
    check(press(app, "Back to the table"))
    assert table(app)["id"].tolist() == ids


def test_wrong_answers_come_first_with_most_blame(
    open_page, demo: Path, effects: pd.DataFrame
) -> None:
    app = check(open_page(demo.parent, "run=digits", PAGE))
    rows = effects[effects["behaviour"] == "margin"]
    wrong = rows[rows["prediction"] != rows["label"]]
    blame = wrong.groupby("example_id", observed=True)["effect"].min().sort_values(kind="stable")
    assert table(app)["id"].tolist() == blame.index[:PAGE_SIZE].tolist()
    last = check(open_page(demo.parent, "run=digits&page=75", PAGE))
    assert table(last)["answer"].str.startswith("✓").all()
    assert "most blame, wrong first" not in app.query_params.values()


def test_the_filters_behind_more_are_counted_and_told(open_page, demo: Path) -> None:
    assert more(check(open_page(demo.parent, "run=digits", PAGE))) == "More"
    link = "run=digits&label=3&side=blame&changed=true&strength=0.0&credit=Without+it"
    app = check(open_page(demo.parent, link, PAGE))
    assert more(app) == "More (3)"
    assert "of 894 images" in words(app)
    assert "stage any, label 3, side blame, changed" in words(app)
    app.selectbox(key="label").set_value(None)
    assert more(check(app.run())) == "More (2)"


def more(app: AppTest) -> str:
    found = [each.proto.popover.label for each in app.get("popover")]
    return next(label for label in found if label.startswith("More"))


def test_cells_are_tinted_by_credit_and_blame_and_headers_are_not_cut(
    open_page, demo: Path
) -> None:
    app = check(open_page(demo.parent, "run=digits", PAGE))
    proto = app.dataframe[0].proto
    styles = proto.arrow_data.styler.styles if proto.HasField("arrow_data") else proto.styler.styles
    blue, orange = see_through(CREDIT, 1)[:-3], see_through(BLAME, 1)[:-3]
    assert blue in styles and orange in styles
    columns = json.loads(proto.columns)
    name = next(name for name in columns if "mislabelled" in name)
    assert columns[name]["width"] >= 8 * len("● mislabelled")
    assert columns["id"]["pinned"] and columns["input"]["pinned"]


def test_a_link_opens_the_page_with_its_example(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&sort=id&example=stamped-200", PAGE))
    assert "stamped-200" in app.header[0].value.replace("\\", "")
    check(press(app, "Back to the table"))
    assert "stamped-200" in table(app)["id"].tolist()


def test_a_linked_page_is_opened(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&sort=id&page=2", PAGE))
    assert table(app)["id"][0] == f"clean-{PAGE_SIZE:03d}"


@pytest.mark.parametrize(
    "link",
    ["example=nope", "page=99999999999999999999", "page=-1", "page=x", "stage=nope",
     "label=%3Cb%3E", "strength=1e308", "strength=nan", "sort=drop+table", "side=both",
     "set=..%2Fx", "estimator=__import__", "group=%00", "measure=accuracy", "changed=maybe",
     "example=" + "x" * 5000, "example=clean-003&look=nowhere"],
)  # fmt: skip
def test_nonsense_in_a_link_is_ignored(open_page, demo: Path, link: str) -> None:
    app = check(open_page(demo.parent, f"run=digits&{link}", PAGE))
    # A tab that is not there is none of the example's; the table is not shown beside it.
    assert "example=clean" in link or len(table(app)) > 0


def test_an_unknown_example_is_said_to_be_one(open_page, demo: Path) -> None:
    app = open_page(demo.parent, "run=digits&example=nope", PAGE)
    assert "not in this set" in words(app)


def test_another_set_has_its_own_groups(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&set=mixed-up", PAGE))
    assert "894" not in words(app)
    assert open_run(demo).evaluation_set("mixed-up").description.rstrip(".") in words(app)


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        ("replay", "● all exact."),
        ("task-vector", "◇ does not agree: pretrain, mislabelled."),
    ],
)
def test_the_table_says_what_is_known_of_its_numbers(
    open_page, demo: Path, estimator: str, said: str
) -> None:
    assert said in words(
        open_page(demo.parent, f"run=digits&measure=loss&estimator={estimator}", PAGE)
    )


def test_a_closed_example_is_followed_to_its_page_once(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&example=clean-100", PAGE))
    check(press(app, "Back to the table"))
    assert CLOSED not in app.session_state  # or a later page, turned by hand, would turn back
