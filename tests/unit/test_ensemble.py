"""Small networks replayed as one ensemble: the models of replay one by one, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.contracts import no_progress
from stagelens.effects.computing import attribute
from stagelens.estimators import replay_together
from stagelens.estimators.registry import make_estimator
from stagelens.replaying import ensemble
from stagelens.replaying.replay import replay_without
from stagelens.runs.run import Run
from stagelens.tasks import ImageClassification
from stagelens.trust import settling
from stagelens.trust.settling import settle
from stagelens.trust.trust_columns import with_trust
from tests.support import loops, small_runs
from tests.support.loops import BATCH_NORM, Plan, record_plans
from tests.support.small_runs import Phase
from tests.unit.conftest import Command

NAMES = ("first", "second", "third", "last")


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)


def adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)


PHASES = [
    Phase("first", sgd),
    Phase("second", adamw, accumulation=2),
    Phase("third", sgd, clip_norm=0.3),
    Phase("last", lambda groups: torch.optim.Adam(groups, lr=0.01)),
]


def largest_difference(run: Run) -> tuple[float, float]:
    """Between models of the ensemble and of replay one by one; and its factual deviation."""
    assert all(ensemble.stackable(run.task, stage) for stage in run.stages[1:])
    found = ensemble.replay_together(run, run.stages[:-1])
    largest = 0.0
    for stage in run.stages[:-1]:
        expected = replay_without(run, stage).state.model
        assert found.without[stage.name].keys() == expected.keys()
        for name, tensor in found.without[stage.name].items():
            assert tensor.dtype == expected[name].dtype
            largest = max(largest, float((tensor.double() - expected[name].double()).abs().max()))
    return largest, max(found.relative.values())


@pytest.mark.parametrize(
    ("network", "within"),
    # Adam turns the rounding of gradients that are 0 but for it (of keys' biases) into steps.
    [("dead units", 1e-14), ("cnn", 1e-14), ("branch", 1e-14), ("encoder", 1e-10)],
)
def test_an_ensemble_gives_the_models_of_replay_one_by_one(
    network: str, within: float, tmp_path: Path
) -> None:
    run = small_runs.record(tmp_path / "run", network, PHASES)
    difference, deviation = largest_difference(run)
    assert difference <= within and deviation <= 100 * within


def test_fused_attention_and_another_head_are_replayed_too(tmp_path: Path) -> None:
    phases = [Phase("first", sgd), Phase("second", sgd), Phase("last", sgd)]
    run = small_runs.record(tmp_path / "fused", "fused", phases)
    assert largest_difference(run)[0] <= 1e-14
    phases[1] = Phase("second", adamw, network="head b")
    run = small_runs.record(tmp_path / "heads", "head a", [*phases[:2]])
    assert largest_difference(run)[0] <= 1e-14


def batch_norm(path: Path) -> Run:
    def momentum(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def kept(model: nn.Module, before: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
        return before or momentum(model, None)

    task = loops.make_task(BATCH_NORM)
    return record_plans(path, task, [Plan(name, kept) for name in NAMES[1:]])


def test_batch_norm_dropout_and_momentum_that_is_carried_along_in_float32(tmp_path: Path) -> None:
    difference, deviation = largest_difference(batch_norm(tmp_path / "run"))
    assert difference <= 1e-5 and 0 < deviation <= 1e-4


class Branch(small_runs.Branch):
    """For the images of these batches."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(20, 6)


def test_a_gradient_of_zero_still_moves_what_has_momentum(tmp_path: Path) -> None:
    task = loops.make_task(make_model=lambda _config: Branch())
    run = three(tmp_path / "run", task, lambda model, _: sgd(model.parameters()), set_to_none=False)
    records = [record for stage in run.stages for record in stage.read_steps()]
    assert {bool(record.missing) for record in records} == {True, False}
    assert largest_difference(run)[0] <= 1e-6


# ----------------------------------------------------------------------------- what does not fit


class Undecided(ImageClassification):
    """Its loss depends on the network's output in a way that stacked tensors do not allow."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        loss = super().loss(model, batch)
        return loss * 2 if loss.item() > 0 else loss


def three(path: Path, task: stagelens.Task, optimizer: Any = None, **loop: Any) -> Run:
    made = optimizer or (lambda model, _: torch.optim.SGD(model.parameters(), lr=0.05))
    return record_plans(path, task, [Plan(name, made, loop=loop) for name in NAMES[1:]])


def carried_adam(path: Path) -> Run:
    return three(
        path,
        loops.make_task(),
        lambda model, before: before or torch.optim.Adam(model.parameters()),
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda path: small_runs.record(path, "batch norm", PHASES[1:]),  # momentum=None
        lambda path: three(path, Undecided(loops.CLASSES, loops.SHAPE)),
        carried_adam,
    ],
    ids=["cumulative averages", "a loss that reads its value", "other counts of steps"],
)
def test_what_cannot_be_stacked_is_replayed_one_by_one_and_exact(
    make: Callable[[Path], Run], tmp_path: Path
) -> None:
    run = make(tmp_path / "run")
    replay = make_estimator("replay", {"ensemble": True})
    found = list(replay.counterfactuals(run, run.stages[:-1], no_progress))
    assert [each.trust.trust for each in found] == ["exact", "exact"]


def test_what_batches_hold_of_a_reference_model_is_told_by_replay_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = three(tmp_path / "run", loops.make_task())
    monkeypatch.setattr(replay_together, "held_fixed", lambda after: ["it"] * (len(after) - 1))
    assert replay_together.fitting(run, run.stages[:-1]) == [run.stage("third")]


def test_other_random_numbers_than_recorded_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differing(function: Any, randomness: str = "error") -> Any:
        return torch.func.vmap(function, randomness="different")

    run = batch_norm(tmp_path / "run")
    monkeypatch.setattr(ensemble, "vmap", differing)
    assert not ensemble.stackable(run.task, run.stages[1])


def test_a_stage_that_fails_half_way_is_replayed_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = three(tmp_path / "run", loops.make_task())
    step = ensemble.Ensemble.step

    def no_memory(self: ensemble.Ensemble, record: Any) -> None:
        if record.step == 3:
            raise RuntimeError("out of memory")
        step(self, record)

    monkeypatch.setattr(ensemble.Ensemble, "step", no_memory)
    found = ensemble.replay_together(run, run.stages[:-1])
    expected = replay_without(run, run.stages[0]).state.model
    assert not loops.differing(found.without["second"], expected)
    assert set(found.relative.values()) == {0.0}


# ---------------------------------------------------------------------------- what is said of it


def with_a_set(path: Path) -> Run:
    """Four stages of a small network, and a set."""
    task = loops.make_task()

    def adam(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=0.01)

    record_plans(path, task, [Plan(name, adam) for name in NAMES])
    images, labels = loops.make_batches(1, seed=5, size=30)[0]
    recorder = stagelens.Recorder(path, task, resume=True)
    recorder.add_set("test", images=images, labels=labels.tolist())
    recorder.close()
    return stagelens.open_run(path, task)


def test_its_deviation_is_measured_stored_and_shown_and_it_is_never_exact(
    tmp_path: Path, command: Command
) -> None:
    run = with_a_set(tmp_path / "run")
    answer = command("attribute", run.path, "--estimator", "replay", "--ensemble")
    assert answer.status == 0 and "reliable" in answer.out
    # Where either will do, what is stored does.
    stored = attribute(run, "test", "replay", settings={"ensemble": None})
    assert stored.trust["last"].trust == "exact"  # its start
    for name in NAMES[:-1]:
        known = stored.trust[name]
        assert known.ensemble and known.trust == "estimated" and known.reliable
        assert known.deviation is not None and 0 < known.deviation < 1e-4
        assert known.expected_error is not None and 0 < known.expected_error < 1e-2
        assert "one ensemble of 4 networks, which rounds otherwise" in known.reason
        assert f"it deviates from the recording by {known.deviation:.1e}" in known.reason
        assert "Repeating the recorded stages here changes the margin by" in known.reason
    words = with_trust(stored.table, stored.trust).groupby("stage")["trust"].first()
    assert {words[name] for name in NAMES[:-1]} == {"reliable"}
    # Replay itself gives exact numbers, which are then stored in place of the others.
    exact = attribute(run, "test", "replay")
    assert {known.trust for known in exact.trust.values()} == {"exact"}
    again = attribute(run, "test", "replay", settings={"ensemble": True})
    assert {known.trust for known in again.trust.values()} == {"exact"}
    both = [
        table.table.set_index(["stage", "behaviour", "example_id"]) for table in (stored, exact)
    ]
    gap = (both[0]["effect"] - both[1]["effect"]).abs().max()
    assert 0 < gap < 1e-3


def test_on_a_cpu_replay_is_one_by_one_unless_it_is_asked_otherwise(tmp_path: Path) -> None:
    run = with_a_set(tmp_path / "run")
    assert {known.trust for known in attribute(run, "test", "replay").trust.values()} == {"exact"}


@pytest.mark.parametrize(
    ("seconds", "together"),
    [
        (40.0, True),
        pytest.param(30.0, False, marks=pytest.mark.slow),
        pytest.param(60.0, False, marks=pytest.mark.slow),
    ],
)
def test_within_a_limit_a_gpu_replays_together_what_does_not_fit_one_by_one(
    seconds: float, together: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_a_set(tmp_path / "run")
    monkeypatch.setattr(replay_together, "on_small_gpu", lambda _, stages: len(stages) > 1)
    monkeypatch.setattr(settling, "price", lambda *_: (seconds, {}))
    # How long these replays really take corrects no other's price.
    monkeypatch.setattr(settling, "without_seconds", lambda *_: 0.0)
    trust = settle(run, "test", 100.0, estimate=False).result.trust
    assert [trust[name].ensemble for name in NAMES[:-1]] == [together] * 3
    if seconds == 30.0:
        assert {known.trust for known in trust.values()} == {"exact"}


@pytest.mark.slow
def test_in_a_limit_an_ensemble_can_be_asked_for(tmp_path: Path) -> None:
    trust = settle(with_a_set(tmp_path / "run"), "test", 60.0, ensemble=True).result.trust
    assert [trust[name].ensemble for name in NAMES] == [True, True, True, False]
