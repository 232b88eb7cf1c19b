"""A Trainer's own optimisers, by the name that it gives them: recorded, replayed and left out."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.training_args import OptimizerNames

import stagelens
from stagelens import StageRecorderCallback
from stagelens.replaying.replay import replay_stage, replay_without
from tests.support.loops import differing, differing_state
from tests.support.small_trainings import arguments, made, trainer

NEEDS = {
    "bitsandbytes": (
        *("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"),
        *("ademamix", "ademamix_8bit", "paged_ademamix_8bit", "paged_ademamix_32bit"),
        *("lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit"),
        *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
    ),
    "torchao": ("adamw_torch_4bit", "adamw_torch_8bit"),
    "schedulefree": ("schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam"),
    "torch": ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"),
}
OTHER_MACHINES = ("adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision")
NOT_RECORDED = ("galore", "apollo", "lomo", "adalomo", "grokadamw", "stable_adamw")
ALWAYS = ("adafactor", "adamw_8bit", "schedule_free_adamw")
ALL = [name for names in NEEDS.values() for name in names]


def test_every_name_of_a_trainer_is_accounted_for() -> None:
    others = [
        name.value
        for name in OptimizerNames
        if name.value not in ALL and name.value not in OTHER_MACHINES
    ]
    assert [name for name in others if not name.startswith(NOT_RECORDED)] == []


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.extensive) for name in ALL],
)
def test_a_training_is_recorded_replayed_and_left_out_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = next(package for package, names in NEEDS.items() if name in names)
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if package == "torchao":  # compiling takes longer than the training
        monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    settings: dict[str, Any] = {"optim": name, "learning_rate": 5e-3, "warmup_steps": 1}
    evaluated = {"eval_strategy": "steps", "eval_steps": 2}

    model, tokenizer = made("bert")
    for seed, stage in enumerate(("first", "second")):
        callback = StageRecorderCallback(
            tmp_path / "run", stage, on_problem="raise", keep_optimizer=True
        )
        args = arguments(tmp_path / "out", **settings, **evaluated)
        trainer("bert", model, tokenizer, args, seed=seed, callbacks=[callback]).train()

    run = stagelens.open_run(tmp_path / "run")
    assert run.problems == []
    for recorded in run.stages:
        replayed = replay_stage(run.task, recorded).state
        assert differing_state(replayed, recorded.end()) == []

    other, _ = made("bert")
    args = arguments(tmp_path / "out", **settings, **evaluated)
    trainer("bert", other, tokenizer, args, seed=1).train()
    by_hand = {name: parameter.detach() for name, parameter in other.named_parameters()}
    without = replay_without(run, run.stages[0]).state.model
    assert differing({name: without[name] for name in by_hand}, by_hand) == []
    assert differing(by_hand, {n: p.detach() for n, p in model.named_parameters()}) != []
