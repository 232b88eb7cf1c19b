"""Answers get better by themselves: free, then exact as far as time allows; the place is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from stagelens.effects.computing import attribute, boundaries
from stagelens.effects.results import result_path, stored_results
from stagelens.estimators.durations import TimedStage, Timings, keep_timings
from stagelens.runs.run import Run, open_run
from stagelens.ui.opening import progressive
from stagelens.ui.server import jobs
from tests.pages.reading import check, figures, labels, words

EXAMPLES = "pages/1_Examples.py"
HOUR = 3600.0


@pytest.fixture
def bare(demo_copy: Path) -> Path:
    """The demo without any result."""
    shutil.rmtree(demo_copy / "results")
    return demo_copy


@pytest.fixture
def arrives(demo: Path, bare: Path) -> Callable[[str], None]:
    """``arrives(estimator)``: its table is stored, as the demo's own, which was computed once."""
    run, whole = open_run(bare), open_run(demo)

    def copied(estimator: str) -> None:
        (facts,) = (f for f in stored_results(whole, "test") if f.estimator == estimator)
        path = result_path(run, facts)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(result_path(whole, facts), path)

    return copied


@pytest.fixture
def previewed(bare: Path, arrives: Callable[[str], None]) -> Run:
    """The demo with its preview alone."""
    run = open_run(bare)
    boundaries(run, "test")
    arrives("task-vector")
    return run


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The command lines that pages start, none of which is run."""
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(progressive.jobs, "start", lambda arguments, *_: found.append(arguments))
    return found


def takes(run: Run, seconds: float) -> None:
    """Let every pass of a later stage have been timed to take so long."""
    stages = {stage.name: TimedStage(seconds=seconds) for stage in run.stages[1:]}
    taken = "2026-01-01T00:00:00+00:00"
    keep_timings(run, Timings(run_digest=run.digest, taken=taken, example=0.0, stages=stages))


def within(run: Run, seconds: int = 120) -> tuple[str, ...]:
    return ("attribute", str(run.path), "--set", "test", "--time", str(seconds))


def wait_for(app: AppTest, words_: tuple[str, ...]) -> AppTest:
    """Wait for a job that the page started, then look again."""
    job = jobs.find(words_)
    assert job is not None, words_
    job._reaper.join(400)
    assert job.status().state == "done", job.log()
    return check(app.run())


def _limits(app: AppTest) -> list[Any]:
    """The control of how long replays may take; none where nothing is left to replay."""
    return [one for one in app.get("button_group") if one.label == "Replay within"]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["app.py", pytest.param(EXAMPLES, marks=pytest.mark.extensive)])
def test_numbers_become_exact_by_themselves(open_page, bare: Path, page: str) -> None:
    app = check(open_page(bare.parent, "run=digits", page))
    app = wait_for(app, within(open_run(bare)))
    assert app.selectbox(key="estimator").value == "replay"
    assert app.selectbox(key="estimator").options == ["replay", "task-vector"]
    # All is exact, so nothing more is offered.
    assert not _limits(app) and "Cancel" not in labels(app)
    assert "Not exact yet" not in words(app)


@pytest.mark.slow
def test_stages_that_are_not_there_yet_are_shown_by_the_best_of_the_others(
    open_page, previewed: Run, started: list[Any]
) -> None:
    app = check(open_page(previewed.path.parent, "run=digits"))
    assert app.selectbox(key="estimator").value == "task-vector"
    assert started == [within(previewed)]  # by itself, within two minutes
    attribute(previewed, "test", "replay", ["mislabelled", "adapt"])
    check(app.run())
    assert app.selectbox(key="estimator").value == "replay"
    assert "replay: 2 of 4 stages; the others by task-vector." in words(app)
    ticks = " ".join(figures(app)[0]["layout"]["yaxis"]["ticktext"])
    assert ticks.count("● exact") == 2 and ticks.count("□ sign uncertain") == 2
    attribute(previewed, "test", "replay", ["shortcut"])
    check(app.run())
    assert "replay: 3 of 4 stages" in words(app)


def test_what_does_not_fit_has_its_price_a_button_and_the_command(
    open_page, previewed: Run, started: list[Any], arrives: Callable[[str], None]
) -> None:
    takes(previewed, HOUR)
    arrives("coarse-replay")
    app = check(open_page(previewed.path.parent, "run=digits"))
    assert started == []  # nothing that is predicted to be ready in two minutes
    assert "1 of 4 stages are exact." in words(app)
    # without "mislabelled": one pass, and one more as a check
    said = "mislabelled: exact in about 2 hours on this machine."
    assert said in words(app)
    command = f"stagelens attribute {previewed.path} --set test --estimator replay --stage shortcut"
    assert command in [each.value for each in app.code]
    button = next(b for b in app.button if b.label.startswith("Replay shortcut"))
    assert "about 4 hours" in button.label  # two passes, two checks
    check(button.click().run())
    assert started == [
        (*("attribute", str(previewed.path), "--estimator", "replay"),
         *("--set", "test", "--stage", "shortcut"))
    ]  # fmt: skip


def test_a_longer_limit_starts_what_then_fits(
    open_page, previewed: Run, started: list[Any], arrives: Callable[[str], None]
) -> None:
    takes(previewed, 200.0)
    arrives("coarse-replay")
    app = check(open_page(previewed.path.parent, "run=digits&time=30 s"))
    assert started == []
    (limit,) = _limits(app)
    check(limit.set_value("10 min").run())
    assert started == [within(previewed, 600)]


def test_better_numbers_do_not_move_the_place(
    open_page, previewed: Run, started: list[Any], arrives: Callable[[str], None]
) -> None:
    link = "run=digits&stage=shortcut&strength=1&sort=id&page=2&example=stamped-001"
    app = check(open_page(previewed.path.parent, link, EXAMPLES))
    before = dict(app.query_params)
    arrives("replay")
    check(app.run())
    assert app.selectbox(key="estimator").value == "replay"
    assert r"stamped\-001" in [h.value for h in app.header]
    assert dict(app.query_params) == before
    assert app.slider(key="strength").value == 1
    assert [toast.value for toast in app.toast if "Better numbers" in toast.value]


@pytest.mark.slow
def test_numbers_chosen_on_purpose_stay_and_the_better_ones_are_offered(
    open_page, previewed: Run, started: list[Any], arrives: Callable[[str], None]
) -> None:
    arrives("coarse-replay")
    app = check(open_page(previewed.path.parent, "run=digits"))
    check(app.selectbox(key="estimator").select("task-vector").run())
    arrives("replay")
    check(app.run())
    assert app.selectbox(key="estimator").value == "task-vector"
    next(b for b in app.button if b.label == "Show the numbers by replay").click()
    check(app.run())
    assert app.selectbox(key="estimator").value == "replay"
    assert "● exact" in figures(app)[0]["layout"]["yaxis"]["ticktext"][0]


@pytest.mark.slow
def test_what_was_cancelled_does_not_start_again(open_page, previewed: Run) -> None:
    app = check(open_page(previewed.path.parent, "run=digits"))
    job = jobs.find(within(previewed))
    assert job is not None
    job.cancel()
    check(app.run())
    assert "Replay within 2 min" in labels(app)
    check(app.run())
    assert "Cancel" not in labels(app)


def test_the_demo_opens_settled(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits"))
    assert app.selectbox(key="estimator").value == "replay"
    assert not _limits(app)
