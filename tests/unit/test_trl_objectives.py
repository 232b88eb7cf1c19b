"""Objectives of TRL compute what its trainers do, to the last bit, from what a run keeps."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagelens.contracts import Objective, RecordingError, Refused, RunError
from stagelens.derivatives.autodiff import gradients
from stagelens.tasks import CausalLM
from stagelens.tasks.objectives import find_objective, installed_objectives
from tests.support.small_texts import language

pytestmark = pytest.mark.slow  # TRL takes four seconds to import


@dataclass
class Call:
    """A call of ``compute_loss`` in a training, and what it gave."""

    inputs: dict[str, Any]
    random: Tensor
    weights: dict[str, Tensor]
    loss: Tensor
    gradients: list[Tensor | None]


@pytest.fixture(scope="module")
def train() -> Callable[..., tuple[Any, Objective, list[Call]]]:
    from tests.support.trl_trainings import Training, load, save_base

    def run(folder: Path, kind: str, **settings: Any) -> tuple[Any, Objective, list[Call]]:
        training = Training(kind, settings=settings)
        base = save_base(folder / "base", training.classifies)
        model, tokenizer = load(base, training.classifies)
        trainer = training.trainer(model, tokenizer, folder / "out", [])
        calls: list[Call] = []
        compute = trainer.compute_loss

        def seen(model: nn.Module, inputs: dict[str, Any], **options: Any) -> Any:
            kept = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
            items = options.get("num_items_in_batch")
            kept |= {} if items is None else {"num_items_in_batch": items}
            weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
            random = torch.get_rng_state()
            loss = compute(model, inputs, **options)
            parameters = list(trainer.model.parameters())
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            calls.append(Call(kept, random, weights, loss.detach().clone(), list(found)))
            return loss

        trainer.compute_loss = seen
        (objective,) = [o for o in (k.of_trainer(trainer) for k in installed_objectives()) if o]
        again = find_objective(objective.name, json.loads(json.dumps(objective.settings)))
        assert again.settings == objective.settings
        trainer.train()
        return load(base, training.classifies)[0], again, calls

    return run


def same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def rest(*values: Any) -> Any:
    """A case of the grid that only `make fuzz` runs."""
    return pytest.param(*values, marks=pytest.mark.extensive)


def loss_of(objective: Objective, model: Any, inputs: Any, references: Any) -> Tensor:
    """It asks the task nothing."""
    return objective.loss(None, model, inputs, references)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        rest("sft", {}),
        ("sft", {"bf16": True, "gradient_checkpointing": True, "loss_type": "dft"}),
        rest("dpo", {"loss_type": ["sigmoid", "bco_pair", "sft"], "label_smoothing": 0.1}),
        ("dpo", {"bf16": True, "precompute_ref_log_probs": True}),
        ("kto", {}),
        ("orpo", {}),
        rest("reward", {"bf16": True, "center_rewards_coefficient": 0.1}),
        rest("grpo", {"beta": 0.1, "num_iterations": 2, "gradient_accumulation_steps": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_loss_and_gradient_are_the_trainers_own(
    kind: str, settings: dict[str, Any], train: Any, tmp_path: Path
) -> None:
    model, objective, calls = train(tmp_path, kind, **settings)
    base = model.state_dict()
    references = {}
    for name in objective.references:
        references[name] = type(model)(model.config).eval()
        references[name].load_state_dict(base)
    for call in calls:
        model.load_state_dict(call.weights, strict=False)
        model.train()
        torch.set_rng_state(call.random)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.get("bf16", False)):
            loss = loss_of(objective, model, call.inputs, references).float()
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        assert torch.equal(loss, call.loss)
        assert all(map(same, found, call.gradients))
    assert (objective.name, len(calls)) == (
        kind,
        4 * settings.get("gradient_accumulation_steps", 1),
    )
    assert "forward" not in vars(model), "the model is as it was"
    assert objective.on_samples == (kind == "grpo")


@pytest.mark.parametrize("kind", ["dpo", *map(rest, ("kto", "grpo"))])
def test_log_probabilities_in_a_batch_count_for_the_recorded_reference_only(
    kind: str, train: Any, tmp_path: Path
) -> None:
    """With another reference the loss is that of a trainer which computes them at every step."""
    ahead = {"beta": 0.1} if kind == "grpo" else {"precompute_ref_log_probs": True}
    model, objective, calls = train(tmp_path, kind, disable_dropout=True, **ahead)
    inputs, other = calls[0].inputs, type(model)(model.config)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        recorded = loss_of(objective, model, inputs, {"reference": model.eval()})
        found = loss_of(objective, model, inputs, {"reference": other.eval()})
        if kind == "grpo":  # by hand: KL to the reference enters with weight beta
            assert abs(float(recorded - calls[0].loss)) < 1e-6
            assert abs(float(found - recorded)) > 1e-3
            return
        at_every_step = find_objective(
            kind,
            {
                **objective.settings,
                "attributes": {**objective.settings["attributes"], "precompute_ref_logps": False},
                "ahead": None,
            },
        )
        bare = {k: v for k, v in inputs.items() if not k.startswith("ref_")}
        expected = loss_of(at_every_step, model, bare, {"reference": other.eval()})
    assert torch.allclose(found, expected, rtol=1e-5)
    assert not torch.allclose(found, recorded, rtol=1e-2)


@pytest.mark.parametrize("kind", ["sft", *map(rest, ("dpo", "kto", "grpo"))])
def test_the_plain_loss_is_the_fused_one_and_can_be_differentiated_twice(
    kind: str, train: Any, tmp_path: Path
) -> None:
    model, objective, (call, *_) = train(tmp_path, kind, max_steps=1)
    model.set_attn_implementation("eager")
    references = {name: copy.deepcopy(model).eval() for name in objective.references}
    model.train()
    x = list(model.parameters())
    for given in (objective, objective.plain()):
        torch.set_rng_state(call.random)
        loss = loss_of(given, model, call.inputs, references)
        assert torch.allclose(loss, call.loss, rtol=1e-5, atol=1e-6)
        if given is objective:
            fused = gradients(loss, x, graph=False)
            loss = loss_of(given, model, call.inputs, references)
            with pytest.raises(Refused, match=r"operation of its own.*use coarse-replay or replay"):
                gradients(loss, x, graph=True)
        else:
            plain = gradients(loss, x, graph=True)
            for one, other in zip(plain, fused, strict=True):
                assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)
            assert all(one.requires_grad for one in plain if one.any())
    assert objective.plain().settings == objective.settings


def test_a_loss_of_another_kind_is_told_by_name(train: Any, tmp_path: Path) -> None:
    from tests.support.trl_trainings import Training, load, save_base

    model, tokenizer = load(save_base(tmp_path / "base"))
    trainer = Training("sft").trainer(model, tokenizer, tmp_path / "out", [])
    kind = next(kind for kind in installed_objectives() if kind.name == "sft")
    own = type("Mine", (type(trainer),), {"compute_loss": lambda *_: None})
    trainer.__class__ = own
    with pytest.raises(RecordingError, match=r"Mine has a compute_loss of its own.*SFTTrainer"):
        kind.of_trainer(trainer)
    trainer.__class__ = own.__base__
    trainer.compute_loss_func = lambda *_: None
    with pytest.raises(RecordingError, match="compute_loss_func"):
        kind.of_trainer(trainer)


def test_without_trl_a_stage_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = language()
    settings = {"trl": "1.16.0", "attributes": {}, "arguments": {}}
    monkeypatch.setitem(sys.modules, "trl.trainer.sft_trainer", None)
    batch = task.batch(["a dog barked"])
    assert isinstance(task, CausalLM)
    with pytest.raises(RunError, match=r"SFTTrainer of the package trl.*stagelens\[trl\]"):
        find_objective("sft", settings).loss(task, model, batch, {})
