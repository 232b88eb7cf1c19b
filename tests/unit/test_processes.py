"""One command in several processes: the same numbers, written once; a killed process is told."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import stagelens
from stagelens.cli import main
from stagelens.compute import processes
from stagelens.contracts import StageLensError
from stagelens.effects.computing import attribute, boundaries
from stagelens.effects.results import Result, load_result
from stagelens.measuring import models
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.writer import write_set
from stagelens.trust import noise, verification
from tests.conftest import ROOT
from tests.support import launched, small_runs
from tests.support.loops import Plan, differing, make_batches, make_task, record_plans
from tests.support.stored_models import counterfactuals

COUNT = 60
ESTIMATORS = ("task-vector", "coarse-replay", "unrolled-jump", "unrolled-scale")
FLAGS = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
QUIET = lambda *_: None  # noqa: E731


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four stages in float32, with dropout and clipping, and a set; nothing computed."""
    config = {"kind": "cnn", "channels": [4, 4], "hidden": 6, "dropout": 0.3}
    task = make_task(config)
    plans = [
        Plan(
            name,
            lambda model, _: torch.optim.AdamW(model.parameters(), lr=0.01),
            batches=4,
            loop={"clip_norm": 1.0},
        )
        for name in ("first", "second", "third", "fourth")
    ]
    path = tmp_path_factory.mktemp("processes") / "run"
    record_plans(path, task, plans)
    images, labels = make_batches(1, seed=5, size=COUNT)[0]
    recorder = stagelens.Recorder(path, task, resume=True)
    recorder.add_set("test", images=images, labels=labels.tolist())
    recorder.close()
    return path


@pytest.fixture(scope="module")
def alone(recorded: Path) -> Run:
    """What one process computes."""
    path = recorded.with_name("alone")
    shutil.copytree(recorded, path)
    run = open_run(path)
    boundaries(run, "test")
    wanted: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in ESTIMATORS]
    verification.verify(run, "test", wanted, QUIET, orders=1)
    return run


def command(rank: int, count: int, port: int, folder: Path, *words: str) -> None:
    """``stagelens WORDS``."""
    launched.as_launched(rank, count, port, folder)
    sys.argv = ["stagelens", *words]
    main()


def stored(run: Run, estimator: str) -> Result:
    settings = {"budget": 0.25} if estimator == "coarse-replay" else {}
    found = load_result(run, "test", "effects", estimator, settings)
    assert found is not None, estimator
    return found


def assert_same_numbers(run: Run, alone: Run) -> None:
    """Counterfactuals to the bit, effects to the rounding of float32."""
    own, other = dict(counterfactuals(run)), dict(counterfactuals(alone))
    assert own.keys() == other.keys()
    assert len(own) == 3 * (1 + 3 + 2 + 2)  # replay, coarse with its twins, unrolled to two orders
    for name, weights in own.items():
        assert differing(weights, other[name]) == [], name
    for estimator in ("replay", *ESTIMATORS):
        one, two = stored(run, estimator), stored(alone, estimator)
        figures = list(one.table.select_dtypes("number"))
        for name in figures:
            np.testing.assert_allclose(one.table[name], two.table[name], rtol=2e-5, atol=2e-6)
        rest = one.table.columns.difference(figures)
        pd.testing.assert_frame_equal(one.table[rest], two.table[rest])
        for stage, trust in one.trust.items():
            assert trust.trust == two.trust[stage].trust
            assert trust.deviation == two.trust[stage].deviation
    first, second = (noise.load_noise(r, r.evaluation_set("test").digest) for r in (run, alone))
    assert first is not None and second is not None
    np.testing.assert_allclose(first["effect"], second["effect"], rtol=2e-5, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.extensive), 4])  # one idle
def test_several_processes_give_the_numbers_of_one(
    count: int, recorded: Path, alone: Run, tmp_path: Path
) -> None:
    path, progress = tmp_path / "run", tmp_path / "progress.json"
    shutil.copytree(recorded, path)
    chosen = [word for name in ESTIMATORS for word in ("--estimator", name)]
    more = ("--orders", "1", "--json", "--progress", str(progress))
    ended = launched.run(count, command, tmp_path, "verify", str(path), *chosen, *more)
    told = [(tmp_path / f"err-{rank}").read_text() for rank in range(count)]
    assert ended == [0] * count, told
    assert len(json.loads((tmp_path / "out-0").read_text())) == len(ESTIMATORS) * 4 * 3
    silent = [(tmp_path / f"out-{rank}").read_text() for rank in range(1, count)]
    assert {*silent, *told[1:]} == {""}
    assert json.loads(progress.read_text())["state"] == "done"
    assert_same_numbers(open_run(path), alone)
    assert not list((path / "results" / "shards").iterdir())
    assert not list(path.rglob("*.tmp"))


def split_replay(rank: int, count: int, port: int, folder: Path) -> None:
    """A replay in float64 whose batches the processes share."""
    launched.as_launched(rank, count, port, folder)
    run = open_run(folder / "run", small_runs.make_task("cnn"))
    with processes.joined():
        attribute(run, "test", "replay", settings={"split_batches": True})


def test_batches_that_are_split_give_the_replay_to_rounding_and_say_so(tmp_path: Path) -> None:
    phases = [
        small_runs.Phase(
            name,
            lambda groups: torch.optim.AdamW(groups, 0.01),
            steps=4,
            accumulation=2,
            clip_norm=0.5,
        )
        for name in ("first", "second", "third")
    ]
    made = small_runs.record(tmp_path / "run", "cnn", phases)  # 3 examples in a micro-batch
    images = np.random.default_rng(0).normal(size=(20, 4, 4)).astype(np.float32)
    write_set(made.path, made.task, "test", images=images, labels=[n % 3 for n in range(20)])
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    assert launched.run(2, split_replay, tmp_path) == [0, 0], (tmp_path / "err-0").read_text()
    run, whole = (open_run(tmp_path / name, made.task) for name in ("run", "whole"))
    expected = attribute(whole, "test", "replay")
    found = load_result(run, "test", "effects", "replay")
    assert found is not None
    np.testing.assert_allclose(found.table["effect"], expected.table["effect"], rtol=1e-8)
    own, other = dict(counterfactuals(run)), dict(counterfactuals(whole))
    for name in own.keys() & other.keys():
        for tensor, value in own[name].items():
            torch.testing.assert_close(value, other[name][tensor], rtol=1e-8, atol=1e-12)
    assert len(other) == 2 and other.keys() <= own.keys()
    trust = found.trust["first"]
    assert expected.trust["first"].trust == "exact"
    assert trust.trust == "estimated" and "batches split over 2 processes" in trust.reason
    assert trust.deviation is not None and 0 < trust.deviation < 1e-8
    assert trust.expected_error is not None and trust.expected_error < 1e-6


def test_what_fails_in_one_process_is_told_once_and_ends_all(
    recorded: Path, tmp_path: Path
) -> None:
    words = ("attribute", str(recorded), "--set", "nothing")
    assert launched.run(2, command, tmp_path, *words) == [1, 1]
    told = (tmp_path / "err-0").read_text()
    assert told.startswith("stagelens: run 'run' has no evaluation set 'nothing'")
    assert told.count("\n") == 1
    assert (tmp_path / "err-1").read_text() == ""


@pytest.mark.slow
def test_a_killed_process_ends_the_job_in_one_line_and_shards_are_kept(
    recorded: Path, alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    shutil.copytree(recorded, path)
    launcher = ("accelerate.commands.accelerate_cli", "launch", "--multi_gpu")
    words = ("--num_processes", "2", "--main_process_port", "0", *FLAGS)
    module = (
        "-m",
        "tests.support.killed_worker",
        "attribute",
        str(path),
        "--estimator",
        "task-vector",
    )
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *words, *module],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("stagelens: ")]
    assert len(told) == 1, done.stderr
    assert "one of them died" in told[0] and "start the same command again" in told[0]
    assert done.stdout == ""

    monkeypatch.setattr(models, "SHARD", 10)
    (folder,) = (path / "results" / "shards").iterdir()
    kept = len(list(folder.glob("*.parquet")))
    assert 1 <= kept < 6
    measured: list[int] = []
    measure = models.measure

    def counted(*arguments: Any) -> Any:
        measured.append(arguments[-1])
        return measure(*arguments)

    monkeypatch.setattr(models, "measure", counted)
    again = boundaries(open_run(path), "test")
    assert measured == [10] * (6 - kept)
    whole = load_result(alone, "test", "boundaries")
    assert whole is not None
    np.testing.assert_allclose(again.table["value"], whole.table["value"], rtol=2e-5, atol=2e-6)
    assert not folder.exists()


def test_a_damaged_shard_is_measured_again(
    recorded: Path, alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(recorded, tmp_path / "run")
    run = open_run(tmp_path / "run")
    monkeypatch.setattr(models, "SHARD", 25)
    clear = models.Shards.clear
    monkeypatch.setattr(models.Shards, "clear", lambda self: None)
    first = attribute(run, "test", "task-vector", ["first"])
    (folder,) = (run.path / "results" / "shards").iterdir()
    assert sorted(each.stem for each in folder.iterdir()) == ["0-25", "25-50", "50-60"]
    (folder / "25-50.parquet").write_bytes(b"PAR1 no more")
    monkeypatch.setattr(models.Shards, "clear", clear)
    shutil.rmtree(run.path / "results" / "tables")
    again = attribute(run, "test", "task-vector", ["first"])
    pd.testing.assert_frame_equal(again.table, first.table)
    assert not folder.exists()
    one = stored(alone, "task-vector").table
    one = one[one["stage"] == "first"]
    np.testing.assert_allclose(again.table["effect"], one["effect"], rtol=2e-5, atol=2e-6)


def fails(rank: int, count: int, port: int, folder: Path) -> None:
    """Shared work that fails, and a process that goes on."""
    launched.as_launched(rank, count, port, folder)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StageLensError, match="no such set"), processes.joined():
        raise StageLensError("no such set")
    assert signal.getsignal(signal.SIGTERM) == before, "nobody could end this process"


def test_a_process_can_still_be_ended_after_work_that_failed(tmp_path: Path) -> None:
    ended = launched.run(2, fails, tmp_path)
    assert ended == [0, 0], [(tmp_path / f"err-{rank}").read_text() for rank in range(2)]


# What one process may find out by itself


def test_without_a_launcher_one_process_does_everything(tmp_path: Path) -> None:
    with processes.joined():
        assert (processes.count(), processes.is_main(), processes.is_worker()) == (1, True, False)
        assert processes.share_of_work([3, 1, 2]) == [3, 1, 2]
        assert processes.together(lambda: 5) == [5]
        processes.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []
