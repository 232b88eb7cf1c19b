"""Slices on pages: saved from filters, then offered wherever groups are."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from stagelens.analyses.slices.saved import save_slice, stored_slices
from stagelens.effects.results import load_result
from stagelens.runs.run import open_run
from tests.pages.reading import check, figures, words

EXAMPLES = "pages/1_Examples.py"


def saved(home: Path, name: str, condition, **filters: str) -> list[str]:
    """A slice of the demo's test set, made without a page."""
    run = open_run(home / "digits")
    examples = run.evaluation_set("test")
    table = examples.table()
    ids = table.loc[condition(table), "example_id"].tolist()
    save_slice(run, examples, name, ids, filters, "replay", "loss")
    return ids


@pytest.fixture
def home(demo_copy: Path) -> Path:
    """A home whose demo may be changed, with two slices."""
    saved(demo_copy.parent, "stamped zeros", lambda t: (t.group == "stamped") & (t.label == "0"))
    saved(demo_copy.parent, "clean ones", lambda t: (t.group == "clean") & (t.label == "1"))
    return demo_copy.parent


def slice_table(app: AppTest) -> pd.DataFrame:
    return next(each.value for each in app.dataframe if "slice" in each.value).set_index("slice")


def test_without_slices_the_overview_says_how_to_make_one(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits"))
    assert "Save as slice" in words(app)


def test_what_the_filters_leave_is_saved_under_a_name(open_page, demo_copy: Path) -> None:
    app = open_page(demo_copy.parent, "run=digits&label=3&answers=wrong", EXAMPLES)
    app.text_input(key="stagelens:slice-name").set_value("hard threes")
    check(app.run())
    app.button(key="save-slice").click()
    check(app.run())
    run = open_run(demo_copy)
    (one,), _ = stored_slices(run, run.evaluation_set("test"))
    table = load_result(run, "test", "effects", "replay").table
    wanted = table[(table["label"] == "3") & (table["prediction"] != table["label"])]
    assert set(one.example_ids) == set(wanted["example_id"])
    assert one.filters == {"label": "3", "answers": "wrong"}
    assert (one.estimate, one.behaviour) == ("replay", "margin")
    assert "slice: hard threes" in app.selectbox(key="group").options
    app.button(key="save-slice").click()  # its name is empty now
    assert "not a usable name" in words(check(app.run()))


def test_a_slice_filters_the_examples(open_page, home: Path) -> None:
    app = check(open_page(home, "run=digits&group=slice: stamped zeros", EXAMPLES))
    table = open_run(home / "digits").evaluation_set("test").table()
    count = ((table["group"] == "stamped") & (table["label"] == "0")).sum()
    assert f"{count} of 894 images" in words(app)


def test_the_overview_has_slices_by_stage_effect_and_says_where_they_differ_most(
    open_page, home: Path
) -> None:
    saved(home, "six", lambda t: t.index < 6)
    saved(home, "blamed", lambda t: t.index < 60, side="blame")
    app = check(open_page(home, "run=digits&measure=loss"))
    table = slice_table(app)
    assert table.index.tolist() == ["blamed", "clean ones", "six", "stamped zeros"]
    effects = load_result(open_run(home / "digits"), "test", "effects", "replay").table
    of = effects[(effects["stage"] == "pretrain") & (effects["behaviour"] == "loss")]
    mean = of.loc[(of["group"] == "stamped") & (of["label"] == "0"), "effect"].mean()
    assert mean < 0 and table.loc["stamped zeros", "pretrain"].startswith(f"▲ {-mean:.2f} (")
    why = table["not a finding, because"]
    assert why["six"] == "fewer than 20"
    assert why["blamed"] == "chosen by effects or answers"
    assert why["clean ones"] == ""
    said = words(app)
    assert "Without pretrain, the mean loss would be 4.07 higher on images in slice" in said
    assert "95 % interval" in said and "corrected for 4 comparisons" in said


def test_credit_and_blame_of_one_slice(open_page, home: Path) -> None:
    app = check(open_page(home, "run=digits&group=slice: stamped zeros"))
    assert "of images in slice stamped zeros" in words(app)
    assert "images in slice stamped zeros" in figures(app)[0]["alt"]


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("app.py", "images in slice stamped zeros"),
        (EXAMPLES, "894 images"),
        ("pages/2_Spurious_features.py", "stamped zeros"),
        ("pages/3_Remove_a_stage.py", "stamped zeros"),
    ],
)
def test_every_page_has_groups_by_slice(open_page, home: Path, page: str, said: str) -> None:
    app = check(open_page(home, "run=digits&by=slice: stamped zeros", page))
    assert app.selectbox(key="by").value == "slice: stamped zeros"
    values = " ".join(each.label + str(each.value) for each in app.metric)
    assert said in words(app) + values


def test_one_that_was_chosen_by_effects_gives_no_headline(open_page, home: Path) -> None:
    saved(home, "blamed", lambda t: t.index < 60, side="blame")
    app = check(open_page(home, "run=digits&by=slice: blamed"))
    said = words(app)
    assert "chosen by effects or answers: what sets it apart" in said
    assert "on images in slice blamed would be" not in said


def test_a_deleted_slice_is_gone_from_every_page(open_page, home: Path) -> None:
    app = open_page(home, "run=digits")
    app.button(key="delete-slice-clean ones").click()
    check(app.run())
    assert slice_table(app).index.tolist() == ["stamped zeros"]
    assert "slice: clean ones" not in app.selectbox(key="by").options


def test_a_damaged_slice_does_not_take_the_page_down(open_page, home: Path) -> None:
    bad = home / "digits" / "slices" / "bad.json"
    bad.write_text("{")
    app = check(open_page(home, "run=digits"))
    assert "bad.json" in words(app) and "Credit and blame" in words(app)
    assert len(slice_table(app)) == 2


def test_trust_is_told_of_one_slice(open_page, home: Path) -> None:
    link = "run=digits&estimate=coarse-replay 1/4&measure=loss"
    whole = check(open_page(home, link, "pages/4_Trust.py"))
    app = check(open_page(home, f"{link}&trusted-slice=clean ones", "pages/4_Trust.py"))
    assert "those of slice clean ones" in words(app)
    (scatter,) = [f for f in figures(app) if "Stage effect of shortcut" in f["alt"]]
    run = open_run(home / "digits")
    (one,) = [
        s for s in stored_slices(run, run.evaluation_set("test"))[0] if s.name == "clean ones"
    ]
    assert f"{len(one.example_ids)} examples" in scatter["alt"]
    (of_all,) = [f for f in figures(whole) if "Stage effect of shortcut" in f["alt"]]
    assert "894 examples" in of_all["alt"]
