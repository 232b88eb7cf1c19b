"""A checkpoint folder is what transformers makes of it, or it is refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import stagelens
from stagelens.assembling.architecture import Architecture
from stagelens.contracts import RunError
from tests.support.checkpoints import changed, edit_json, save
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


@pytest.mark.parametrize("prefix", ["model.", "pretrained_model."])
@pytest.mark.parametrize("which", ["base", "sft"])
def test_the_object_that_held_a_model_is_told_by_a_name(
    prefix: str, which: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    rewrite(folders[which], lambda tensors: {prefix + n: t for n, t in tensors.items()})
    says = rf"{which}: a tensor is named {prefix}bert\S+, but transformers looks for bert"
    with pytest.raises(RunError, match=says):
        stagelens.assemble(folders, tmp_path / "run")


def test_an_adapter_inside_the_weights_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    rewrite(
        folders["base"],
        lambda tensors: {n.replace("query.", "query.base_layer."): t for n, t in tensors.items()},
    )
    with pytest.raises(RunError, match=r"base: .*base_layer.* an adapter that was not merged"):
        stagelens.assemble(folders, tmp_path / "run")


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


def test_weights_of_two_precisions_are_cast_as_from_pretrained_casts_them(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    rewrite(
        folders["sft"],
        lambda tensors: {n: t.bfloat16() if "query" in n else t for n, t in tensors.items()},
    )
    run = stagelens.assemble(folders, tmp_path / "run")
    state = run.last.end().model
    for name, tensor in loaded(folders["sft"]).items():
        assert torch.equal(state[name], tensor), name
    (note,) = run.problems
    assert "query" in note and "is bfloat16, others are not; all are cast to float32" in note


ODD: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        "holds an adapter beside model.safetensors, which from_pretrained adds to it",
    ),
    (
        lambda folder: edit_json(
            folder / "config.json", lambda content: content.update(transformers_weights="w.st")
        ),
        "transformers_weights: 'w.st'",
    ),
    (
        lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1"),
        "is a pointer of Git LFS instead of the weights; fetch them: git lfs pull",
    ),
    (
        lambda folder: (folder / WEIGHTS).rename(folder / "model.fp16.safetensors"),
        "but model.fp16.safetensors, a variant of the weights",
    ),
    (
        lambda folder: (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors"),
        "but model-00001-of-00002.safetensors, a shard without model.safetensors.index.json",
    ),
]


@pytest.mark.parametrize(("change", "says"), ODD, ids=[says[:40] for _, says in ODD])
def test_what_is_no_plain_model_is_refused_for_what_it_is(
    change: Callable[[Path], object], says: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    change(folders["sft"])
    with pytest.raises(RunError, match=re.escape(says)):
        stagelens.assemble(folders, tmp_path / "run")


def test_keys_that_say_nothing_are_no_reason_to_refuse(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    edit_json(
        folders["sft"] / "config.json",
        lambda content: content.update(quantization_config=None, transformers_weights=None),
    )
    (folders["sft"] / "pytorch_model.bin").write_bytes(b"older")
    assert stagelens.assemble(folders, tmp_path / "run").problems == []


def test_a_precision_that_only_the_configuration_has_is_noted(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    edit_json(folders["sft"] / "config.json", lambda content: content.update(dtype="bfloat16"))
    (note,) = stagelens.assemble(folders, tmp_path / "run").problems
    assert "sft: its weights are float32, but config.json says bfloat16" in note


def test_an_output_folder_without_a_model_of_its_own_ends_at_its_last_checkpoint(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    folders["sft"].rename(tmp_path / "out" / "checkpoint-3")
    (tmp_path / "out" / "training_args.bin").write_bytes(b"a pickle")
    run = stagelens.assemble({"base": folders["base"], "sft": tmp_path / "out"}, tmp_path / "run")
    assert run.problems == []


def test_renamings_that_depend_on_other_names_begin_anew_with_each_checkpoint() -> None:
    conversion_mapping = pytest.importorskip("transformers.conversion_mapping")
    from transformers.core_model_loading import GroupWeightRename

    group = GroupWeightRename(
        source_patterns=[r"norm0", r"norm1"], target_patterns=[r"norm1", r"norm2"]
    )
    module = bert(bert_tokenizer())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda _: [group])
        rename = Architecture.of(module).rename
    older, today = ["a.norm1", "a.norm0"], ["a.norm1", "a.norm2"]
    assert rename(older) == {"a.norm0": "a.norm1", "a.norm1": "a.norm2"}
    assert rename(today) == {name: name for name in today}
