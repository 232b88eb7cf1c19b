"""A recording that is killed keeps every finished flush, and goes on in a new stage."""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stagelens
from stagelens.contracts import RecordingError
from stagelens.replaying.reproduction import measure_deviation
from tests.support import launched
from tests.support.grids import part
from tests.support.loops import make_batches, make_task, train

CONFIG = {"kind": "mlp", "hidden": [6], "dropout": 0.3}
STAGES = ("first", "second", "third")
STEPS = 24


def made(task: stagelens.Task) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = task.build_model()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def tell(stage: str, steps: int) -> None:
    print(json.dumps([stage, steps]), flush=True)


def record(path: Path, settings: dict[str, Any]) -> None:
    """Record three stages, and print every finished flush."""
    torch.set_num_threads(1)
    task = make_task(CONFIG)
    model, optimizer = made(task)
    tell("", 0)
    recorder = stagelens.Recorder(path, task)
    settings = {"keep_optimizer": True, **settings}
    for number, name in enumerate(STAGES):
        with recorder.stage(name, model=model, optimizer=optimizer, **settings) as stage:
            on_disk = 0
            for batch in make_batches(STEPS, seed=number):
                train(task, model, optimizer, [batch], stage=stage)
                if stage.steps_on_disk > on_disk:
                    on_disk = stage.steps_on_disk
                    tell(name, on_disk)
        tell(name, STEPS)


def record_and_kill(path: Path, settings: dict[str, Any], seed: int) -> dict[str, int]:
    """Kill a recording at a random moment; gives the steps that it told were on disk."""
    chance = random.Random(seed)
    after, delay = chance.randrange(20), chance.uniform(0, 0.03)
    process = launched.begin(record, path, settings, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as lines:
        told = [lines.readline() for _ in range(after + 1)]
        time.sleep(delay)
        process.kill()
        told += lines
    process.wait()
    steps = dict(map(json.loads, filter(None, told)))
    steps.pop("", None)
    return steps


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """What an uninterrupted recording holds."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert launched.begin(record, path, {}, stdout=subprocess.DEVNULL).wait() == 0
    run = stagelens.open_run(path)
    assert [stage.steps for stage in run.stages] == [STEPS] * len(STAGES)
    return {stage.name: stage.table()["loss"].tolist() for stage in run.stages}


SETTINGS = [
    {"flush_every": 1},
    {"flush_every": 3},
    {"flush_every": 3, "checkpoint_every": 7},
    {"flush_every": 8, "checkpoint_every": 5},
    {"flush_every": 5, "checkpoint_every": 1},
]


@pytest.mark.parametrize("seed", part(range(100), every=25))
def test_a_killed_recording_keeps_every_finished_flush_and_goes_on(
    seed: int, losses: dict[str, list[float]], tmp_path: Path
) -> None:
    path, settings = tmp_path / "run", SETTINGS[seed % len(SETTINGS)]
    told = record_and_kill(path, settings, seed)
    task = make_task(CONFIG)

    if (path / "run.json").exists():
        run = stagelens.open_run(path)
        kept = {stage.name: stage for stage in (*run.stages, *run.unfinished)}
        for name, steps in told.items():
            assert kept[name].steps >= steps
        for name, stage in kept.items():
            assert stage.table()["loss"].tolist() == losses[name][: stage.steps]
            assert len(list(stage.read_steps())) == stage.steps
        assert len(run.problems) == len(run.unfinished) <= 1
        for stage in run.unfinished:
            assert f"stage '{stage.name}' was not finished: {stage.steps} steps" in run.problems[0]
    else:
        assert told == {}
    before = {file: file.stat().st_size for file in path.rglob("[!.]*") if file.is_file()}

    model, optimizer = made(task)
    recorder = stagelens.Recorder(path, task, resume=True)
    if recorder.run().stages:
        assert "restored the end of stage" in recorder.restore(model, optimizer)
    with recorder.stage("resumed", model=model, optimizer=optimizer) as resumed:
        train(task, model, optimizer, make_batches(3, seed=9), stage=resumed)
    recorder.close()

    run = stagelens.open_run(path)
    assert run.unfinished == []
    assert run.last.name == "resumed"
    for stage in run.stages:
        assert measure_deviation(task, stage).bitwise, stage.name
    lost = [file for file in before if not file.exists()]
    assert lost == []


@pytest.mark.parametrize("every", [None, 7])
def test_an_interrupted_stage_ends_at_its_checkpoint_or_is_set_aside(
    every: int | None, tmp_path: Path
) -> None:
    task = make_task(CONFIG)
    model, optimizer = made(task)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("whole", model=model, optimizer=optimizer) as stage:
        train(task, model, optimizer, make_batches(2), stage=stage)
    with (
        pytest.raises(KeyboardInterrupt),
        recorder.stage(
            "broken", model=model, optimizer=optimizer, checkpoint_every=every, flush_every=4
        ) as stage,
    ):
        train(task, model, optimizer, make_batches(17), stage=stage)
        raise KeyboardInterrupt
    recorder.close()

    resumed = stagelens.Recorder(tmp_path / "run", task, resume=True)
    run = resumed.run()
    if every is None:
        assert [(stage.name, stage.steps) for stage in run.stages] == [("whole", 2)]
        assert "stage 'broken' was interrupted and set aside" in run.problems[0]
        assert "stages/01-broken" in run.problems[0]
    else:
        assert [(stage.name, stage.steps) for stage in run.stages] == [("whole", 2), ("broken", 14)]
        assert run.problems == []
        assert measure_deviation(task, run.last).bitwise
    with pytest.raises(RecordingError, match="the name 'broken' is taken"):
        resumed.stage("broken", model=model, optimizer=optimizer)
    sentence = resumed.restore(model, optimizer)
    assert (
        sentence
        == {
            None: "restored the end of stage 'whole' (2 steps)",
            7: "restored the end of stage 'broken' (14 steps)",
        }[every]
    )


def test_a_folder_that_another_process_records_into_is_refused(tmp_path: Path) -> None:
    path, task = tmp_path / "run", make_task(CONFIG)
    process = launched.begin(record, path, {"flush_every": 1}, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert [json.loads(process.stdout.readline()) for _ in range(2)] == [["", 0], ["first", 1]]
    with pytest.raises(RecordingError, match=r"another recorder has .*run open"):
        stagelens.Recorder(path, task, resume=True)
    process.kill()
    process.stdout.close()
    process.wait()
    assert stagelens.Recorder(path, task, resume=True).run().unfinished == []
