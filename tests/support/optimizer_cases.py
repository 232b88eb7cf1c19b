"""Optimisers of every registered class, in trainings that are small enough to repeat.

Three stages of a small network: the optimiser is carried from the first to the second, with its
schedule, and is new in the third; two parameter groups differ in their learning rates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.contracts import Refused, optimizer_class, optimizer_rule
from stagelens.derivatives.trajectory import check_differentiable
from stagelens.estimators.coarse_replay import CoarseReplay
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.replaying.replay import replay_stage, replay_without
from stagelens.runs.optimizer_set import as_one, members
from stagelens.runs.run import Run
from tests.support.loops import (
    Plan,
    differing_state,
    halving,
    make_task,
    record_plans,
    run_plans,
)


class Together:
    """Schedulers of several optimisers."""

    def __init__(self, schedulers: list[Any]) -> None:
        self.schedulers = schedulers

    def step(self) -> None:
        for scheduler in self.schedulers:
            scheduler.step()


def set_rate(group: dict[str, Any], rate: Any) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


Made = torch.optim.Optimizer | list[torch.optim.Optimizer]


@dataclass(frozen=True)
class Case:
    """One optimiser with its settings.

    Attributes:
        name: As registered; or words, of several.
        options: What its class is given.
        label: Of the test and of the table.
        only: Which parameters it can train.
        make: Makes it of a model, where that is not its class with ``options``.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    only: Callable[[nn.Parameter], bool] = lambda parameter: True
    make: Callable[[nn.Module], Made] | None = None
    loop: dict[str, Any] = field(default_factory=dict)
    scheduled: bool = True

    @property
    def title(self) -> str:
        return self.label or self.name

    @property
    def package(self) -> str:
        rule = optimizer_rule(self.name)
        return rule.package if rule is not None else "torch"

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None

    def of(self, model: nn.Module) -> Made:
        if self.make is not None:
            return self.make(model)
        parameters = [p for p in model.parameters() if self.only(p)]
        groups = [{"params": parameters[:1]}, {"params": parameters[1:]}]
        made: torch.optim.Optimizer = optimizer_class(self.name)(groups, **self.options)
        for group in made.param_groups[1:]:
            if isinstance(group["lr"], float):
                group["lr"] *= 0.5
        return made


def _muon_and_adamw(model: nn.Module) -> Made:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)]


_SMALL = {"min_8bit_size": 256}
_BITS_8 = {**_SMALL, "optim_bits": 8}

CASES = [
    Case("SGD", {"lr": 0.05, "momentum": 0.9}),
    Case("Adam", {"lr": 0.01}),
    Case("Adam", {"lr": 0.01, "amsgrad": True}, "Adam, amsgrad"),
    Case(
        "Adam",
        {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
        "Adam, decoupled_weight_decay",
    ),
    Case("AdamW", {"lr": 0.01}),
    Case("AdamW", {"lr": 0.01, "amsgrad": True}, "AdamW, amsgrad"),
    Case("NAdam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    Case("RAdam", {"lr": 0.01, "weight_decay": 0.1}),
    Case("Adamax", {"lr": 0.01}),
    Case("Adagrad", {"lr": 0.05, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    Case("Adadelta", {"lr": 1.0, "weight_decay": 0.01}),
    Case("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True}),
    Case("ASGD", {"lr": 0.05, "t0": 3}),
    Case("Rprop", {"lr": 0.01}),
    Case("Adafactor", {"lr": 0.05}),
    Case("Muon", {"lr": 0.02}, only=lambda parameter: parameter.ndim == 2),
    Case("Muon and AdamW", make=_muon_and_adamw),
    Case(
        "transformers.Adafactor",
        {"lr": 0.01, "relative_step": False, "scale_parameter": False, "beta1": 0.9},
    ),
    Case(
        "transformers.Adafactor",
        {"lr": None},
        "transformers.Adafactor, relative_step",
        scheduled=False,
    ),
    Case("lion_pytorch.Lion", {"lr": 0.003, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    Case("bitsandbytes.AdamW8bit", {"lr": 0.01, **_SMALL}),
    Case("bitsandbytes.AdamW", {"lr": 0.01, **_BITS_8}, "bitsandbytes.AdamW, optim_bits=8"),
    Case("bitsandbytes.PagedAdamW8bit", {"lr": 0.01, **_SMALL}),
    Case("bitsandbytes.PagedAdamW32bit", {"lr": 0.01}),
    Case("bitsandbytes.Adam8bit", {"lr": 0.01, **_SMALL}),
    Case("bitsandbytes.Lion8bit", {"lr": 0.003, **_SMALL}),
    Case("bitsandbytes.PagedLion8bit", {"lr": 0.003, **_SMALL}),
    Case("bitsandbytes.Lion", {"lr": 0.003}),
    Case("bitsandbytes.RMSprop8bit", {"lr": 0.003, **_SMALL}),
    Case("bitsandbytes.AdEMAMix8bit", {"lr": 0.003, **_SMALL}),
    Case("schedulefree.AdamWScheduleFree", {"lr": 0.01, "warmup_steps": 3}, scheduled=False),
    Case("schedulefree.SGDScheduleFree", {"lr": 0.1, "warmup_steps": 3}, scheduled=False),
    Case("schedulefree.RAdamScheduleFree", {"lr": 0.01}, scheduled=False),
    Case("torchao.AdamW8bit", {"lr": 0.01}),
    Case("torchao.AdamW4bit", {"lr": 0.01}),
    Case("torchao.AdamWFp8", {"lr": 0.01}),
]


def plans_of(case: Case) -> list[Plan]:
    def new(model: nn.Module, _before: Any) -> Any:
        return case.of(model)

    def carried(_model: nn.Module, before: Any) -> Any:
        # As it was made: the schedule of the stage before must not reach into this one.
        for one in members(as_one(before)):
            for group in one.param_groups:
                set_rate(group, group.pop("initial_lr", group["lr"]))
        return before

    def schedule(optimizer: Any) -> Any:
        return Together([halving(one) for one in members(as_one(optimizer))])

    rate = schedule if case.scheduled else None
    settings = {"on_problem": "raise", "keep_optimizer": True}
    plan = Plan("first", new, schedule=rate, loop=case.loop, recorder=settings)
    return [plan, replace(plan, name="second", optimizer=carried), replace(plan, name="third")]


EAGER = "torchao"
"""Compiles its steps, which takes far longer than they do: here they are made without."""


@dataclass(frozen=True)
class Found:
    """What comes of a case: one row of the table in docs/optimizers.md."""

    replay: str
    without: str
    coarse: str
    unrolled: str

    @property
    def cells(self) -> list[str]:
        return [self.replay, self.without, self.coarse, self.unrolled]


def find(case: Case, path: Path, left_out: Sequence[str] = ("first", "second")) -> Found:
    """Record a case, replay it, and train it by hand without each of some stages."""
    task = make_task({"kind": "mlp", "hidden": [256]})
    plans = plans_of(case)
    run = record_plans(path, task, plans)
    assert [stage.facts.boundary.optimizer for stage in run.stages] == ["new", "carried", "new"]
    replayed = [replay_stage(task, stage).state for stage in run.stages]
    own = zip(run.stages, replayed, strict=True)
    apart = [name for stage, state in own for name in differing_state(stage.end(), state)]
    trained = {name: run_plans(task, plans, without=name) for name in left_out}
    off = [
        each
        for name, state in trained.items()
        for each in differing_state(replay_without(run, run.stage(name)).state, state)
    ]
    return Found(
        "differs in " + apart[0] if apart else "bit for bit",
        "differs in " + off[0] if off else "bit for bit",
        _coarse(run),
        _unrolled(run),
    )


def _coarse(run: Run) -> str:
    found = next(counterfactuals(run, CoarseReplay(), run.stages[:1])).trust
    if found.trust != "refused":
        return found.trust
    why = found.reason.partition("cannot be merged: ")[2].partition(". Use")[0]
    assert why, found.reason
    return f"refused: {why}"


def _unrolled(run: Run) -> str:
    try:
        check_differentiable(run.stages)
    except Refused as refusal:
        assert "formula" in str(refusal), refusal
        return "refused: no formula"
    return "estimated"


def table_row(case: Case, found: Found) -> str:
    """As the table in docs/optimizers.md has it."""
    return " | ".join([f"| `{case.title}`", *found.cells]) + " |"
