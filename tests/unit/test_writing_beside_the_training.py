"""Parts are written by a thread, which the training neither waits for nor loses steps to."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import stagelens
from stagelens.contracts import RecordingWarning
from stagelens.recording import step_writer
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.schema import PartRef
from tests.support.loops import make_batches, make_task, train, written

STEPS = 12


def record(path: Path, act: Any = lambda stage: None, **settings: Any) -> stagelens.Run:
    """Record steps; ``act`` is called after each of them."""
    task = make_task()
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    recorder = stagelens.Recorder(path, task)
    with recorder.stage("first", model=model, optimizer=optimizer, **settings) as stage:
        for batch in make_batches(STEPS):
            train(task, model, optimizer, [batch], stage=stage)
            act(stage)
    recorder.close()
    return stagelens.open_run(path, task)


def test_a_disk_that_is_slow_holds_no_step_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, let_go, seen = step_writer.write_part, threading.Event(), []

    def slow(*given: Any) -> PartRef:
        let_go.wait(60)
        return whole(*given)

    def act(stage: Any) -> None:
        seen.append(stage.steps_on_disk)
        if stage.steps == STEPS:
            let_go.set()

    monkeypatch.setattr(step_writer, "write_part", slow)
    run = record(tmp_path / "run", act, flush_every=2)
    assert seen == [0] * STEPS  # all of them were made before the first part was there
    assert [part.steps for part in run.last.facts.parts] == [2, STEPS - 2]
    assert measure_deviation(run.task, run.last).bitwise


def test_what_is_held_for_a_slow_disk_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_writer, "_HELD_BYTES", 0)
    run = record(tmp_path / "run", flush_every=2)
    assert [part.steps for part in run.last.facts.parts] == [2] * (STEPS // 2)


def test_how_steps_are_divided_into_parts_does_not_matter(tmp_path: Path) -> None:
    digests = {
        record(tmp_path / str(every), lambda stage: None, flush_every=every).digest
        for every in (1, 5, 1024)
    }
    assert len(digests) == 1


def test_a_part_that_cannot_be_written_is_told_at_a_later_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = step_writer.write_part, []

    def full(*given: Any) -> PartRef:
        calls.append(given[2])
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return whole(*given)

    def act(stage: Any) -> None:
        assert len(calls) > 2 or written(stage, stage.steps // 2 * 2)

    monkeypatch.setattr(step_writer, "write_part", full)
    with pytest.warns(RecordingWarning, match="No space left on device") as told:
        run = record(tmp_path / "run", act, flush_every=2)
    assert len(told) == 1
    assert calls == [0, 1, 2]  # nothing follows a part that is missing
    assert (run.last.steps, run.last.updates, run.last.replayable) == (4, STEPS, False)
