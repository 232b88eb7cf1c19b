"""The Overview page on the real demo, and where there is nothing to show yet."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import get_args

import pytest

from stagelens.effects.computing import attribute
from stagelens.effects.results import load_result, result_key, result_path, stored_results
from stagelens.runs.run import open_run
from stagelens.ui.server import jobs
from stagelens.wording.trust_words import TrustWord
from tests.pages.reading import check, figures, labels, words

STAGES = ["pretrain", "shortcut", "mislabelled", "adapt"]


def test_a_first_visit_offers_the_demo_and_an_own_run(open_page) -> None:
    app = check(open_page(None))
    assert "planted" in words(app)
    assert {"Open the digits demo", "Path of a run folder"} <= labels(app)


def test_the_demo_opens_with_headlines_bars_and_stages(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits"))
    said = words(app)
    assert "Without shortcut, accuracy on stamped images would be" in said
    assert "(447 images). ● exact, by replay" in said
    assert "mean effects over at least 20 images" in said
    bars, line, _ = figures(app)
    assert bars["alt"].startswith(
        "Credit and blame of each stage for the accuracy on stamped images."
    )
    assert [text.split("<")[1][2:] for text in bars["layout"]["yaxis"]["ticktext"]] == STAGES
    assert all(stage in line["alt"] for stage in STAGES)
    assert "stamped:" in line["alt"]


def test_what_is_planted_is_called_planted(open_page, demo: Path) -> None:
    run = open_run(demo)
    said = words(check(open_page(demo.parent, "run=digits")))
    assert run.evaluation_set("test").description.rstrip(".") in said
    for stage in run.stages:
        assert stage.facts.description in said
    assert said.count("planted") >= 3


def test_every_stage_shows_its_data_its_optimiser_and_its_trust(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits"))
    said = words(app)
    for stage in open_run(demo).stages:
        assert f"{stage.name}: exact" in said
        assert stage.facts.optimizer.name in said
    assert "learning rate up to" in said


def test_the_headline_is_the_tables_own_number(open_page, demo: Path) -> None:
    result = load_result(open_run(demo), "test", "effects", "replay")
    assert result is not None
    table = result.table
    rows = table[
        (table["stage"] == "shortcut")
        & (table["group"] == "stamped")
        & (table["behaviour"] == "loss")
    ]
    final = (rows["prediction"] == rows["label"]).mean()
    without = (rows["prediction_without"] == rows["label"]).mean()
    assert without > final
    said = words(open_page(demo.parent, "run=digits"))
    assert f"stamped images would be {100 * (without - final):.0f} points higher" in said


def test_a_group_and_a_behaviour_from_the_link_are_shown(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&group=clean&measure=loss"))
    assert "on clean images" in figures(app)[0]["alt"]
    story = next(each for each in app.expander if each.label.startswith("The story of this demo"))
    # The demo's story is about them, whatever group is chosen; nothing else is.
    assert words(app).count("stamped images") == words(story).count("stamped images") > 0
    assert "the mean loss on clean images" in words(app)


def forget(folder: Path, *estimators: str) -> None:
    """Remove the stored tables of these estimators."""
    run = open_run(folder)
    for name in run.set_names:
        for facts in stored_results(run, name):
            if facts.estimator in estimators:
                key = result_key(run, name, "effects", facts.estimator, facts.settings)
                (folder / "results" / "tables" / f"{key}.parquet").unlink()


@pytest.mark.slow
def test_an_estimate_says_that_it_is_one_and_is_hedged(open_page, demo_copy: Path) -> None:
    forget(demo_copy, "replay", "coarse-replay")
    app = check(open_page(demo_copy.parent, "run=digits&estimator=task-vector"))
    bars = figures(app)[0]
    assert "□ sign uncertain" in bars["layout"]["yaxis"]["ticktext"][0]
    assert bars["data"][0]["marker"]["opacity"] == [0.4, 0.4, 0.4, 1]
    said = words(app)
    assert "pretrain: sign uncertain (error up to" in said
    assert "Even its sign may be wrong: use replay." in said
    # Exact, and so the only stage of which headlines are told.
    assert "Without adapt, accuracy on" in said
    assert "Without pretrain, accuracy on" not in said


def test_headlines_take_the_replay_where_one_is_stored(open_page, demo: Path) -> None:
    by_replay = words(check(open_page(demo.parent, "run=digits")))
    app = check(open_page(demo.parent, "run=digits&estimator=task-vector"))
    said = words(app)
    headline = next(x for x in by_replay.splitlines() if "stamped images would be" in x)
    assert headline.strip() in said
    assert "does not agree" in figures(app)[0]["layout"]["yaxis"]["ticktext"][0]
    assert "pretrain: does not agree (margin: r" in said
    assert "Too far off to rely on: use replay." in said


def test_the_words_of_trust_are_explained_on_the_page(open_page, demo: Path) -> None:
    said = words(check(open_page(demo.parent, "run=digits")))
    for word in get_args(TrustWord):
        assert word in said
    assert "r at least 0.9, relative error at most 50 %" in said


def test_replay_is_shown_where_it_is_there(open_page, demo: Path) -> None:
    app = open_page(demo.parent, "run=digits")
    assert app.selectbox(key="estimator").value == "replay"
    assert "task-vector" in app.selectbox(key="estimator").options


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("run=../../etc", "contains '..'"),
        ("run=/etc", "not below a folder that the dashboard may open"),
        ("run=missing", "there is no folder missing"),
        ("run=digits", "has not been built on this server yet"),
        ("run=%00", "StageLens cannot open this path"),
    ],
)
def test_a_link_to_a_wrong_place_is_refused_in_words(open_page, link: str, said: str) -> None:
    app = check(open_page(None, link))
    assert said in words(app)
    assert "Open the digits demo" in labels(app)


def test_a_typed_path_opens_a_run(open_page, demo_copy: Path) -> None:
    demo_copy.rename(demo_copy.with_name("mine"))
    app = check(open_page(demo_copy.parent))
    app.text_input[0].set_value("mine")
    next(b for b in app.button if b.label == "Open this folder").click()
    check(app.run())
    assert app.query_params["run"] == "mine"
    assert "Credit and blame" in words(app)


def test_opening_another_run_forgets_what_was_chosen(open_page, demo: Path) -> None:
    app = open_page(demo.parent, "run=digits&group=clean&example=clean-001")
    next(b for b in app.button if b.label == "Open another run").click()
    check(app.run())
    assert "run" not in app.query_params and "example" not in app.query_params
    assert "Open the digits demo" in labels(app)


def test_a_damaged_run_names_the_file(open_page, demo_copy: Path) -> None:
    (demo_copy / "run.json").write_text("{")
    app = check(open_page(demo_copy.parent, "run=digits"))
    assert "run.json" in app.error[0].value.replace("\\", "")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["app.py", "pages/1_Examples.py", "pages/3_Remove_a_stage.py"])
def test_a_damaged_effect_table_is_not_shown_and_can_be_computed_again(
    page: str, open_page, demo_copy: Path
) -> None:
    run = open_run(demo_copy)
    facts = next(f for f in stored_results(run, "test") if f.estimator == "replay")
    path = result_path(run, facts)
    data = bytearray(path.read_bytes())
    data[8:4000] = bytes(3992)  # pages, while the footer is as it was
    path.write_bytes(data)
    app = check(open_page(demo_copy.parent, "run=digits", page))
    assert not app.error
    assert "replay" not in app.selectbox(key="estimator").options
    attribute(run, "test", "replay")
    assert "replay" in check(app.run()).selectbox(key="estimator").options


def test_a_full_queue_of_jobs_takes_nothing_else_away(
    open_page, demo_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "OF_ONE", 0)
    shutil.rmtree(demo_copy / "results")
    app = check(open_page(demo_copy.parent, "run=digits"))
    assert not app.error and app.title
    assert "does not start by itself" in words(app)


@pytest.mark.slow
def test_a_run_without_results_is_measured_by_itself(open_page, demo_copy: Path) -> None:
    shutil.rmtree(demo_copy / "results")
    app = check(open_page(demo_copy.parent, "run=digits"))
    assert "No stage effect has been measured" in words(app)
    job = jobs.find(("attribute", str(demo_copy), "--set", "test", "--time", "120"))
    assert job is not None
    tables = demo_copy / "results" / "tables"
    # The free numbers come first, with the boundaries; replays follow.
    while len(list(tables.glob("*.parquet"))) < 2:
        assert job.running, job.log()
        time.sleep(0.05)
    check(app.run())
    assert "task-vector" in app.selectbox(key="estimator").options
    job.cancel()


def test_a_failed_measurement_says_why_and_can_be_repeated(open_page, demo_copy: Path) -> None:
    shutil.rmtree(demo_copy / "results")
    (demo_copy / "results").write_text("in the way")
    app = check(open_page(demo_copy.parent, "run=digits"))
    job = jobs.find(("attribute", str(demo_copy), "--set", "test", "--time", "120"))
    assert job is not None
    job._reaper.join(400)
    check(app.run())
    assert "Replay failed" in app.error[0].value
    assert "Try again" in labels(app)
