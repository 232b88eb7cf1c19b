"""The tab Comparison: estimators, behaviours and runs against each other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stagelens.demos import digits
from stagelens.effects.computing import attribute
from stagelens.effects.results import Result, load_result, save_result
from stagelens.runs.run import Run, open_run
from tests.pages.reading import check, figures, words

PAGE = "pages/1_Examples.py"
LINK = "run=digits&view=Comparison"


def effects_of(run: Run, stage: str, estimator: str, settings: dict | None = None) -> pd.Series:
    """The stored effects of a stage on the loss, by id."""
    result = load_result(run, "test", "effects", estimator, settings)
    assert result is not None
    rows = result.table[(result.table["stage"] == stage) & (result.table["behaviour"] == "loss")]
    return rows.set_index("example_id")["effect"]


def test_two_estimators_are_held_against_each_other(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, f"{LINK}&compared-stage=shortcut", PAGE))
    run = open_run(demo)
    own = effects_of(run, "shortcut", "coarse-replay", {"budget": 0.25})
    other = effects_of(run, "shortcut", "replay")
    r = np.corrcoef(own, other.loc[own.index])[0, 1]
    assert "coarse-replay 1/4 and replay" in words(app)
    assert f"r {r:.2f} (95 % interval" in words(app)
    assert f"r {r:.2f}" in figures(app)[0]["alt"]
    furthest = (own - other).abs().sort_values(ascending=False).index[0]
    disagreements = next(d.value for d in app.dataframe if "apart" in d.value)
    assert disagreements["id"].iloc[0] == furthest


def test_two_behaviours(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, f"{LINK}&compared=Two behaviours", PAGE))
    assert "loss and margin" in words(app)
    assert "no relative difference" in words(app)


def test_a_refused_stage_is_not_compared(open_page, demo_copy: Path) -> None:
    run = open_run(demo_copy)
    stored = load_result(run, "test", "effects", "coarse-replay", {"budget": 0.25})
    assert stored is not None
    stages = [
        t.model_copy(update={"trust": "refused"}) if t.stage == "pretrain" else t
        for t in stored.facts.stages
    ]
    table = stored.table
    table.loc[table["stage"] == "pretrain", ["without", "effect"]] = float("nan")
    save_result(run, Result(stored.facts.model_copy(update={"stages": stages}), table))
    app = check(open_page(demo_copy.parent, f"{LINK}&compared-stage=pretrain", PAGE))
    assert "The effect of pretrain is not known" in words(app)
    assert figures(app) == []


def test_two_runs_of_one_task_on_one_set(open_page, demo_copy: Path) -> None:
    shutil.copytree(demo_copy, demo_copy.with_name("again"))
    app = check(open_page(demo_copy.parent, f"{LINK}&compared=Two runs", PAGE))
    assert "digits and digits (again) order the examples alike: r 1.00" in words(app)
    assert "Both run folders hold the same recorded training." in words(app)


@pytest.mark.slow
def test_two_separate_trainings_are_held_against_each_other(open_page, demo_copy: Path) -> None:
    path = demo_copy.with_name("again")
    digits.record(path, seed=1)
    shutil.rmtree(path / "sets" / "test")
    shutil.copytree(demo_copy / "sets" / "test", path / "sets" / "test")
    own, other = open_run(demo_copy), open_run(path)
    assert own.digest != other.digest
    assert own.evaluation_set("test").digest == other.evaluation_set("test").digest
    attribute(other, "test", "task-vector")
    link = f"{LINK}&compared=Two runs&estimator=task-vector&compared-stage=adapt"
    app = check(open_page(demo_copy.parent, link, PAGE))
    first, second = (effects_of(run, "adapt", "task-vector") for run in (own, other))
    r = np.corrcoef(first, second.loc[first.index])[0, 1]
    assert f"r {r:.2f} (95 % interval" in words(app)
    assert "The two runs were trained separately. Their effects differ by chance too" in words(app)


def test_without_another_run_it_says_so(open_page, demo_copy: Path) -> None:
    app = check(open_page(demo_copy.parent, f"{LINK}&compared=Two runs", PAGE))
    assert "no other run on this server" in words(app)


def test_a_run_without_the_set_is_refused_by_name(open_page, demo_copy: Path) -> None:
    other = demo_copy.with_name("again")
    shutil.copytree(demo_copy, other)
    shutil.rmtree(other / "sets" / "mixed-up")
    app = check(open_page(demo_copy.parent, f"{LINK}&compared=Two runs&set=mixed-up", PAGE))
    assert "was not measured on set mixed-up: it has no such set" in words(app)


@pytest.mark.parametrize("link", ["compared=nope", "compared-run=../x", "compared-first=<b>"])
def test_nonsense_in_a_link_is_ignored(open_page, demo: Path, link: str) -> None:
    assert "Largest disagreements" in words(check(open_page(demo.parent, f"{LINK}&{link}", PAGE)))
