"""The tab Comparison: estimators, behaviours and runs against each other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from stagelens.results import load_result
from stagelens.runs.run import open_run
from tests.pages.reading import check, figures, words

PAGE = "pages/1_Examples.py"
LINK = "run=digits&view=Comparison"


def test_two_estimators_are_held_against_each_other(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, f"{LINK}&compared-stage=shortcut", PAGE))
    run = open_run(demo)
    tables = [
        load_result(run, "test", "effects", *which).table
        for which in (("coarse-replay", {"budget": 0.25}), ("replay", {}))
    ]
    own, other = (
        t[(t["stage"] == "shortcut") & (t["behaviour"] == "loss")].set_index("example_id")["effect"]
        for t in tables
    )
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


def test_a_refused_stage_is_not_compared(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, f"{LINK}&compared-stage=pretrain", PAGE))
    assert "The effect of pretrain is not known" in words(app)
    assert figures(app) == []


def test_two_runs_of_one_task_on_one_set(open_page, demo_copy: Path) -> None:
    shutil.copytree(demo_copy, demo_copy.with_name("again"))
    app = check(open_page(demo_copy.parent, f"{LINK}&compared=Two runs", PAGE))
    assert "digits and digits (again) order the examples alike: r 1.00" in words(app)


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
