"""Answers get better by themselves: task vector, coarse replay, replay; and the place is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from stagelens.estimators import registry
from stagelens.ui.opening import progressive
from stagelens.ui.server import jobs
from tests.pages.reading import check, figures, labels, words

EXAMPLES = "pages/1_Examples.py"


def replay_takes(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let replay be predicted to take so long."""
    for module in (progressive, registry):
        monkeypatch.setattr(module, "replay_seconds", lambda stages: seconds)


@pytest.fixture
def bare(demo_copy: Path) -> Path:
    """The demo without any result."""
    shutil.rmtree(demo_copy / "results")
    return demo_copy


def arguments(folder: Path, estimator: str, *more: str) -> tuple[str, ...]:
    return ("attribute", str(folder), "--estimator", estimator, "--set", "test", *more)


def wait_for(app: AppTest, words_: tuple[str, ...]) -> AppTest:
    """Wait for a job that the page started, then look again."""
    job = jobs.find(words_)
    assert job is not None, words_
    job._reaper.join(200)
    assert job.status().state == "done", job.log()
    return check(app.run())


@pytest.fixture
def slow_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that is predicted to take long enough for a coarse replay to come first."""
    replay_takes(40.0, monkeypatch)


@pytest.mark.slow
def test_where_replay_takes_hardly_longer_it_comes_instead_of_a_coarse_one(
    open_page, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay_takes(2.0, monkeypatch)  # the demo's own seconds are those of a machine that was busy
    app = check(open_page(bare.parent, "run=digits"))
    app = wait_for(app, arguments(bare, "task-vector"))
    assert "it is running now" in words(app)
    assert jobs.find(arguments(bare, "coarse-replay", "--budget", "0.25")) is None
    app = wait_for(app, arguments(bare, "replay"))
    assert app.selectbox(key="estimator").options == ["replay", "task-vector"]


@pytest.mark.slow
@pytest.mark.usefixtures("slow_replay")
@pytest.mark.parametrize("page", ["app.py", pytest.param(EXAMPLES, marks=pytest.mark.extensive)])
def test_numbers_come_free_then_coarse_then_exact(open_page, bare: Path, page: str) -> None:
    app = check(open_page(bare.parent, "run=digits", page))
    assert jobs.find(arguments(bare, "coarse-replay", "--budget", "0.25")) is None
    app = wait_for(app, arguments(bare, "task-vector"))
    assert app.selectbox(key="estimator").value == "task-vector"
    assert "Budget of coarse replay" in {g.label for g in app.get("button_group")}
    assert jobs.find(arguments(bare, "replay")) is None  # one after the other
    app = wait_for(app, arguments(bare, "coarse-replay", "--budget", "0.25"))
    assert app.selectbox(key="estimator").value == "coarse-replay 1/4"
    app = wait_for(app, arguments(bare, "replay"))
    assert app.selectbox(key="estimator").value == "replay"
    assert app.selectbox(key="estimator").options == ["replay", "coarse-replay 1/4", "task-vector"]
    assert not app.get("button_group") and "Cancel" not in labels(app)


@pytest.mark.slow
@pytest.mark.usefixtures("slow_replay")
def test_better_numbers_do_not_move_the_place(open_page, bare: Path) -> None:
    link = "run=digits&stage=shortcut&strength=1&sort=id&page=2&example=stamped-001"
    app = check(open_page(bare.parent, link, EXAMPLES))
    app = wait_for(app, arguments(bare, "task-vector"))
    before = dict(app.query_params)
    app = wait_for(app, arguments(bare, "coarse-replay", "--budget", "0.25"))
    assert app.selectbox(key="estimator").value == "coarse-replay 1/4"
    assert r"stamped\-001" in [h.value for h in app.header]
    assert dict(app.query_params) == before
    assert app.slider(key="strength").value == 1
    assert [toast.value for toast in app.toast if "Better numbers" in toast.value]


@pytest.mark.slow
@pytest.mark.usefixtures("slow_replay")
def test_numbers_chosen_on_purpose_stay_and_the_better_ones_are_offered(
    open_page, bare: Path
) -> None:
    app = check(open_page(bare.parent, "run=digits"))
    app = wait_for(app, arguments(bare, "task-vector"))
    app = wait_for(app, arguments(bare, "coarse-replay", "--budget", "0.25"))
    check(app.selectbox(key="estimator").select("task-vector").run())
    app = wait_for(app, arguments(bare, "replay"))
    assert app.selectbox(key="estimator").value == "task-vector"
    next(b for b in app.button if b.label == "Show the better replay").click()
    check(app.run())
    assert app.selectbox(key="estimator").value == "replay"
    assert "● exact" in figures(app)[0]["layout"]["yaxis"]["ticktext"][0]


@pytest.mark.slow
def test_a_long_replay_waits_for_its_button(
    open_page, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay_takes(600.0, monkeypatch)
    app = check(open_page(bare.parent, "run=digits&budget=1/8"))
    app = wait_for(app, arguments(bare, "task-vector"))
    app = wait_for(app, arguments(bare, "coarse-replay", "--budget", "0.125"))
    assert "coarse-replay 1/8" in app.selectbox(key="estimator").options
    assert jobs.find(arguments(bare, "replay")) is None
    assert "Replay (about 10 minutes)" in labels(app)


def test_a_very_long_coarse_replay_waits_too(
    open_page, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay_takes(36_000.0, monkeypatch)
    monkeypatch.setattr(registry, "estimate_seconds", lambda *_: 7_200.0)
    app = check(open_page(bare.parent, "run=digits"))
    app = wait_for(app, arguments(bare, "task-vector"))
    assert jobs.find(arguments(bare, "coarse-replay", "--budget", "0.25")) is None
    assert "Coarse replay, budget 1/4 (about 2 hours)" in labels(app)
    assert "Replay (about 10 hours)" in labels(app)


@pytest.mark.usefixtures("slow_replay")
def test_what_was_cancelled_does_not_start_again(open_page, bare: Path) -> None:
    app = check(open_page(bare.parent, "run=digits"))
    app = wait_for(app, arguments(bare, "task-vector"))
    for name, more in (("coarse-replay", ("--budget", "0.25")), ("replay", ())):
        job = jobs.find(arguments(bare, name, *more))
        assert job is not None
        job.cancel()
        check(app.run())
    buttons = labels(app)
    assert any(label.startswith("Coarse replay, budget 1/4") for label in buttons)
    assert any(label.startswith("Replay (") for label in buttons)
    check(app.run())
    assert "Cancel" not in labels(app)


def test_the_demo_opens_settled(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits"))
    assert app.selectbox(key="estimator").value == "replay"
    assert not app.get("button_group")
