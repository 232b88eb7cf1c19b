"""Optimisers by name: one's own, a missing package, several in one stage, and what they keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.contracts import (
    Refused,
    RunError,
    StageLensError,
    optimizer_registry,
    register_optimizer,
    why_absent,
)
from stagelens.replaying.coarse import CoarseModel
from stagelens.replaying.coarse_plan import coarse_steps
from stagelens.replaying.replay import replay_stage, replay_without
from stagelens.runs.optimizer_values import as_tensors, from_tensors
from tests.support.loops import (
    Plan,
    Training,
    differing,
    differing_state,
    make_batches,
    make_task,
    record_plans,
    refused,
    run_plans,
)


class Counting(torch.optim.Optimizer):
    """Keeps a count in its groups, and a number, a list and a tensor of each parameter."""

    def __init__(self, params: Any, lr: float = 0.1, power: float = 1.0) -> None:
        self.power = power
        super().__init__(params, {"lr": lr, "count": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["count"] += 1
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state.update(seen=0, last=[0.0, 1.5], mean=torch.zeros_like(parameter))
                state["seen"] += 1
                state["last"] = [state["last"][1], float(parameter.grad.norm())]
                state["mean"].lerp_(parameter.grad, 1 / state["seen"])
                rate = group["lr"] / (group["count"] + state["seen"]) ** self.power
                parameter.sub_(state["mean"], alpha=rate)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    registered: dict[str, Any] = {}
    monkeypatch.setattr(optimizer_registry, "_own", registered)
    return registered


def _plans() -> list[Plan]:
    def new(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
        return Counting(model.parameters(), power=0.5)

    def carried(_model: nn.Module, before: Any) -> Any:
        return before

    strict = {"on_problem": "raise", "keep_optimizer": True}
    return [
        Plan("first", new, batches=3, recorder=strict),
        Plan("second", carried, batches=3, recorder=strict),
        Plan("third", new, batches=2, recorder=strict),
    ]


def test_an_optimiser_of_ones_own_is_replayed_bit_for_bit_and_refused_where_it_is_not_given(
    tmp_path: Path, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    register_optimizer("counting", Counting, group_state=("count",), arguments={"power": "power"})
    task = make_task()
    run = record_plans(tmp_path / "run", task, _plans())
    assert run.stages[0].optimizer.name == "counting"
    for stage in run.stages:
        assert not differing_state(replay_stage(task, stage).state, stage.end())
    without = run_plans(task, _plans(), without="first")
    assert not differing_state(replay_without(run, run.stages[0]).state, without)

    own.clear()
    again = stagelens.open_run(run.path, task)  # what is stored can still be read
    says = "optimiser counting is not registered here.*--optimizer counting=package.module:Class"
    with pytest.raises(Refused, match=says):
        replay_stage(task, again.stages[0])

    here = f"{__name__}:Counting"
    monkeypatch.setenv(optimizer_registry.GIVEN, f"counting={here}")
    monkeypatch.setattr(optimizer_registry, "_load", lambda target: {here: Counting}[target])
    # Given by its class alone, it is not known what the groups count.
    assert why_absent("counting") is None


def test_what_a_step_changes_in_its_groups_has_to_be_named(
    tmp_path: Path, own: dict[str, Any]
) -> None:
    register_optimizer("counting", Counting)
    training = Training(tmp_path / "run")
    training.optimizer = Counting(training.model.parameters())
    says = ("changed count of its own parameter groups", "group_state=('count',)")
    with refused(*says), training.stage() as stage:
        training.step(make_batches(1)[0], stage)


def test_names_and_targets_that_cannot_be_registered(own: dict[str, Any]) -> None:
    with pytest.raises(StageLensError, match="AdamW is a built-in optimiser"):
        register_optimizer("AdamW", Counting)
    with pytest.raises(StageLensError, match=r"cannot be imported.*package\.module:Class"):
        register_optimizer("own", "no_such_package.module:Class")
    with pytest.raises(StageLensError, match="is not a class"):
        register_optimizer("own", "torch:manual_seed")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_registry, "find_spec", lambda _name: None)
    says = why_absent("lion_pytorch.Lion")
    assert says is not None and "pip install lion-pytorch" in says
    assert "needs the package bitsandbytes" in (why_absent("bitsandbytes.AdamW8bit") or "")


# Several in one stage


def _two(training: Training) -> list[torch.optim.Optimizer]:
    weights, biases = (
        [p for p in training.model.parameters() if (p.ndim > 1) is matrix]
        for matrix in (True, False)
    )
    return [torch.optim.SGD(weights, lr=0.05), torch.optim.AdamW(biases, lr=0.01)]


def _update(training: Training, batch: Any) -> Tensor:
    loss = training.loss(batch)
    training.model.zero_grad()
    loss.backward()
    return loss


def test_an_update_is_when_all_have_stepped(tmp_path: Path) -> None:
    training = Training(tmp_path / "run")
    sgd, adamw = _two(training)
    with training.stage(optimizer=[sgd, adamw]) as stage:
        for batch in make_batches(3):
            loss = _update(training, batch)
            adamw.step()  # in any order
            sgd.step()
            stage.step(batch, loss)
    facts = stagelens.open_run(tmp_path / "run", training.task).last.facts
    assert facts.optimizer is not None and facts.optimizer.name == "SGD and AdamW"
    assert [(m.name, m.groups) for m in facts.optimizer.members] == [("SGD", 1), ("AdamW", 1)]
    assert facts.steps == 3


def test_one_that_steps_again_before_the_others_is_refused(tmp_path: Path) -> None:
    training = Training(tmp_path / "run")
    sgd, adamw = _two(training)
    says = "SGD.step() was called again before AdamW had stepped"
    with refused(says), training.stage(optimizer=[sgd, adamw]) as stage:
        for batch in make_batches(2):
            loss = _update(training, batch)
            sgd.step()
            stage.step(batch, loss)


def test_a_parameter_of_two_optimisers_is_named(tmp_path: Path) -> None:
    training = Training(tmp_path / "run")
    twice = [torch.optim.SGD(training.model.parameters(), lr=0.1) for _ in range(2)]
    with (
        refused("is a parameter of two of the stage's optimisers"),
        training.stage(optimizer=twice),
    ):
        pass


def test_one_that_the_stage_was_not_given_is_named(tmp_path: Path) -> None:
    training = Training(tmp_path / "run")
    sgd, adamw = _two(training)
    says = ("Another optimiser (AdamW)", "optimizer=[one, other]")
    with refused(*says), training.stage(optimizer=sgd) as stage:
        for batch in make_batches(3):
            loss = _update(training, batch)
            sgd.step()
            adamw.step()
            stage.step(batch, loss)


def test_restore_takes_several(tmp_path: Path) -> None:
    training = Training(tmp_path / "run")
    two = _two(training)
    with training.stage(optimizer=two, keep_optimizer=True) as stage:
        for batch in make_batches(2):
            loss = _update(training, batch)
            for one in two:
                one.step()
            stage.step(batch, loss)
    other = Training(tmp_path / "other")
    again = _two(other)
    training.recorder.restore(other.model, again)
    assert [len(one.state) for one in again] == [len(one.state) for one in two]
    own = {n: p.detach() for n, p in training.model.named_parameters()}
    assert not differing(own, {n: p.detach() for n, p in other.model.named_parameters()})


# What they keep


def test_values_come_back_as_they_were() -> None:
    tensor = torch.randn(3)
    values = {"a": tensor, "b": 7, "c": True, "d": 0.1, "e": [1, "x"], "f": "y", "g": None}
    stored = as_tensors(values)
    assert all(type(each) is Tensor for each in stored.values())
    back = from_tensors(stored, {})
    assert back == {key: value for key, value in values.items() if value is not None}
    assert back["a"] is tensor
    assert [type(back[key]) for key in "bcd"] == [int, bool, float]


def test_a_file_names_no_class_that_the_optimiser_does_not_use() -> None:
    with pytest.raises(RunError, match="is a Popen, which this optimiser does not use"):
        from_tensors({"a:Popen.args": torch.zeros(1)}, {})
    with pytest.raises(RunError, match="which nothing here reads"):
        from_tensors({"a:pickle": torch.zeros(1)}, {})


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.NAdam(p, 0.01, decoupled_weight_decay=True),
        lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
        lambda p: torch.optim.Adagrad(p, 0.05),
    ],
)
def test_unmerged_coarse_steps_without_a_formula_are_the_optimisers_own(
    make: Any, tmp_path: Path
) -> None:
    task = make_task()
    plans = [
        Plan(
            name,
            lambda m, _: make(m.parameters()),
            batches=4,
            recorder={"keep_optimizer": True},
        )
        for name in ("a", "b")
    ]
    stage = record_plans(tmp_path / "run", task, plans).stages[1]
    model = CoarseModel(task, stage, stage.start())
    for step in coarse_steps(stage.read_steps(), 1, 1):
        model.step(step)
    assert not differing_state(model.snapshot(), stage.end())
