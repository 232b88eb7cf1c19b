"""A replay that does not repeat the recording bit for bit, and what that means for effects."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.contracts import Refused, no_progress
from stagelens.effects.computing import attribute
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.registry import make_estimator
from stagelens.estimators.stage_trust import StageTrust
from stagelens.measuring.models import measure
from stagelens.replaying.replay import replay_later
from stagelens.tasks import ImageClassification
from stagelens.trust.settling import settle
from stagelens.trust.verification import trusted, verify
from tests.support.loops import CLASSES, SHAPE, Plan, make_batches, record_plans


class Slightly(ImageClassification):
    """Its loss is not quite the one that was trained on."""

    off: float = 0.0

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        # The same loss, with another gradient: rounding on another machine looks like that.
        loss = super().loss(model, batch)
        return loss + self.off * (loss - loss.detach())


def not_bit_for_bit(path: Path, off: float) -> stagelens.Run:
    """A run whose replay has gradients that are larger than the recorded ones by this share."""
    task = Slightly(CLASSES, SHAPE, model={"kind": "mlp", "hidden": [6]})

    def sgd(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.05)

    record_plans(path, task, [Plan(name, sgd) for name in ("first", "second")])
    images, labels = make_batches(1, seed=5, size=30)[0]
    recorder = stagelens.Recorder(path, task, resume=True)
    recorder.add_set("test", images=images, labels=labels)
    recorder.close()
    task.off = off
    return stagelens.open_run(path, task)


def test_replay_that_is_not_bit_for_bit_says_how_far_it_is_off(tmp_path: Path) -> None:
    run = not_bit_for_bit(tmp_path / "run", 1e-3)
    (counterfactual,) = counterfactuals(run, make_estimator("replay"), [run.stage("first")])
    trust = counterfactual.trust
    assert trust.trust == "estimated"
    assert trust.deviation is not None
    assert 5e-4 < trust.deviation < 2e-3  # plain SGD's change is 1e-3 larger, to first order
    assert trust.expected_error is None  # of weights; what it does to effects is measured later
    assert f"deviates from the recording by {trust.deviation:.1e}" in trust.reason
    assert counterfactual.repeated is not None and trust.cost == 2


def effect_of(run: stagelens.Run, model: Mapping[str, Tensor]) -> np.ndarray:
    """Margin of the final model minus that of another, on the set."""
    examples = run.evaluation_set("test")
    weights = [run.last.end().model, model]
    module = run.task.build_model()
    final, own = measure(run.task, module, weights, examples.batches(64), examples.count)
    return final.values["margin"] - own.values["margin"]


@pytest.mark.parametrize("again", [False, True], ids=["computed", "from the cache"])
def test_the_expected_error_of_a_replay_is_what_repeating_the_recording_misses(
    tmp_path: Path, again: bool
) -> None:
    run = not_bit_for_bit(tmp_path / "run", 1e-3)
    if again:
        attribute(run, "test", "replay")
        shutil.rmtree(run.path / "results" / "tables")
    shown = attribute(run, "test", "replay").trust["first"]
    assert shown.trust == "estimated" and shown.deviation is not None
    later = replay_later(run, run.stage("first"), run.stage("first").end()).state.model
    without_it = replay_later(run, run.stage("first"), run.stage("first").start()).state.model
    missed = np.linalg.norm(effect_of(run, later)) / np.linalg.norm(effect_of(run, without_it))
    assert shown.expected_error == pytest.approx(missed, rel=1e-5)
    assert 0 < missed < 0.1 and shown.reliable
    assert "Repeating the recorded stages here changes the margin by" in shown.reason


def test_a_replay_that_misses_more_than_the_effect_is_refused(tmp_path: Path) -> None:
    run = not_bit_for_bit(tmp_path / "run", 30.0)
    with pytest.raises(Refused, match="by more than this stage's effect"):
        verify(run, "test", [("task-vector", {})], lambda *_: None)


def test_a_replay_that_misses_more_than_the_effect_is_tried_once(tmp_path: Path) -> None:
    settled = settle(not_bit_for_bit(tmp_path / "run", 30.0), "test", 60.0, estimate=False)
    assert settled.result.trust["first"].estimator == "task-vector" and not settled.left


def test_a_replay_that_is_nearly_exact_verifies_estimates(tmp_path: Path) -> None:
    run = not_bit_for_bit(tmp_path / "run", 1e-3)
    rows = verify(run, "test", [("task-vector", {})], lambda *_: None)
    assert set(rows[rows["stage"] == "first"]["trust"]) <= {"verified", "does not agree"}
    assert trusted(run, attribute(run, "test", "task-vector")).trust["first"].agreements


def replayed(run: stagelens.Run) -> StageTrust:
    """What is known of the model without the first stage, not taken from the cache."""
    (found,) = make_estimator("replay").counterfactuals(run, run.stages[:1], no_progress)
    return found.trust


class Scaled(ImageClassification):
    """Its loss has a factor near 1: a sum, which as many threads as there are add up in parts."""

    numbers = torch.rand(1_000_003, generator=torch.Generator().manual_seed(0))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return super().loss(model, batch) * (self.numbers.sum() / 5e5)


def test_a_replay_with_fewer_threads_than_recorded_is_measured_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Scaled(CLASSES, SHAPE, model={"kind": "mlp", "hidden": [6]})

    def sgd(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.05)

    before, set_threads = torch.get_num_threads(), torch.set_num_threads
    torch.set_num_threads(3)
    try:
        record_plans(tmp_path / "run", task, [Plan(name, sgd) for name in ("first", "second")])
    finally:
        torch.set_num_threads(before)
    run = stagelens.open_run(tmp_path / "run", task)
    whole = replayed(run)
    assert whole.trust == "exact" and "threads" not in whole.reason
    # As on a machine, or in a job, that has fewer.
    monkeypatch.setattr(torch, "set_num_threads", lambda _: set_threads(1))
    fewer = replayed(run)
    set_threads(before)
    assert fewer.trust == "estimated" and fewer.deviation is not None
    assert 0 < fewer.deviation < 1e-3
    assert "on this machine it deviates from the recording by" in fewer.reason
    assert "with 1 of the 3 threads that stage 'second' was recorded with" in fewer.reason
