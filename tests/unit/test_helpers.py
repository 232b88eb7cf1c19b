"""Helper processes: what they do is what one process does; one that dies costs nothing but time."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import stagelens
from stagelens.cli import main, options
from stagelens.compute import cgroups, cores, helpers, memory, processes
from stagelens.compute.helpers import Helper, Helpers, Item
from stagelens.contracts import ProgressCallback, StageLensError, no_progress
from stagelens.estimators import counterfactuals as cached
from stagelens.estimators import sharing_out
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.durations import STARTING, finished_after
from stagelens.estimators.registry import make_estimator
from stagelens.estimators.sharing_out import best_count
from stagelens.runs.run import Run, open_run
from tests.support.loops import Plan, differing, make_batches, make_task, record_plans

ITEMS = [Item({"number": number}, float(number)) for number in range(1, 6)]

DILIGENT = """
import json, sys
say = lambda told: print(json.dumps(told), flush=True)
say({"ready": True})
for line in sys.stdin:
    say({"done": 0.5, "text": "half"})
    open(sys.argv[1], "a").write(line)
    say({"over": True})
"""
DYING = """
import sys
print('{"ready": true}', flush=True)
sys.stdin.readline()
sys.exit(1)
"""
ABSENT = "raise SystemExit(1)"
"""Programs of helpers: one that notes what it does, one that dies of its first piece of work, and
one that never starts."""


def program(text: str, *words: object) -> list[str]:
    return [sys.executable, "-c", text, *map(str, words)]


def waits_for(there: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not there():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_every_piece_of_work_is_done_once(tmp_path: Path) -> None:
    notes, mine, told = tmp_path / "notes", [], []
    shared = Helpers(program(DILIGENT, notes))
    shared.start(2, 1)

    def own(item: Item, progress: ProgressCallback) -> None:
        mine.append(item.message["number"])
        if len(mine) == 1:
            waits_for(lambda: notes.exists() and len(notes.read_text().split("\n")) == 5)
        progress(0.5, "half")

    try:
        shared.share(ITEMS, own, lambda done, text: told.append((done, text)))
    finally:
        shared.close()
    done = [Item({"number": number}, 0).key for number in mine]
    assert len(mine) == 1  # while the helpers did all the others
    assert sorted([*done, *notes.read_text().split("\n")[:-1]]) == [item.key for item in ITEMS]
    assert told == sorted(told, key=lambda each: each[0]) and told[-1][0] <= 1
    assert not any(psutil.pid_exists(helper.pid) for helper in shared.started)


@pytest.mark.parametrize("text", [DYING, ABSENT])
def test_what_a_helper_does_not_finish_is_done_here(text: str) -> None:
    mine: list[int] = []
    shared = Helpers(program(text))
    shared.start(2, 1)

    def own(item: Item, _progress: ProgressCallback) -> None:
        if not mine:
            waits_for(lambda: text is ABSENT or len(shared._mine) == 2)
        mine.append(item.message["number"])

    try:
        shared.share(ITEMS, own, no_progress)
    finally:
        shared.close()
    assert sorted(mine) == [1, 2, 3, 4, 5]


def test_work_that_fails_here_leaves_nothing_to_do(tmp_path: Path) -> None:
    shared = Helpers(program(DILIGENT, tmp_path / "notes"))

    def own(_item: Item, _progress: ProgressCallback) -> None:
        raise StageLensError("no room")

    with pytest.raises(StageLensError, match="no room"):
        shared.share(ITEMS, own, no_progress)
    mine: list[int] = []
    shared.share(ITEMS[:1], lambda item, _: mine.append(item.message["number"]), no_progress)
    assert mine == [1]


# How many


def test_the_fewest_processes_that_are_about_as_soon_done() -> None:
    assert finished_after([3, 2, 1], [0, 0]) == 3
    assert finished_after([3, 2, 1], [0, 10]) == 6  # a helper that starts late gets nothing
    long = [3 * 60.0, 2 * 60.0, 60.0]
    assert finished_after(long, [0, STARTING]) == 180 + STARTING
    assert best_count(long, most=8, running=1) == 2  # a third would wait for the longest too
    assert best_count(long, most=1, running=1) == 1
    assert best_count([60.0] * 8, most=3, running=1) == 3
    # Not worth the start; but free where the helper runs already.
    assert best_count([0.9, 0.6, 0.3], most=8, running=1) == 1
    assert best_count([0.9, 0.6, 0.3], most=2, running=2) == 2


def test_cores_are_those_that_affinity_container_and_dashboard_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "jobs" / "one"
    own.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/jobs/one\n")
    (own / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr(cgroups, "_ALL", tmp_path)
    monkeypatch.setattr(cgroups, "_OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv(cores.LIMIT, raising=False)
    assert cores.usable() == 8
    (own.parent / "cpu.max").write_text("350000 100000\n")
    assert cores.usable() == 3
    monkeypatch.setenv(cores.LIMIT, "2")
    assert cores.usable() == 2
    (own / "cpu.max").write_text("20000 100000\n")
    assert cores.usable() == 1


@pytest.mark.parametrize("text", ["0", "-1", "many"])
def test_a_number_of_processes_that_is_none_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(helpers.ASKED, text)
    with pytest.raises(StageLensError, match=r"STAGELENS_PROCESSES is .*; give a whole number"):
        helpers.asked()


# Counterfactuals


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four stages with dropout, and a set; nothing computed."""
    task = make_task({"kind": "mlp", "hidden": [6], "dropout": 0.3})

    def adamw(model: torch.nn.Module, _before: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    path = tmp_path_factory.mktemp("helpers") / "run"
    record_plans(path, task, [Plan(name, adamw, batches=4) for name in ("a", "b", "c", "d")])
    images, labels = make_batches(1, seed=5, size=20)[0]
    recorder = stagelens.Recorder(path, task, resume=True)
    recorder.add_set("test", images=images, labels=labels.tolist())
    recorder.close()
    return path


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> Run:
    shutil.copytree(recorded, tmp_path / "run")
    return open_run(tmp_path / "run")


def weights(run: Run) -> dict[str, Mapping[str, torch.Tensor]]:
    found = list(counterfactuals(run, make_estimator("replay"), run.stages))
    assert [each.trust.trust for each in found] == ["exact"] * 4
    return {each.stage: each.weights for each in found if each.weights is not None}


def assert_as_alone(run: Run, recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "alone")
    own, alone = weights(run), weights(open_run(tmp_path / "alone"))
    assert own.keys() == alone.keys()
    for name, model in own.items():
        assert differing(model, alone[name]) == [], name


@pytest.mark.slow
def test_helpers_give_the_counterfactuals_of_one_process_to_the_bit(
    run: Run, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "stagelens", "help-out", str(run.path)]
    there = lambda: list((run.path / "results" / "counterfactuals").glob("*.json"))  # noqa: E731
    do, mine = cached.do, []

    def patient(run: Run, message: Mapping[str, Any], progress: ProgressCallback) -> None:
        if "stage" in message:  # so that the helper has its share, however late it starts
            mine.append(message["stage"])
            waits_for(lambda: len(there()) >= 1)
        do(run, message, progress)

    monkeypatch.setattr(cached, "do", patient)
    monkeypatch.setenv(helpers.ASKED, "2")
    with helpers.allowed(run.path, command) as shared:
        weights(run)
        assert len(shared.started) == 1 and 1 <= len(mine) < 3 and len(there()) == 3
        assert psutil.pid_exists(shared.started[0].pid)
    assert not psutil.pid_exists(shared.started[0].pid)
    assert helpers.of(run.path) is None
    monkeypatch.delenv(helpers.ASKED)
    assert_as_alone(run, recorded, tmp_path)
    assert not list(run.path.rglob("*.tmp"))


def test_a_helper_that_dies_costs_no_counterfactual(
    run: Run, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(helpers.ASKED, "3")
    with helpers.allowed(run.path, program(DYING)) as shared:
        weights(run)
        assert len(shared.started) == 2
    assert_as_alone(run, recorded, tmp_path)


@pytest.mark.slow
def test_a_helper_whose_command_is_gone_ends_itself(run: Run) -> None:
    helper = Helper([sys.executable, "-m", "stagelens", "help-out", str(run.path)], 1)
    assert helper.ready()
    helper._process.send_signal(signal.SIGINT)  # Ctrl-C is for the command
    for stage in run.stages[:3]:
        assert helper.do(
            Item({"stage": stage.name, "estimator": "replay", "settings": {}}, 1), print
        )
    assert helper._process.stdin is not None
    helper._process.stdin.close()
    assert helper._process.wait(60) == 0
    assert len(list((run.path / "results" / "counterfactuals").glob("*.json"))) == 3


def started(run: Run, monkeypatch: pytest.MonkeyPatch, seconds: float, **threads: int) -> int:
    """How many helpers are started for a run whose stages took so long."""
    for stage in run.stages:
        environment = stage.environment.model_copy(update=threads)
        stage.facts = stage.facts.model_copy(
            update={"seconds": seconds, "environment": environment}
        )
    monkeypatch.setattr(cores, "usable", lambda: 4)
    with helpers.allowed(run.path, program(ABSENT)) as shared:
        share = sharing_out.share_out
        own = lambda _message, _progress: None  # noqa: E731
        share(run, make_estimator("replay"), run.stages[:-1], own, no_progress)
        return len(shared.started)


def test_long_work_starts_helpers_as_cores_threads_and_memory_allow(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 100 * 10**9)
    assert started(run, monkeypatch, 0.1) == 0
    # Checks of three stages, and replays of 3, 2 and 1: a fourth process would end no sooner.
    assert started(run, monkeypatch, 600.0) == 2
    assert started(run, monkeypatch, 600.0, threads=2) == 1
    assert started(run, monkeypatch, 600.0, threads=3) == 0
    assert started(run, monkeypatch, 600.0, threads=1) == 2
    monkeypatch.setenv(helpers.ASKED, "1")
    assert started(run, monkeypatch, 600.0) == 0
    monkeypatch.setenv(helpers.ASKED, "3")
    assert started(run, monkeypatch, 0.1) == 2
    monkeypatch.delenv(helpers.ASKED)
    monkeypatch.setattr(memory, "available", lambda: 400 * 10**6)
    assert started(run, monkeypatch, 600.0) == 0


def test_a_command_that_has_yet_to_start_is_predicted_to_use_as_many(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 100 * 10**9)
    replay, stages = make_estimator("replay"), run.stages[:-1]
    for seconds, count in ((0.1, 1), (600.0, 3)):
        assert started(run, monkeypatch, seconds) == count - 1
        assert sharing_out.processes_of_a_command(run, replay, stages) == count
    monkeypatch.setenv(helpers.ASKED, "2")
    assert sharing_out.processes_of_a_command(run, replay, stages) == 2
    assert sharing_out.processes_of_a_command(run, make_estimator("task-vector"), stages) == 1
    assert sharing_out.processes_of_a_command(run, replay, []) == 1


def test_estimates_and_stages_of_a_gpu_are_computed_by_one_process(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(helpers.ASKED, "3")
    own = lambda _message, _progress: None  # noqa: E731
    with helpers.allowed(run.path, program(ABSENT)) as shared:
        for name in ("task-vector", "coarse-replay"):
            made = make_estimator(name)
            assert not sharing_out.share_out(run, made, run.stages[:-1], own, no_progress)
        assert started(run, monkeypatch, 600.0, threads=1) == 2
        environment = run.last.environment.model_copy(update={"device": "cuda"})
        run.last.facts = run.last.facts.model_copy(update={"environment": environment})
        replay = make_estimator("replay")
        assert not sharing_out.share_out(run, replay, run.stages[:-1], own, no_progress)
    assert shared.started == []


@pytest.mark.parametrize("words", [("attribute", "--estimator", "replay"), ("verify",)])
def test_commands_share_out_replays_and_end_their_helpers(
    words: tuple[str, ...],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(helpers.ASKED, "")
    monkeypatch.setattr(options, "_helping", lambda _run, _task: program(DYING))
    made: list[Helpers] = []
    start = Helpers.start

    def noted(self: Helpers, count: int, threads: int) -> None:
        made.append(self)
        assert (count, threads) == (2, run.last.environment.threads)
        start(self, count, threads)

    monkeypatch.setattr(Helpers, "start", noted)
    name, *more = words
    monkeypatch.setattr(sys, "argv", ["stagelens", name, str(run.path), *more, "--processes", "3"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    # The time that went by, and not the sum of what the processes took.
    said = re.search(r"computed in ([\d.]+) (ms|s) by 3 processes", capsys.readouterr().err)
    assert (said is not None) is (name == "attribute")
    assert len({id(each) for each in made}) == 1
    assert not any(psutil.pid_exists(helper.pid) for helper in made[0].started)


def test_a_launcher_has_set_the_number_already(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.delenv(helpers.ASKED, raising=False)
    options.opened_together(str(run.path), None)
    assert helpers.of(run.path) is None
    monkeypatch.setenv(helpers.ASKED, "3")
    with pytest.raises(StageLensError, match="a launcher started 2 processes"):
        options.opened_together(str(run.path), None)
