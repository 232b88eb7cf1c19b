"""QLoRA: the base is kept in its 4 bits, and only the adapters on it are replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor

import stagelens
from stagelens.contracts import RecordingWarning, Refused, TaskError
from stagelens.effects.computing import attribute
from stagelens.estimators.subtraction import subtract_stage
from stagelens.replaying.replay import cross_boundary, replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.run import Run
from stagelens.runs.states import model_tensors
from tests.support.loops import differing, differing_state
from tests.support.small_texts import gpt_tokenizer
from tests.support.small_trainings import arguments, trainer

pytest.importorskip("bitsandbytes")

LORA = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model, as people load it in 4 bits."""
    path = tmp_path_factory.mktemp("base")
    config = transformers.LlamaConfig(
        vocab_size=330,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=48,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def loaded(saved: Path, **options: Any) -> Any:
    quantisation = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        **{"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, **options},
    )
    return transformers.AutoModelForCausalLM.from_pretrained(
        saved, quantization_config=quantisation, dtype=torch.float32
    )


def trained(
    saved: Path, folder: Path, record: Path | None = None, without: str | None = None
) -> dict[str, Tensor]:
    """Two stages of one adapter on a 4-bit base; the weights at the end."""
    tokenizer = gpt_tokenizer(pad_token="<|endoftext|>")
    torch.manual_seed(0)
    model: Any = get_peft_model(prepare_model_for_kbit_training(loaded(saved)), LORA)
    for number, stage in enumerate(("sft", "more")):
        callbacks = [] if record is None else [stagelens.StageRecorderCallback(record, stage=stage)]
        args = arguments(folder / stage, seed=number, max_steps=3)
        training = trainer("gpt", model, tokenizer, args, seed=number, callbacks=callbacks)
        if stage != without:
            training.train()
    return {name: tensor.clone() for name, tensor in model_tensors(model).items()}


@pytest.fixture(scope="module")
def run(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("qlora")
    trained(saved, folder, folder / "run")
    return stagelens.open_run(folder / "run")


def test_adapters_on_a_4_bit_base_are_replayed_bit_for_bit(
    run: Run, saved: Path, tmp_path: Path
) -> None:
    assert run.problems == []
    assert all(measure_deviation(run.task, stage).bitwise for stage in run.stages)
    first, second = run.stages
    assert differing_state(cross_boundary(first.end(), second), second.start()) == []
    by_hand = trained(saved, tmp_path, without="sft")
    assert differing(replay_without(run, first).state.model, by_hand) == []


def test_the_base_is_kept_in_4_bits_and_never_changes(run: Run) -> None:
    start, end = run.stages[0].start().model, run.last.end().model
    packed = [name for name, tensor in start.items() if f"{name}.absmax" in start]
    assert len(packed) == 14
    assert {start[name].dtype for name in packed} == {torch.uint8}
    assert differing({n: start[n] for n in packed}, {n: end[n] for n in packed}) == []
    config = run.last.facts.build_config
    assert config is not None
    assert len(config["quantised"]["layers"]) == 14


def test_effects_on_a_4_bit_model_are_measured(run: Run) -> None:
    stagelens.Recorder(run.path, run.task, resume=True).add_set("test", texts=["the cat sat"])
    for estimator in ("replay", "task-vector"):
        table = attribute(run, "test", estimator).table
        assert table.loc[table["behaviour"] == "loss", "effect"].notna().all()


def full(run: Path, folder: Path, model: Any) -> None:
    """A stage that trains everything."""
    callback = stagelens.StageRecorderCallback(run, stage="full")
    tokenizer = gpt_tokenizer(pad_token="<|endoftext|>")
    args = arguments(folder / "full", max_steps=2)
    trainer("gpt", model, tokenizer, args, callbacks=[callback]).train()


def test_an_adapter_is_merged_into_the_weights_that_were_packed(
    saved: Path, tmp_path: Path
) -> None:
    """As people do it: the base is loaded again, in 32 bits, and the adapter onto it."""
    end = trained(saved, tmp_path, tmp_path / "run")
    model: Any = get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(saved), LORA)
    model.load_state_dict({n: t for n, t in end.items() if ".lora_" in n}, strict=False)
    full(tmp_path / "run", tmp_path, model.merge_and_unload().requires_grad_(True))
    run = stagelens.open_run(tmp_path / "run")
    assert run.problems == []
    boundary = run.last.facts.boundary
    assert (boundary.adapters, len(boundary.unpacked)) == (["merged"], 14)
    without = subtract_stage(run.last.end().model, run.stages[0], run.stages[1:])
    assert differing(dict(without.items()), run.last.end().model) == [
        f"model.layers.{layer}.{name}_proj.weight"
        for layer in (0, 1)
        for name in ("mlp.down", "self_attn.q")
    ]


def test_other_weights_than_were_packed_are_told(saved: Path, tmp_path: Path) -> None:
    trained(saved, tmp_path, tmp_path / "run")
    model = transformers.AutoModelForCausalLM.from_pretrained(saved)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    with pytest.warns(RecordingWarning, match="was in 4 bits at the end of the previous stage"):
        full(tmp_path / "run", tmp_path, model)
    run = stagelens.open_run(tmp_path / "run")
    with pytest.raises(Refused, match="in 4 bits"):
        subtract_stage(run.last.end().model, run.stages[0], run.stages[1:])


def test_8_bit_models_are_told_by_name() -> None:
    with pytest.raises(TaskError, match="otherwise than in 4 bits"):
        stagelens.tasks.CausalLM(
            {"model_type": "llama", "quantization_config": {"load_in_8bit": True}}
        )
