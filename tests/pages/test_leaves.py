"""Runs with several leaves: the selector on top of every page, and comparing two of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import stagelens
from stagelens.analyses.lineages.soup import credit
from stagelens.effects.computing import attribute, boundaries
from stagelens.ui.pieces import components
from stagelens.ui.server import jobs
from tests.pages.reading import check, words
from tests.support.branching import record_branching

LEAVES = ["soup", "rl", "dpo"]
PAGES = [path for path, *_ in components.PAGES]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The branching run, measured along each leaf's path."""
    home = tmp_path_factory.mktemp("leaves")
    path = record_branching(home / "two").path
    for leaf in LEAVES:
        run = stagelens.open_run(path, leaf=leaf)
        attribute(run, "test", "task-vector")
        boundaries(run, "test")
    credit(stagelens.open_run(path), "test")
    return home


@pytest.fixture(autouse=True)
def _only_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGELENS_READ_ONLY", "1")  # no replay begins, which would change the run


def leaf_of(app: AppTest) -> str:
    return str(app.selectbox(key="leaf").value)


def tables(app: AppTest) -> list[list[str]]:
    return [list(each.value.columns) for each in app.dataframe]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_the_selector_and_what_the_link_chose(
    open_page, home: Path, page: str
) -> None:
    app = check(open_page(home, "run=two&leaf=rl", page))
    assert list(app.selectbox(key="leaf").options) == LEAVES
    assert leaf_of(app) == "rl"
    assert dict(app.query_params)["leaf"] == "rl"
    if page != "app.py":  # which compares with the others
        assert "dpo" not in words(app)


def test_the_newest_is_shown_until_another_is_chosen(open_page, home: Path) -> None:
    app = check(open_page(home, "run=two"))
    assert leaf_of(app) == "soup"
    assert "What the merge was made of" in words(app)
    check(app.selectbox(key="leaf").select("dpo").run())
    assert dict(app.query_params)["leaf"] == "dpo"
    assert "What the merge was made of" not in words(app)
    check(app.switch_page("pages/1_Examples.py").run())
    assert leaf_of(app) == "dpo"


def test_two_leaves_are_compared_since_they_parted(open_page, home: Path) -> None:
    app = check(open_page(home, "run=two&leaf=dpo&measure=margin&other-leaf=rl"))
    assert (
        "dpo and rl have sft in common. Stages since they parted: dpo (for dpo), rl (for rl)."
        in words(app)
    )
    (found,) = [t.value for t in app.dataframe if "difference" in t.value.columns]
    assert list(found["images"]) == ["all", "even", "odd"]
    ends = {}
    for leaf in ("dpo", "rl"):
        table = boundaries(stagelens.open_run(home / "two", leaf=leaf), "test").table
        rows = table[(table["boundary"] == leaf) & (table["behaviour"] == "margin")]
        ends[leaf] = float(rows["value"].mean())
    assert float(found["dpo"].iloc[0].replace("−", "-")) == pytest.approx(ends["dpo"], abs=0.01)
    assert float(found["difference"].iloc[0].replace("−", "-")) == pytest.approx(
        ends["dpo"] - ends["rl"], abs=0.01
    )
    (since,) = [t.value for t in app.dataframe if "stage since" in t.value.columns]
    assert list(since["leaf"]) == ["dpo", "rl"] and list(since["trust"]) == ["● exact"] * 2


def test_a_merge_is_credited_to_its_parents_and_says_what_that_is(open_page, home: Path) -> None:
    app = check(open_page(home, "run=two&leaf=soup"))
    said = words(app)
    assert "weighted average of its parents: 0.600 dpo + 0.400 rl" in said
    assert "No counterfactual of a training" in said
    (parts,) = [t.value for t in app.dataframe if "weight" in t.value.columns]
    assert list(parts["what"]) == ["parent dpo", "parent rl", "stage dpo", "stage rl"]
    assert set(parts["trust"]) == {"○ rough"}


def test_a_leaf_that_is_not_there_is_told(open_page, home: Path) -> None:
    app = check(open_page(home, "run=two&leaf=ppo"))
    assert "This run has no leaf ppo; soup is shown instead." in words(app)


def test_what_was_not_measured_is_offered(
    open_page, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home / "two", tmp_path / "home" / "two")
    shutil.rmtree(tmp_path / "home" / "two" / "results" / "soups")
    app = check(open_page(tmp_path / "home", "run=two&leaf=soup"))
    assert "The merge without each parent" in words(app)


def test_the_start_page_says_how_many_leaves(open_page, home: Path, tmp_path: Path) -> None:
    record_branching(tmp_path / "home" / "ways", soup=False)
    app = check(open_page(tmp_path / "home", ""))
    assert "3 stages · 2 leaves" in words(app)


@pytest.mark.slow
def test_both_leaves_are_measured_at_the_press_of_a_button(
    open_page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record_branching(tmp_path / "home" / "two", soup=False).path
    attribute(stagelens.open_run(path, leaf="dpo"), "test", "task-vector")
    link = "run=two&leaf=dpo&other-leaf=rl"
    app = check(open_page(tmp_path / "home", link))
    assert "They were not measured" not in words(app)
    monkeypatch.setenv("STAGELENS_READ_ONLY", "0")
    check(app.run())
    check(app.button(key="start-comparison").click().run())
    asked = ("compare", str(path), "--leaf", "dpo", "--leaf", "rl", "--set", "test")
    job = jobs.find(asked)
    assert job is not None
    job._reaper.join(400)
    assert job.status().state == "done", job.status().error
    check(app.run())
    assert any("difference" in each.value.columns for each in app.dataframe)
