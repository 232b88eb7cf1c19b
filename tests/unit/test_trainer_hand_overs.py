"""Hand-overs between trainings by ``transformers.Trainer``, as scripts make them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import stagelens
from stagelens.replaying.replay import cross_boundary, replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.run import Run
from stagelens.runs.states import model_tensors
from stagelens.wording.hand_overs import hand_over_lines
from tests.support.adapted import merged
from tests.support.loops import differing, differing_state
from tests.support.small_trainings import arguments, made, trainer

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")

Change = Callable[[Any, Any], Any]
"""A model and its tokenizer to the model; the tokenizer is changed in place."""


def trained(
    kind: str,
    folder: Path,
    changes: list[Change],
    record: Path | None = None,
    without: str | None = None,
) -> dict[str, Tensor]:
    """A first stage, and one after each change; the weights at the end."""
    model, tokenizer = made(kind)
    for number, change in enumerate([lambda model, _tokenizer: model, *changes]):
        torch.manual_seed(number)
        model, stage = change(model, tokenizer), f"stage{number}"
        callbacks = [] if record is None else [stagelens.StageRecorderCallback(record, stage=stage)]
        args = arguments(folder / stage, seed=number, max_steps=3)
        training = trainer(kind, model, tokenizer, args, seed=number, callbacks=callbacks)
        if stage != without:
            training.train()
    return {name: tensor.clone() for name, tensor in model_tensors(model).items()}


def recorded(kind: str, folder: Path, *changes: Change) -> Run:
    """A recorded training, after every check on it."""
    trained(kind, folder, list(changes), folder / "run")
    run = stagelens.open_run(folder / "run")
    assert [stage.facts.problem for stage in run.stages] == [None] * len(run.stages)
    for stage in run.stages:
        assert measure_deviation(run.task, stage).bitwise
    for before, stage in zip(run.stages, run.stages[1:], strict=False):
        assert differing_state(cross_boundary(before.end(), stage), stage.start()) == []
    for stage in run.stages[:-1]:
        by_hand = trained(kind, folder / "by hand", list(changes), without=stage.name)
        replayed = replay_without(run, stage).state.model
        assert differing(replayed, by_hand) == [], stage.name
    return run


def padded(model: Any, tokenizer: Any) -> Any:
    """A padding token is added, and the vocabulary made a multiple of 8."""
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.chat_template = "{{ messages[0].content }}"
    model.config.pad_token_id = tokenizer.pad_token_id
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=8, mean_resizing=False)
    return model


def test_a_vocabulary_that_grows_with_its_tokenizer_is_a_fact_of_the_stage(tmp_path: Path) -> None:
    run = recorded("gpt", tmp_path, padded)
    first, second = (stage.facts for stage in run.stages)
    assert second.boundary.grown == {"transformer.wte.weight": 330}
    assert first.tokenizer is not None and second.tokenizer is not None
    assert (first.tokenizer.added, first.tokenizer.chat_template) == ({}, None)
    assert second.tokenizer.added == {"<|pad|>": 330}
    digest = hashlib.sha256(b"{{ messages[0].content }}").hexdigest()
    assert second.tokenizer.chat_template == digest
    assert "rows added to transformer.wte.weight before it" in hand_over_lines(second, first)
    assert "another chat template than the stage before" in hand_over_lines(second, first)


def test_another_attention_is_a_fact_of_the_stage_that_replay_keeps(tmp_path: Path) -> None:
    def faster(model: Any, _tokenizer: Any) -> Any:
        model.set_attn_implementation("sdpa")
        return model

    run = recorded("bert", tmp_path, faster)
    assert [stage.facts.build_config for stage in run.stages] == [None, {"attention": "sdpa"}]
    built = [run.task.build_model(stage.facts.build_config) for stage in run.stages]
    assert [model.config._attn_implementation for model in built] == ["eager", "sdpa"]  # type: ignore[union-attr]


def test_a_model_that_is_loaded_in_bfloat16_goes_on_in_it(tmp_path: Path) -> None:
    run = recorded("gpt", tmp_path, lambda model, _: model.to(torch.bfloat16))
    assert set(map(tuple, run.last.facts.boundary.casts.values())) == {("bfloat16",)}


def test_an_adapter_merged_in_bfloat16_and_loaded_in_float32_is_replayed(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")

    def adapted(model: Any, _tokenizer: Any) -> Any:
        return get_peft_model(model, config)

    def saved(model: Any, _tokenizer: Any) -> Any:
        return merged(model.to(torch.bfloat16)).float()

    run = recorded("gpt", tmp_path, adapted, saved)
    assert run.last.facts.boundary.adapters == ["merged"]


def test_a_training_may_branch_off_an_earlier_one(tmp_path: Path) -> None:
    def train(model: Any, stage: str, seed: int, record: bool, parent: str | None = None) -> None:
        calls = [stagelens.StageRecorderCallback(tmp_path / "run", stage=stage, parent=parent)]
        args = arguments(tmp_path / stage, seed=seed, max_steps=2)
        torch.manual_seed(seed)
        trainer("bert", model, tokenizer, args, callbacks=calls if record else []).train()

    torch.manual_seed(0)
    model, tokenizer = made("bert")
    by_hand, branch = copy.deepcopy(model), copy.deepcopy(model)
    train(model, "sft", 1, record=True)
    branch.load_state_dict(model.state_dict())
    train(model, "dpo", 2, record=True)
    train(branch, "rl", 3, record=True, parent="sft")
    run = stagelens.open_run(tmp_path / "run", leaf="rl")
    assert [stage.name for stage in run.stages] == ["sft", "rl"]
    assert run.last.facts.problem is None
    train(by_hand, "without", 3, record=False)
    replayed = replay_without(run, run.stage("sft")).state.model
    assert differing(replayed, dict(model_tensors(by_hand))) == []
