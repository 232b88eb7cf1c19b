"""A checkpoint folder is what transformers makes of it, or it is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import stagelens
from stagelens.contracts import RunError
from tests.support.checkpoints import changed, labelled_texts, save
from tests.support.small_texts import bert, bert_tokenizer, gpt_tokenizer

WEIGHTS = "model.safetensors"
LOADER = transformers.AutoModelForSequenceClassification
Tensors = dict[str, Tensor]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two checkpoints of one classifier, each with one file of weights."""
    tokenizer = bert_tokenizer()
    model = bert(tokenizer)
    return {
        name: save(changed(model, seed), tmp_path / name, tokenizer)
        for seed, name in enumerate(("base", "sft"))
    }


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = change(load_file(folder / WEIGHTS))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def loaded(folder: Path, loader: type = LOADER) -> Tensors:
    model: nn.Module = loader.from_pretrained(folder)  # type: ignore[attr-defined]
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_an_index_of_shards_that_was_left_over_is_not_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    newer = load_file(folders["sft"] / WEIGHTS)
    model = LOADER.from_pretrained(folders["sft"])
    (folders["sft"] / WEIGHTS).unlink()
    model.save_pretrained(folders["sft"], max_shard_size="5KB")
    save_file(
        {name: tensor + 1 for name, tensor in newer.items()},
        folders["sft"] / WEIGHTS,
        metadata={"format": "pt"},
    )
    run = stagelens.assemble(folders, tmp_path / "run")
    state = run.last.end().model
    for name, tensor in loaded(folders["sft"]).items():
        assert torch.equal(state[name], tensor), name
    assert any("index.json is left over" in problem for problem in run.problems)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_fsdp_wrapped_module."])
@pytest.mark.parametrize("which", ["base", "sft"])
def test_the_weights_of_a_wrapper_are_named(
    prefix: str, which: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    rewrite(folders[which], lambda tensors: {prefix + n: t for n, t in tensors.items()})
    with pytest.raises(RunError, match=f"{which}: names of its tensors begin with '{prefix}'"):
        stagelens.assemble(folders, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_names_that_transformers_gave_another_form_are_found(tmp_path: Path) -> None:
    tokenizer = gpt_tokenizer()
    config = transformers.GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=48,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    folders = {
        name: save(changed(model, seed), tmp_path / name, tokenizer)
        for seed, name in enumerate(("base", "sft"))
    }
    rewrite(  # as Pythia's files are on the hub
        folders["sft"],
        lambda tensors: {n.replace("lm_head.", "embed_out."): t for n, t in tensors.items()},
    )
    run = stagelens.assemble(folders, tmp_path / "run")
    state = run.last.end().model
    for name, tensor in loaded(folders["sft"], transformers.AutoModelForCausalLM).items():
        assert torch.equal(state[name], tensor), name


def test_weights_of_two_precisions_are_refused_before_anything_is_copied(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    rewrite(
        folders["sft"],
        lambda tensors: {n: t.bfloat16() if "query" in n else t for n, t in tensors.items()},
    )
    with pytest.raises(RunError, match=r"query\S* is bfloat16, but most weights in .* are float32"):
        stagelens.assemble(
            folders, tmp_path / "run", evaluation=labelled_texts(tmp_path / "few.jsonl")
        )
    assert not (tmp_path / "run").exists()
