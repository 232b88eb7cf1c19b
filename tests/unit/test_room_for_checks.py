"""Where memory is short no step is run again beside the training, and the run says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import stagelens
from stagelens.compute import memory
from stagelens.estimators.replay import Replay
from stagelens.recording import check_place, checked_steps, no_checks
from stagelens.recording.check_place import CheckPlace
from stagelens.recording.noted_step import NotedStep
from stagelens.recording.step_comparison import At, check_update
from stagelens.replaying.reproduction import measure_deviation
from stagelens.replaying.step import Stepper
from stagelens.runs.batches import flatten
from stagelens.runs.states import TrainingState
from stagelens.runs.steps import FlatMicroBatch
from tests.support.loops import Training, make_batches, make_task, refused, train


def record(path: Path, task: stagelens.Task | None = None) -> stagelens.Run:
    task = task or make_task()
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    recorder = stagelens.Recorder(path, task)
    with recorder.stage("first", model=model, optimizer=optimizer) as stage:
        train(task, model, optimizer, make_batches(5), stage=stage)
    recorder.close()
    return stagelens.open_run(path, task)


def run_out(*_: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("where", "name", "instead", "says"),
    [
        (memory, "available", lambda: 1000, "1,000 bytes were free"),
        (no_checks, "CheckedSteps", run_out, "memory ran out when that was prepared"),
        (checked_steps.CheckedSteps, "_check", run_out, "memory ran out when one was"),
    ],
)
def test_no_step_is_run_again_where_memory_is_short(
    where: Any, name: str, instead: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, instead)
    run = record(tmp_path / "run")
    monkeypatch.undo()
    assert run.last.facts.checked == [] and says in str(run.last.facts.unchecked)
    (problem,) = run.problems
    assert "no step of stage 'first' was run again while it was recorded" in problem
    assert run.last.replayable and measure_deviation(run.task, run.last).bitwise


def test_what_a_check_takes_is_a_few_times_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(p.nbytes for p in make_task().build_model().parameters())
    for free, checked in ((7 * size, False), (9 * size, True)):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        run = record(tmp_path / str(free))
        assert bool(run.last.facts.checked) == checked
        assert (run.last.facts.unchecked is None) == checked


@pytest.mark.parametrize(
    ("copied", "free", "checked"),
    [(0, 3.3, False), (0, 3.9, True), (2**30, 6.5, False), (2**30, 7.5, True)],
)
def test_of_larger_models_it_is_less(
    copied: int, free: float, checked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(p.nbytes for p in make_task().build_model().parameters())
    for module, prefix in ((check_place, ""), (checked_steps, "_")):
        monkeypatch.setattr(module, f"{prefix}SMALL_BYTES", 0)
        monkeypatch.setattr(module, f"{prefix}COPIED_BYTES", copied)
    monkeypatch.setattr(memory, "available", lambda: int(free * size))
    assert bool(record(tmp_path / "run").last.facts.checked) == checked


BESIDE = CheckPlace(torch.device("cpu"), beside=True)
"""As on a machine whose other device trains: the CPU stands in for both."""


def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_checks, "place_for", lambda _start: BESIDE)


def test_beside_a_training_on_another_device_the_first_step_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(monkeypatch)
    run = record(tmp_path / "run")
    assert (run.last.facts.checked, run.last.facts.unchecked) == ([1], None)


@pytest.mark.parametrize("keep", ["all", "none"])
def test_another_loss_is_found_beside_the_training(
    keep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(monkeypatch)
    training = Training(tmp_path / "run", make_task())
    with refused("of the first step are 1.5 times"), training.stage(keep_batches=keep) as stage:
        for batch in make_batches(2):
            loss = training.loss(batch)
            training.optimizer.zero_grad()
            (1.5 * loss).backward()
            training.update()
            stage.step(batch, loss)


def another_error(*_: Any) -> Any:
    raise NotImplementedError("no such kernel")


@pytest.mark.parametrize(
    ("model", "where", "name", "instead", "says"),
    [
        ({"kind": "mlp", "hidden": [6], "dropout": 0.3}, None, "", None, "drew random numbers"),
        (None, check_place, "_LONGEST", 1e-9, "would take long on the CPU"),
        (None, Stepper, "backward", another_error, "NotImplementedError: no such kernel"),
        (None, checked_steps, "build_optimizer", another_error, "NotImplementedError: no such"),
        (None, checked_steps.CheckedSteps, "_check", run_out, "memory ran out when one was"),
    ],
)
def test_what_the_cpu_cannot_run_again_is_left_out(
    model: Any,
    where: Any,
    name: str,
    instead: Any,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beside(monkeypatch)
    if where is not None:
        monkeypatch.setattr(where, name, instead)
    run = record(tmp_path / "run", make_task(model))
    monkeypatch.undo()
    assert run.last.facts.checked == [] and says in str(run.last.facts.unchecked)
    assert run.last.replayable and measure_deviation(run.task, run.last).bitwise


def test_a_cpu_that_is_slow_in_the_dtype_of_the_passes_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speeds = {torch.float32: 1e9, torch.float16: 1.0, torch.bfloat16: 1.0}
    monkeypatch.setattr(check_place, "_speed", speeds.__getitem__)
    record: Any = None
    step = NotedStep(record, [FlatMicroBatch(None, [torch.zeros(100)], {})], [])
    wide, half = torch.nn.Linear(9, 9), torch.nn.Linear(9, 9).half()
    assert BESIDE.why_not(wide, step, None) is None
    assert "would take long" in str(BESIDE.why_not(half, step, None))
    assert "would take long" in str(BESIDE.why_not(wide, step, torch.bfloat16))
    eighth = torch.nn.Linear(9, 9).to(torch.float8_e4m3fn)  # which has no products of its own
    assert BESIDE.why_not(eighth, step, None) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_how_fast_a_cpu_is_can_be_told(dtype: torch.dtype) -> None:
    state = torch.get_rng_state()
    assert 0 < check_place._speed(dtype) < float("inf")
    assert torch.equal(state, torch.get_rng_state())


def test_another_device_may_round_numbers_of_an_update_otherwise() -> None:
    torch.manual_seed(0)
    before = 0.02 * torch.randn(100_000).bfloat16()
    own = before - (1e-4 * torch.randn(100_000)).bfloat16()
    after = own.clone()
    after[::20_000] *= 1 + 2**-7  # the next number
    states = [TrainingState({"weight": tensor}, {}) for tensor in (own, after, own * 1.1)]
    at = At("first", 1, torch.finfo(torch.bfloat16).eps)
    check_update({"weight": before}, states[0], states[1], at, beside=True)
    for other, beside in ((states[1], False), (states[2], True)):
        with pytest.raises(stagelens.contracts.RecordingError, match="not the optimiser's own"):
            check_update({"weight": before}, states[0], other, at, beside)


@pytest.mark.parametrize("kept", [True, False])
def test_texts_take_the_cpu_long_too(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(1, 1)
    monkeypatch.setattr(check_place, "_speed", lambda _dtype: 6 * 2 * 100 / check_place._LONGEST)

    def why_not(text: str) -> str | None:
        batch = {"texts": [text], "number": 1.0}
        description, tensors = flatten(batch) if kept else (None, [])
        micro = FlatMicroBatch(description, tensors, {})
        record: Any = None
        return BESIDE.why_not(
            model, NotedStep(record, [micro], [], None if kept else [batch]), None
        )

    assert why_not("short") is None
    assert "would take long" in str(why_not("long" * 30))


@pytest.mark.parametrize(
    ("on_device", "on_cpu", "expected"),
    [
        (10**9, 10**9, CheckPlace(torch.device("cuda"))),
        (10**4, 10**9, CheckPlace(torch.device("cpu"), beside=True)),
        (10**4, 10**3, "1,000 bytes were free"),
    ],
)
def test_an_accelerator_is_left_to_the_training(
    on_device: int, on_cpu: int, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    def look(start: Any) -> Any:
        found.append(check_place.place_for(replace(start, device=torch.device("cuda"))))
        return "that is not the question here"

    monkeypatch.setattr(no_checks, "place_for", look)
    monkeypatch.setattr(check_place, "_free", lambda _device: on_device)
    monkeypatch.setattr(memory, "available", lambda: on_cpu)
    record(tmp_path / "run")
    (place,) = found
    assert expected in place if isinstance(expected, str) else place == expected


def test_the_trust_in_a_replay_says_of_which_stage_nothing_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path / "run", make_task())
    for name, free in (("first", 10**9), ("second", 1000)):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        with training.stage(name) as stage:
            for batch in make_batches(3):
                training.step(batch, stage)
    monkeypatch.undo()
    run = training.recorder.run()
    (found,) = Replay().counterfactuals(run, run.stages[:1], lambda *_: None)
    assert found.trust.reason == (
        "Replay repeats the recording bit for bit (no step of stage 'second' was checked while it "
        "was recorded)."
    )
