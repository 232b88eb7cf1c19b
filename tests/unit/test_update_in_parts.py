"""Updates that are made and compared part by part tell what whole ones tell."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from stagelens.contracts import RecordingError
from stagelens.recording import checked_steps, update_in_parts
from stagelens.recording.step_comparison import At, check_update
from stagelens.recording.update_in_parts import by_tensor, check_update_in_parts
from stagelens.replaying.optimizers import update
from stagelens.runs.optimizer_set import OptimizerSet, forget_state
from stagelens.runs.states import capture, load_optimizer
from tests.support.loops import Training, make_batches, make_task

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "fused SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "lists": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
}
FIRST = At("first", 1)
STEPS = 12
WIDE = {"kind": "mlp", "hidden": [12, 12], "dropout": 0.2}


class Made:
    """A training before and after a step, and a second model that stands before it."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, 4))
        self.model[2].bias.requires_grad_(False)
        self.optimizer = OPTIMIZERS[kind](self.model.parameters())
        self.kind = kind
        self.names = {id(p): name for name, p in self.model.named_parameters()}
        self._step()
        self.before = capture(self.model, self.optimizer, self.names)
        self.twin = copy.deepcopy(self.model)
        self.own = OPTIMIZERS[kind](self.twin.parameters())
        self._step(self.twin)
        self.after = capture(self.model, self.optimizer, self.names)

    def _step(self, twin: nn.Module | None = None) -> None:
        self.optimizer.zero_grad()
        inputs = torch.randn(5, 6)
        self.model(inputs).square().sum().backward()
        if twin is not None:
            twin(inputs)  # moves its buffers
            for mine, theirs in zip(twin.parameters(), self.model.parameters(), strict=True):
                mine.grad = None if theirs.grad is None else theirs.grad.clone()
        self.optimizer.step()

    def whole(self) -> None:
        own = copy.deepcopy(self.twin)
        for mine, theirs in zip(own.parameters(), self.twin.parameters(), strict=True):
            mine.grad = None if theirs.grad is None else theirs.grad.clone()
        optimizer = OPTIMIZERS[self.kind](own.parameters())
        names = {id(p): name for name, p in own.named_parameters()}
        load_optimizer(optimizer, names, self.before.optimizer)
        update(optimizer)
        check_update(self.before.model, capture(own, optimizer, names), self.after, FIRST)

    def parts(self) -> None:
        forget_state(self.own)
        check_update_in_parts(self.twin, self.own, self.before.optimizer, self.after, FIRST, False)


def weights(made: Made) -> None:
    made.after.model["2.weight"][1, 2] += 0.05


def frozen(made: Made) -> None:
    made.after.model["2.bias"][0] += 0.05


def buffers(made: Made) -> None:
    made.after.model["1.running_mean"].add_(0.2)


def state(made: Made) -> None:
    next(iter(made.after.optimizer["0.weight"].values())).mul_(1.1)


def state_before(made: Made) -> None:
    for tensor in made.before.optimizer["2.weight"].values():
        tensor.mul_(3)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("change", [None, weights, frozen, buffers, state, state_before])
def test_parts_tell_what_the_whole_tells(kind: str, change: Any) -> None:
    made = Made(kind)
    assert by_tensor(made.own)
    if change is not None:
        change(made)
    said = []
    for check in (made.whole, made.parts):
        try:
            check()
        except RecordingError as error:
            said.append(str(error))
    assert len(said) == (0 if change is None else 2)
    assert len(set(said)) <= 1


def test_only_one_part_of_the_optimisers_state_is_there_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, counts = Made("AdamW"), []

    def counted(optimizer: Any) -> None:
        update(optimizer)
        counts.append(len(optimizer.state))

    monkeypatch.setattr(update_in_parts, "update", counted)
    made.parts()
    assert len(counts) > 4
    assert max(counts) <= 2
    assert sum(counts) == len(made.after.optimizer)


def test_optimisers_whose_tensors_share_something_are_updated_as_a_whole() -> None:
    parameters = [nn.Parameter(torch.ones(2))]
    adam, others = torch.optim.Adam(parameters), torch.optim.RMSprop(parameters)
    assert by_tensor(OptimizerSet([adam, torch.optim.SGD(parameters, lr=0.1)]))
    assert not by_tensor(OptimizerSet([adam, others]))


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_a_larger_model_is_checked_in_parts_while_it_is_recorded(
    scale: float, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_steps, "_SMALL_BYTES", 0)
    called = []

    def noted(*given: Any) -> None:
        called.append(given[4].step)
        seen = given[3]
        model = {name: scale * tensor for name, tensor in seen.model.items()}
        check_update_in_parts(*given[:3], replace(seen, model=model), *given[4:])

    monkeypatch.setattr(checked_steps, "check_update_in_parts", noted)
    training = Training(tmp_path / "run", make_task(WIDE))
    wrong = pytest.raises(RecordingError, match="the first update is not the optimiser's own")
    with nullcontext() if scale == 1 else wrong, training.stage("first") as stage:
        for batch in make_batches(STEPS):
            training.step(batch, stage)
    assert called[0] == 1
    assert scale != 1 or len(called) > 1


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_of_a_large_model_a_quarter_of_the_state_is_compared_at_a_time(
    kind: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_steps, "_SMALL_BYTES", 0)
    monkeypatch.setattr(checked_steps, "_COPIED_BYTES", 0)
    monkeypatch.setattr(checked_steps, "_LARGEST_GAP", 8)
    compared: list[set[str]] = []

    def noted(twin: Any, optimizer: Any, *given: Any) -> None:
        compared.append({name for name, _ in twin.named_parameters()} - set(given[-1]))
        check_update_in_parts(twin, optimizer, *given)

    monkeypatch.setattr(checked_steps, "check_update_in_parts", noted)
    training = Training(tmp_path / "run", make_task(WIDE))
    training.optimizer = OPTIMIZERS[kind](training.model.parameters())
    with training.stage("first") as stage:
        for batch in make_batches(60):
            training.optimizer.zero_grad()
            loss = training.loss(batch)
            loss.backward()
            training.optimizer.step()
            stage.step(batch, loss)
    every = {name for name, _ in training.model.named_parameters()}
    assert compared[0] == every  # no optimiser has a state then
    later = compared[1:]
    assert len(later) >= 4
    assert {len(names) for names in later} <= {len(every) // 4, -(-len(every) // 4)}
    assert set().union(*later[:4]) == every
    assert len(training.recorder.run().last.facts.checked) == len(compared)


@pytest.mark.parametrize("since", [1, 2, 3, 4])
def test_a_large_models_momentum_that_changes_is_told_at_a_check(
    since: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_steps, "_SMALL_BYTES", 0)
    monkeypatch.setattr(checked_steps, "_COPIED_BYTES", 0)
    training = Training(tmp_path / "run", make_task(WIDE))
    training.optimizer = OPTIMIZERS["AdamW"](training.model.parameters())
    training.optimizer.register_step_post_hook(lambda optimizer, *_: spoil(optimizer, since))
    said = "optimiser's own|state of the optimiser"
    with pytest.raises(RecordingError, match=said), training.stage("first") as stage:
        for batch in make_batches(60):
            training.optimizer.zero_grad()
            loss = training.loss(batch)
            loss.backward()
            training.optimizer.step()
            stage.step(batch, loss)


def spoil(optimizer: torch.optim.Optimizer, since: int) -> None:
    """What a hook of the loop's own does to all moments right after an update."""
    for state in optimizer.state.values():
        if int(state["step"]) >= since:
            state["exp_avg"].data.mul_(1.01)
