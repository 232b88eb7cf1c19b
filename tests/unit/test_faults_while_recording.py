"""Whatever fails in a recording, the training goes on as if nobody looked, and the run says so."""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.contracts import RecordingWarning, Refused
from stagelens.effects.computing import attribute
from stagelens.recording import (
    checked_steps,
    fingerprint,
    micro_batches,
    mode_boundary,
    no_checks,
    run_writer,
    stage_files,
    stage_recorder,
    stage_start,
    stage_states,
    step_writer,
    watch,
)
from stagelens.replaying.replay import check_replayable
from stagelens.replaying.reproduction import measure_deviation
from tests.support.grids import part
from tests.support.loops import CLASSES, SHAPE, differing, make_batches, refused, train
from tests.support.loops import make_task as plain_task

STAGES, STEPS = ("first", "second"), 5
CONFIG = {"kind": "mlp", "hidden": [6], "dropout": 0.3}
SETTINGS: dict[str, Any] = {"flush_every": 2, "checkpoint_every": 2}

PLACES: list[tuple[Any, str, int]] = [
    # What fails, and at which of its calls first
    (stage_recorder, "read_start", 0),
    (stage_states, "capture", 0),
    (stage_start, "save_state", 0),
    (stage_start, "save_state", 1),
    (mode_boundary, "find_boundary", 0),
    (run_writer, "write_json", 0),
    (run_writer, "write_json", 1),
    (run_writer, "write_json", 4),
    (no_checks, "CheckedSteps", 0),
    (watch.Watch, "__init__", 0),
    (watch.Watch, "_see_pass", 0),
    (watch.Watch, "_see_pass", 3),
    (watch.Watch, "_read_settings", 2),
    (watch.Watch, "_check_gradient", 3),
    (watch.Watch, "take_rng", 2),
    (watch.Watch, "check_now", 0),
    (watch.Watch, "close", 0),
    (fingerprint.SampledFingerprint, "take", 3),
    (fingerprint.SampledFingerprint, "changed", 3),
    (micro_batches, "flatten", 0),
    (micro_batches, "flatten", 3),
    (checked_steps.CheckedSteps, "_hold", 0),
    (checked_steps.CheckedSteps, "noted", 2),
    (checked_steps.CheckedSteps, "_run", 0),
    (checked_steps.CheckedSteps, "check", 0),
    (step_writer.StepWriter, "note", 3),
    (step_writer, "write_part", 0),
    (step_writer, "write_part", 2),
    (stage_files, "save_state", 0),
    (stage_files, "save_state", 2),
    (stage_files.StageFiles, "tidy", 0),
    (run_writer, "FinalModel", 0),
]
ERRORS: list[Callable[[], Exception]] = [
    lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    lambda: RuntimeError("something that nobody thought of"),
    MemoryError,
]
CASES = [
    (place, error, lasting)
    for number, place in enumerate(PLACES)
    for error in range(len(ERRORS))
    for lasting in (False, True)
]


def breaks(
    monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str, int], error: int, lasting: bool
) -> list[int]:
    """Let something fail at one of its calls, or from there on; gives how often it was called."""
    owner, name, first = place
    whole, calls = getattr(owner, name), [0]

    def broken(*given: Any, **options: Any) -> Any:
        calls[0] += 1
        late = calls[0] > first + 1
        if calls[0] <= first or (late and not lasting):
            return whole(*given, **options)
        raise ERRORS[error]()

    monkeypatch.setattr(owner, name, broken)
    return calls


def trained(
    recorder: stagelens.Recorder | None, stages: Sequence[str] = STAGES
) -> tuple[dict[str, Tensor], Tensor]:
    """Weights at the end of two stages, and the next random number."""
    task = plain_task(CONFIG)
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for number, name in enumerate(stages):
        block: Any = nullcontext()
        if recorder is not None:
            block = recorder.stage(name, model=model, optimizer=optimizer, **SETTINGS)
        with block as stage:
            for batch in make_batches(STEPS, seed=number):
                loss = task.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if stage is not None:
                    stage.step(batch, loss)
                    if number == 0 and stage.steps == 3:
                        stage.keep_best("loss", 1.0)
    return {n: t.clone() for n, t in model.state_dict().items()}, torch.rand(1)


@pytest.fixture(scope="module")
def alone() -> tuple[dict[str, Tensor], Tensor]:
    return trained(None)


def told(seen: list[warnings.WarningMessage]) -> list[str]:
    return [str(each.message) for each in seen if each.category is RecordingWarning]


def spoilt(sentences: list[str]) -> set[str]:
    """The stages that warnings name."""
    return {found for each in sentences for found in re.findall(r"^stage '(\w+)'", each)}


@pytest.mark.parametrize(("place", "error", "lasting"), part(CASES, every=8))
def test_a_training_ends_as_if_nobody_looked(
    place: tuple[Any, str, int],
    error: int,
    lasting: bool,
    alone: tuple[dict[str, Tensor], Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = stagelens.Recorder(tmp_path / "run", plain_task(CONFIG))
    calls = breaks(monkeypatch, place, error, lasting)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        weights, number = trained(recorder)
    assert calls[0] > place[2], "nothing failed"
    assert differing(weights, alone[0]) == []
    assert torch.equal(number, alone[1])
    sentences = told(seen)
    named = spoilt(sentences)
    # Once for the replay of a stage, and once more if its boundaries are lost too.
    assert len(sentences) <= (2 * len(STAGES) if lasting else len(named)), sentences
    monkeypatch.undo()
    recorder.close()

    run = stagelens.open_run(tmp_path / "run")
    kept = {stage.name for stage in run.stages}
    for name in STAGES:
        if name in named:
            assert any(f"stage {name!r}" in problem for problem in run.problems), run.problems
        else:
            assert name in kept
    for stage in run.stages:
        assert differing(stage.start().model, stage.end().model) or stage.name in named
        if stage.name not in named:
            assert measure_deviation(run.task, stage).bitwise
    if run.stages and run.stages[-1].name == STAGES[-1]:
        assert differing(run.last.end().model, weights) == []


def test_one_fault_costs_one_stage_its_replay_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = stagelens.Recorder(tmp_path / "run", plain_task(CONFIG))
    breaks(monkeypatch, (step_writer, "write_part", 0), 0, False)
    with pytest.warns(RecordingWarning) as seen:
        trained(recorder)
    (sentence,) = told(list(seen))
    assert "stage 'first' cannot be replayed" in sentence
    assert "cannot be written (No space left on device); free some space" in sentence
    run = stagelens.open_run(tmp_path / "run")
    assert [(s.name, s.replayable, s.updates) for s in run.stages] == [
        ("first", False, STEPS),
        ("second", True, STEPS),
    ]


@pytest.mark.parametrize("lost", ["start", "end"])
def test_a_stage_after_one_that_a_full_disk_cost_says_so(
    lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = stagelens.Recorder(tmp_path / "run", plain_task(CONFIG))
    for module in (stage_start, stage_files):
        whole = module.save_state

        def full(root: Path, prefix: str, *more: Any, whole: Any = whole) -> Any:
            if prefix.endswith(f"02-third/{lost}"):
                raise ERRORS[0]()
            return whole(root, prefix, *more)

        monkeypatch.setattr(module, "save_state", full)
    with pytest.warns(RecordingWarning) as seen:
        trained(recorder, (*STAGES, "third", "fourth", "fifth"))
    first, second = told(list(seen))
    assert "stage 'third'" in first and "No space left on device" in first
    assert "the end of stage 'third' before it was not recorded" in second
    assert "go back to the end of stage 'second' before stage 'fourth'" in second
    assert "reinitialised" not in second
    run = recorder.run()
    assert [(s.name, s.replayable) for s in run.stages[2:]] == [("fourth", False), ("fifth", True)]


class Refusing(stagelens.tasks.ImageClassification):
    """Fails wherever the recorder calls it."""

    def stage_config(self, model: nn.Module) -> dict[str, Any] | None:
        raise KeyError("mine")


def test_code_of_the_users_that_fails_is_named(tmp_path: Path) -> None:
    task = Refusing(CLASSES, SHAPE, model=CONFIG)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with pytest.warns(RecordingWarning, match="stage 'first' is not recorded.*KeyError: 'mine'"):
        trained(recorder)
    run = stagelens.open_run(tmp_path / "run", task)
    assert run.stages == [] and any("stage 'first' is not recorded" in p for p in run.problems)


def test_an_interruption_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = stagelens.Recorder(tmp_path / "run", plain_task(CONFIG))

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(micro_batches, "flatten", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(recorder)


class Heavier(torch.optim.SGD):
    """Nobody knows what it does."""


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Heavier, "Heavier"),
        (lambda p: torch.optim.SGD(p, maximize=True), "SGD with maximize=True"),
    ],
)
def test_an_optimiser_that_is_not_known_costs_the_replay_only(
    make: Callable[[Any], torch.optim.Optimizer], says: str, tmp_path: Path
) -> None:
    task = plain_task(CONFIG)
    model = task.build_model()
    optimizer = make(list(model.parameters()))
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with (
        pytest.warns(RecordingWarning, match=f"stage 'first' cannot be replayed.*{says}"),
        recorder.stage("first", model=model, optimizer=optimizer) as stage,
    ):
        train(task, model, optimizer, make_batches(STEPS), stage=stage)
    images, labels = make_batches(1, seed=9)[0]
    recorder.add_set("test", images=images, labels=labels.tolist())
    run = recorder.run()
    assert differing(run.last.end().model, dict(model.state_dict())) == []
    assert (run.last.steps, run.last.replayable) == (STEPS, False)
    assert run.last.table()["lr"].tolist() == [optimizer.param_groups[0]["lr"]] * STEPS
    assert attribute(run, "test", "task-vector").table["effect"].notna().all()
    with refused(says, by=Refused):
        check_replayable([run.last])


def test_a_stage_after_a_change_that_nothing_explains_has_its_boundaries(tmp_path: Path) -> None:
    task = plain_task(CONFIG)
    model = task.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("first", model=model, optimizer=optimizer) as stage:
        train(task, model, optimizer, make_batches(STEPS), stage=stage)
    with torch.no_grad():
        model[1].weight.mul_(0.9)  # type: ignore[index]
    with (
        pytest.warns(RecordingWarning, match="does not start where that one ended"),
        recorder.stage("second", model=model, optimizer=optimizer) as stage,
    ):
        train(task, model, optimizer, make_batches(STEPS, seed=1), stage=stage)
    run = recorder.run()
    assert [(s.name, s.steps, s.replayable) for s in run.stages] == [
        ("first", STEPS, True),
        ("second", STEPS, False),
    ]
    assert differing(run.last.end().model, dict(model.state_dict())) == []
    assert differing(run.last.start().model, run.stages[0].end().model) == ["1.weight"]
