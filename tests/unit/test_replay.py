"""Replay is bit for bit, and without a stage it is what training by hand without it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagelens.contracts import ProgressCallback, Refused
from stagelens.replaying.replay import cross_boundary, replay_stage, replay_without
from stagelens.replaying.reproduction import measure_deviation
from tests.support.grids import part
from tests.support.loops import (
    BATCH_NORM,
    CLASSES,
    Optimizer,
    Plan,
    differing,
    differing_state,
    halving,
    make_task,
    one_cycle,
    record_plans,
    run_plans,
)

LOOPS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
RULES = {
    "sgd": ("SGD", {"lr": 0.05, "weight_decay": 0.01}),
    "momentum": ("SGD", {"lr": 0.05, "momentum": 0.9}),
    "nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": ("Adam", {"lr": 0.01, "weight_decay": 0.01}),
    "adamw": ("AdamW", {"lr": 0.01}),
}
PLAIN = {"kind": "mlp", "hidden": [6]}
DROPOUT = {"kind": "mlp", "hidden": [6], "dropout": 0.3}


def new(rule: str, loop: str = "for-loop", **options: Any) -> Optimizer:
    """A new optimiser for whatever requires a gradient."""
    name, settings = RULES[rule]
    kind: Any = getattr(torch.optim, name)

    def make(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
        chosen = [p for p in model.parameters() if p.requires_grad]
        made: torch.optim.Optimizer = kind(chosen, **{**settings, **LOOPS[loop], **options})
        return made

    return make


def carried(_model: nn.Module, before: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
    """The optimiser of the stage before, at a learning rate of its own."""
    assert before is not None
    for group in before.param_groups:
        group["lr"] = group["initial_lr"] = 0.03
    return before


def grouped(rule: str) -> Optimizer:
    """Biases in a parameter group of their own, without weight decay."""
    name, settings = RULES[rule]
    kind: Any = getattr(torch.optim, name)

    def make(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
        named = list(model.named_parameters())
        groups = [
            {"params": [p for n, p in named if not n.endswith("bias")]},
            {"params": [p for n, p in named if n.endswith("bias")], "weight_decay": 0.0, "lr": 0.1},
        ]
        made: torch.optim.Optimizer = kind(groups, **settings)
        return made

    return make


def frozen(*numbers: int) -> Callable[[nn.Module], nn.Module]:
    """Modules of these numbers are frozen, all others trained."""

    def prepare(model: nn.Module) -> nn.Module:
        for number, module in enumerate(model.children()):
            module.requires_grad_(number not in numbers)
        return model

    return prepare


def in_evaluation_mode(number: int) -> Callable[[nn.Module], nn.Module]:
    def prepare(model: nn.Module) -> nn.Module:
        list(model.children())[number].eval()
        return model

    return prepare


def same(model: nn.Module) -> nn.Module:
    return model


class Sometimes(nn.Module):
    """Uses its second head only where the batch says so, and its third never."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(20, 6)
        self.heads = nn.ModuleList([nn.Linear(6, len(CLASSES)) for _ in range(3)])

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(images.flatten(1)))
        own: Tensor = self.heads[0](hidden)
        return own + self.heads[1](hidden) if images[0, 0, 0, 0] > 0.5 else own


def two_stages(first: Optimizer, second: Optimizer, **both: Any) -> list[Plan]:
    return [Plan("first", first, **both), Plan("second", second, **both)]


def late_head(config: Mapping[str, Any]) -> nn.Module:
    """A body and, where the configuration says so, a second head that is added to the first."""
    torch.manual_seed(1)
    return Heads(int(config.get("heads", 1)))


class Heads(nn.Module):
    """A body, and heads whose answers are added up."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.body = nn.Linear(20, 6)
        self.heads = nn.ModuleList([nn.Linear(6, len(CLASSES)) for _ in range(count)])

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(images.flatten(1)))
        answers: Tensor = sum(head(hidden) for head in self.heads)  # type: ignore[assignment]
        return answers


def add_head(model: nn.Module) -> nn.Module:
    if len(model.heads) == 1:  # type: ignore[arg-type]
        torch.manual_seed(2)
        model.heads.append(nn.Linear(6, len(CLASSES)))  # type: ignore[operator, union-attr]
    return model


def initialise_head_anew(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    model.heads[0].reset_parameters()  # type: ignore[index, union-attr, operator]
    return model


TWO_HEADS = {"build_config": {"heads": 2}}
HEADS = [
    Plan("first", new("adamw")),
    Plan("head", new("adamw", lr=0.02), prepare=add_head, recorder=TWO_HEADS),
    Plan("both", new("momentum"), recorder=TWO_HEADS),
]
HEAD_THAT_STAYS = [
    Plan("first", new("adamw")),
    Plan("head", new("adamw"), prepare=add_head, recorder=TWO_HEADS),
    Plan("body", new("adamw"), prepare=lambda m: _only_body(m), recorder=TWO_HEADS),
]
ANEW = [
    Plan("first", new("adamw")),
    Plan(
        "anew", new("adamw"), prepare=initialise_head_anew, recorder={"reinitialised": ["heads.0"]}
    ),
    Plan("last", carried),
]


def _only_body(model: nn.Module) -> nn.Module:
    model.heads.requires_grad_(False)  # type: ignore[union-attr, operator]
    return model


def three(rule: str, loop: str, second: Optimizer | None = None) -> list[Plan]:
    return [
        Plan("first", new(rule, loop)),
        Plan("second", second or carried),
        Plan("third", carried),
    ]


Case = tuple[Any, list[Plan]]
CASES: dict[str, Case] = {
    **{
        f"{rule}, {loop}, {name}": (config, three(rule, loop))
        for rule in RULES
        for loop in LOOPS
        for name, config in (("dropout", DROPOUT), ("batch norm", BATCH_NORM))
    },
    **{
        f"{rule}, new in every stage": (DROPOUT, [Plan(n, new(rule)) for n in ("a", "b", "c")])
        for rule in RULES
    },
    **{
        f"{rule} after {other}": (PLAIN, two_stages(new(other), new(rule)))
        for rule, other in (("adamw", "momentum"), ("nesterov", "adam"))
    },
    **{
        f"accumulation {g}": (
            DROPOUT,
            two_stages(new("adamw"), carried, batches=2 * g + 2, loop={"accumulation": g}),
        )
        for g in (1, 2, 3)
    },
    "clipping": (BATCH_NORM, two_stages(new("adamw"), carried, loop={"clip_norm": 0.3})),
    "clipping and accumulation": (
        BATCH_NORM,
        two_stages(new("momentum"), carried, loop={"clip_norm": 0.3, "accumulation": 2}),
    ),
    **{
        f"{rule} in groups, one cycle": (
            DROPOUT,
            two_stages(grouped(rule), grouped(rule), schedule=one_cycle),
        )
        for rule in ("momentum", "adam", "adamw")
    },
    "groups, halving rates": (PLAIN, two_stages(grouped("adamw"), carried, schedule=halving)),
    "frozen, later unfrozen": (
        DROPOUT,
        [
            Plan("first", new("momentum"), prepare=frozen(1)),
            Plan("second", new("adamw"), prepare=frozen()),
            Plan("third", carried, prepare=frozen(4)),
        ],
    ),
    "batch norm in evaluation mode": (
        BATCH_NORM,
        [
            Plan("first", new("adamw")),
            Plan("second", carried, prepare=in_evaluation_mode(1)),
            Plan("third", carried, prepare=in_evaluation_mode(4)),
        ],
    ),
    **{
        f"{rule}, gradients missing at some steps, {how}": (
            lambda _: Sometimes(),
            two_stages(new(rule, loop), carried, loop={"set_to_none": none}, batches=12),
        )
        for rule, loop in (("momentum", "foreach"), ("adamw", "fused"), ("adam", "for-loop"))
        for how, none in (("none", True), ("zeros", False))
    },
    "a head that appears": (late_head, HEADS),
    "a head that appears and is not trained later": (late_head, HEAD_THAT_STAYS),
    "a head that is initialised anew": (late_head, ANEW),
}


@pytest.mark.parametrize("case", part(CASES, every=2))
def test_replay_is_bit_for_bit_with_and_without_every_stage(case: str, tmp_path: Path) -> None:
    model, plans = CASES[case]
    task = make_task(make_model=model) if callable(model) else make_task(model)
    run = record_plans(tmp_path / "run", task, plans)

    for stage in run.stages:
        deviation = measure_deviation(task, stage)
        assert deviation.bitwise, (stage.name, deviation)
        assert (deviation.largest, deviation.relative) == (0.0, 0.0)
    for before, stage in zip(run.stages, run.stages[1:], strict=False):
        assert differing_state(cross_boundary(before.end(), stage), stage.start()) == []
    for stage in run.stages:
        by_hand = run_plans(task, plans, without=stage.name)
        assert differing_state(replay_without(run, stage).state, by_hand) == [], stage.name


def test_the_grid_draws_random_numbers_and_skips_gradients_and_clips(tmp_path: Path) -> None:
    """What the cases are named after did happen in them."""

    def steps(case: str) -> list[Any]:
        model, plans = CASES[case]
        task = make_task(make_model=model) if callable(model) else make_task(model)
        run = record_plans(tmp_path / case, task, plans)
        return [step for stage in run.stages for step in stage.read_steps()]

    assert all(step.batches[0].rng for step in steps("adamw, fused, dropout"))
    missing = {step.missing for step in steps("momentum, gradients missing at some steps, none")}
    assert len(missing) == 2
    zeros = [len(s.missing) for s in steps("momentum, gradients missing at some steps, zeros")]
    assert set(zeros[:12]) == {2, 4}
    assert zeros[:12] == sorted(zeros[:12], reverse=True)  # zeros from the first gradient on
    assert [step.micro_batches for step in steps("accumulation 3")] == [3] * 4
    cycled = steps("adamw in groups, one cycle")
    assert len({tuple(step.groups[0]["betas"]) for step in cycled}) > 4
    assert len({step.groups[1]["lr"] for step in cycled}) > 4


def test_the_head_keeps_its_initial_value_where_its_stage_is_removed(tmp_path: Path) -> None:
    run = record_plans(tmp_path / "run", make_task(make_model=late_head), HEAD_THAT_STAYS)
    initial = {n: t for n, t in run.stage("head").start().model.items() if n.startswith("heads.1")}
    assert len(initial) == 2

    with_stage = run.last.end().model
    without = replay_without(run, run.stage("head")).state.model

    assert differing(initial, {name: without[name] for name in initial}) == []
    assert differing(initial, {name: with_stage[name] for name in initial}) == sorted(initial)


def test_moments_and_step_counts_are_rewound_where_the_optimizer_is_carried(tmp_path: Path) -> None:
    plans = [replace(p, recorder={"keep_optimizer": True}) for p in three("adamw", "for-loop")]
    run = record_plans(tmp_path / "run", make_task(PLAIN), plans)
    counts = {
        name: {float(tensors["step"]) for tensors in state.optimizer.values()}
        for name, state in (
            ("recorded", run.last.end()),
            ("without second", replay_without(run, run.stage("second")).state),
            ("without first", replay_without(run, run.stage("first")).state),
            ("without third", replay_without(run, run.stage("third")).state),
        )
    }
    assert counts == {
        "recorded": {18.0},
        "without second": {12.0},
        "without first": {12.0},
        "without third": {12.0},
    }


def parts_of_a_body(loop: str) -> list[Plan]:
    """Body and head are first trained in turn, then together, by one carried optimiser.

    Without the first stage the body has no momentum yet when the last stage begins, and the head
    has.
    """
    name, settings = RULES["momentum"]
    kind: Any = getattr(torch.optim, name)

    def everything(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = kind(model.parameters(), **settings, **LOOPS[loop])
        return made

    return [
        Plan("body", everything, prepare=frozen(3)),
        Plan("head", carried, prepare=frozen(1)),
        Plan("together", carried, prepare=frozen()),
    ]


def test_fused_sgd_takes_fresh_and_carried_momentum_in_one_group(tmp_path: Path) -> None:
    """Torch's fused SGD raises TypeError there; each parameter is then stepped as torch steps it.

    By hand every parameter gets a group of its own, where nothing is mixed.
    """
    task = make_task(PLAIN)
    run = record_plans(tmp_path / "run", task, parts_of_a_body("fused"))
    with pytest.raises(TypeError, match="expected Tensor"):
        run_plans(task, parts_of_a_body("fused"), without="body")

    def apart(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
        groups = [{"params": [parameter]} for parameter in model.parameters()]
        return torch.optim.SGD(groups, lr=0.05, momentum=0.9, fused=True)

    first, *later = parts_of_a_body("fused")
    plans = [Plan(first.name, apart, prepare=first.prepare), *later]
    by_hand = run_plans(task, plans, without="body")
    assert differing_state(replay_without(run, run.stage("body")).state, by_hand) == []


def test_without_the_last_stage_no_step_is_replayed(tmp_path: Path) -> None:
    run = record_plans(tmp_path / "run", make_task(PLAIN), three("adamw", "fused"))
    replayed = replay_without(run, run.last)
    assert replayed.example_gradients == 0
    assert differing_state(replayed.state, run.last.start()) == []
    assert replay_without(run, run.stage("second")).example_gradients == 6 * 8


def test_steps_whose_batches_were_not_kept_are_refused_before_any_work(tmp_path: Path) -> None:
    plans = three("adamw", "fused")
    plans[2].recorder = {"keep_batches": 2}
    run = record_plans(tmp_path / "run", make_task(PLAIN), plans)
    told: list[float] = []
    listen: ProgressCallback = lambda share, _text: told.append(share)  # noqa: E731
    with pytest.raises(Refused, match=r"stage 'third' cannot be replayed.*keep_batches=2"):
        replay_without(run, run.stage("first"), listen)
    assert told == []


def test_progress_runs_from_the_first_step_to_the_last(tmp_path: Path) -> None:
    run = record_plans(tmp_path / "run", make_task(PLAIN), three("adamw", "fused"))
    told: list[float] = []
    replay_without(run, run.stage("first"), lambda share, _text: told.append(share))
    assert told == pytest.approx([step / 12 for step in range(1, 13)])


def test_replay_leaves_random_streams_and_threads_as_they_were(tmp_path: Path) -> None:
    run = record_plans(tmp_path / "run", make_task(DROPOUT), three("adamw", "fused"))
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    replay_stage(run.task, run.last)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
