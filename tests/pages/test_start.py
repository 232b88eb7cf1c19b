"""The start page: runs as cards, the demos with their story, and other ways to begin."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.pages.reading import check, labels, words


def test_every_run_has_a_card_with_its_strongest_headline(open_page, demo: Path, tmp_path) -> None:
    home = tmp_path / "home"
    shutil.copytree(demo, home / "mine")
    app = check(open_page(home))
    said = words(app)
    assert "digits (mine)" in said and "image classification · 4 stages" in said
    assert "pretrain, shortcut, mislabelled, adapt" in said
    assert "Without shortcut, accuracy on stamped images would be" in said and "● exact" in said
    check(app.button(key="open-run-mine").click().run())
    assert app.query_params["run"] == "mine"


def test_a_run_that_cannot_be_read_says_why_and_the_others_stay(
    open_page, demo: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(demo, home / "mine")
    (home / "broken").mkdir()
    (home / "broken" / "run.json").write_text("{")
    said = words(check(open_page(home)))
    assert "It cannot be read" in said and "run.json" in said
    assert "Without shortcut" in said


def test_a_run_that_was_not_measured_has_a_card_without_a_headline(
    open_page, demo: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(demo, home / "mine", ignore=shutil.ignore_patterns("results"))
    said = words(check(open_page(home)))
    assert "digits (mine)" in said and "Without shortcut" not in said


def test_all_demos_are_offered_with_what_is_planted(open_page) -> None:
    app = check(open_page(None))
    assert {f"Open the {name} demo" for name in ("digits", "comments", "chat")} <= labels(app)
    said = words(app)
    assert said.count("planted") >= 3 and "synthetic" in said
    assert said.count("Nothing is downloaded") == 3
    assert "Runs on this server" not in said


def test_a_link_to_a_demo_that_is_not_built_says_so(open_page) -> None:
    said = words(check(open_page(None, "run=comments")))
    assert "The comments demo has not been built on this server yet" in said


def test_more_runs_than_cards_are_in_a_list(open_page, demo: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for number in range(8):
        shutil.copytree(demo, home / f"run-{number}", ignore=shutil.ignore_patterns("results"))
    app = check(open_page(home))
    assert app.selectbox(key="known-run").options == ["run-6", "run-7"]
    check(app.selectbox(key="known-run").set_value("run-7").run())
    assert app.query_params["run"] == "run-7"
