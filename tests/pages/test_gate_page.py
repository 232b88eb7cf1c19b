"""The page of the regression gate: what is asked, what it takes, and what was found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from streamlit.testing.v1 import AppTest

from stagelens.analyses.gate.asked import Asked
from stagelens.analyses.gate.gate import gate
from stagelens.analyses.gate.stored import gate_path, keep_gate, stored_gates
from stagelens.runs.run import open_run
from stagelens.ui.gate import sections
from stagelens.ui.server import jobs
from tests.pages.reading import check, words
from tests.support.branching import record_branching
from tests.support.gated import record

PAGE = "pages/6_Regression_gate.py"
LINK = "run=new&gate-old=old&gate-slices=group"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``old``, and ``new``, whose stage adapt spoils slice a."""
    home = tmp_path_factory.mktemp("gate-page")
    record(home / "old", 1)
    record(home / "new", 3, spoiled=True)
    return home


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that the page starts, none of which runs."""
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(jobs, "start", lambda arguments, *_: found.append(tuple(arguments)))
    return found


def models(app: AppTest) -> AppTest:
    (control,) = [each for each in app.button_group if "estimand" in str(each.key)]
    return check(control.set_value("models").run())


def test_without_anything_to_compare_with_the_page_says_so(open_page, demo: Path) -> None:
    said = words(check(open_page(demo.parent, "run=digits", PAGE)))
    assert "There is no other run on this server" in said and "stagelens gate OLD NEW" in said


def test_what_is_asked_its_cost_and_the_command(
    open_page, home: Path, started: list[tuple[str, ...]]
) -> None:
    app = check(open_page(home, LINK, PAGE))
    said = words(app)
    assert "16 trainings of what the recipes do not share" in said
    assert "replays for 3 stages come on top" in said
    asked = ("gate", str(home / "old"), str(home / "new"), "--set", "test")
    asked += ("--behaviour", "accuracy", "--slice", "group", "--max-drop", "accuracy=2")
    asked += ("--estimand", "recipes")
    (command,) = [each.value for each in app.code]
    assert command == " ".join(("stagelens", *asked, "--json"))
    check(app.button(key="gate-judge").click().run())
    assert started == [(*asked, "--exit-zero")]
    check(app.number_input(key="gate-drop-accuracy").set_value(1.23456789).run())
    assert "--max-drop accuracy=1.23456789 " in app.code[0].value
    check(app.number_input(key="gate-drop-accuracy").set_value(5.0).run())
    check(models(app).button(key="gate-judge").click().run())
    assert "accuracy=5" in started[1] and "models" in started[1]
    assert "nothing is trained" in words(app)


@pytest.mark.slow
def test_the_verdict_the_slices_and_the_stage_that_did_it(
    open_page, home: Path, tmp_path: Path
) -> None:
    for name in ("old", "new"):
        shutil.copytree(home / name, tmp_path / "home" / name)
    old, new = (open_run(tmp_path / "home" / name) for name in ("old", "new"))
    asked = Asked("test", ("group",), ("accuracy",), {"accuracy": 2.0}, "models")
    found = gate(("old", old), ("new", new), asked)
    keep_gate(gate_path(old, new, asked), new, found)
    app = check(open_page(tmp_path / "home", LINK, PAGE))
    assert "16 trainings" in words(app)  # what was stored is of another question
    # It is listed, and shown where its row is chosen.
    key = sections._key(stored_gates(new, new.evaluation_set("test")))
    assert "Regressed: " not in words(app)
    app.session_state[key] = {"selection": {"rows": [0], "columns": [], "cells": []}}
    assert "Regressed: a slice got worse by more than is allowed." in words(check(app.run()))
    app.session_state[key] = {"selection": {"rows": [], "columns": [], "cells": []}}
    check(app.run())
    app = models(app)
    said = words(app)
    assert "Regressed: a slice got worse by more than is allowed." in said
    assert "accuracy on group = a dropped by" in said
    assert "accuracy on group = a: stage adapt of the new recipe did it." in said
    slices, stages, before = (each.value for each in app.dataframe)
    assert before["verdict"].tolist() == ["regressed"]
    assert list(slices["verdict"]) == [row.verdict for row in found.slices]
    assert list(stages.loc[stages["did it"] == "yes", "stage"]) == ["adapt"]
    assert json.loads(found.model_dump_json())["stages"][1]["how"] == "exchange"
    # Without anything to compare with, what was judged last is shown.
    shutil.rmtree(tmp_path / "home" / "old")
    said = words(check(open_page(tmp_path / "home", "run=new", PAGE)))
    assert "what was judged last" in said and "Regressed" in said


def test_the_same_question_is_stored_in_one_place(home: Path) -> None:
    old, new = (open_run(home / name) for name in ("old", "new"))
    whole = Asked("test", ("group",), ("accuracy",), {"accuracy": 2.0}, "models", 8)
    for same in (
        Asked(None, ("group",), ("accuracy",), {}, "models", 8),
        Asked("test", ("group", "group"), ("accuracy",), {"": 2}, "models", 4),
    ):
        assert gate_path(old, new, same) == gate_path(old, new, whole)
    for other in (
        Asked("test", ("group",), ("accuracy",), {"": 1}, "models"),
        Asked("test", ("group",), ("accuracy",), {}),
        Asked("test", ("group",), ("loss",), {"loss": 2.0}, "models"),
    ):
        assert gate_path(old, new, other) != gate_path(old, new, whole)
    redrawn = [Asked("test", ("group",), ("accuracy",), draws=number) for number in (4, 8)]
    assert gate_path(old, new, redrawn[0]) != gate_path(old, new, redrawn[1])
    assert Asked(behaviours=["score:a"]).drops_of == "models"
    assert Asked(behaviours=["score:a", "loss"]).drops_of == Asked().drops_of == "recipes"


def test_a_result_that_is_not_found_is_told(
    open_page, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = check(open_page(home, LINK, PAGE))
    assert "its result is not found" not in words(app)
    over = SimpleNamespace(running=False, status=lambda: SimpleNamespace(state="done"))
    monkeypatch.setattr(jobs, "find", lambda *_: over)
    app = check(app.run())
    assert "its result is not found" in words(app)
    assert app.button(key="gate-judge").label == "Judge"


def test_two_leaves_are_named_in_the_command(open_page, tmp_path: Path) -> None:
    record_branching(tmp_path / "home" / "two", soup=False)
    app = check(open_page(tmp_path / "home", "run=two&leaf=rl", PAGE))
    (command,) = [each.value for each in app.code]
    assert "two --leaf dpo --leaf rl --set test" in command
