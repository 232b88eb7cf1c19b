"""Folders whose files hold other tensors than the model has: read as transformers reads them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import stagelens
from stagelens.contracts import RunError
from stagelens.runs.run import Run
from tests.support.checkpoints import changed, save
from tests.support.small_texts import CLASSES, bert, bert_tokenizer, gpt, gpt_tokenizer
from tests.support.tiny_models import tiny

CAUSAL = transformers.AutoModelForCausalLM
LORA: dict[str, Any] = {
    "r": 2,
    "target_modules": ["c_attn"],
    "fan_in_fan_out": True,
    "init_lora_weights": False,
}


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def check_end(run: Run, expected: Any) -> None:
    state = run.last.end().model
    for name, tensor in weights(expected).items():
        assert torch.equal(state[name], tensor), name


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(gpt(gpt_tokenizer()), tmp_path_factory.mktemp("models") / "base", gpt_tokenizer())


def adapter(base: Path, folder: Path, seed: int = 0, name: str = "", **options: Any) -> Path:
    """A LoRA adapter as peft saves it, with values of its own."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(
        CAUSAL.from_pretrained(base), peft.LoraConfig(**{**LORA, **options}, task_type="CAUSAL_LM")
    )
    model.peft_config["default"].base_model_name_or_path = name or str(base)
    model.save_pretrained(folder)
    return folder


def merged(base: Path, folder: Path) -> Any:
    model = peft.PeftModel.from_pretrained(CAUSAL.from_pretrained(base), folder)
    return model.merge_and_unload()


def test_experts_are_merged_as_transformers_merges_them(tmp_path: Path) -> None:
    model = tiny("mixtral", "causal")
    folders = {
        name: save(changed(model, seed), tmp_path / name, gpt_tokenizer())
        for seed, name in enumerate(("base", "sft"))
    }
    assert any(".w1." in name for name in load_file(folders["sft"] / "model.safetensors"))
    before = random.getstate(), torch.random.get_rng_state()
    run = stagelens.assemble(folders, tmp_path / "run")
    assert torch.equal(before[1], torch.random.get_rng_state())
    assert run.problems == []
    check_end(run, CAUSAL.from_pretrained(folders["sft"]))
    assert not list(tmp_path.glob(".*"))


def pickled(folder: Path, content: Any = None) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors if content is None else content, folder / "pytorch_model.bin")


def test_a_pickle_is_opened_only_where_that_is_allowed(base: Path, tmp_path: Path) -> None:
    sft = save(changed(CAUSAL.from_pretrained(base), 1), tmp_path / "sft")
    expected = CAUSAL.from_pretrained(sft)
    pickled(sft)
    folders = {"base": base, "sft": sft}
    with pytest.raises(RunError, match=r"a pickle, which may hold code; .*\(--allow-bin\)"):
        stagelens.assemble(folders, tmp_path / "run")
    run = stagelens.assemble(folders, tmp_path / "run", allow_bin=True)
    check_end(run, expected)
    assert run.problems == ["sft: read from pytorch_model.bin, without any code in it"]


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_code_in_a_pickle_never_runs(base: Path, tmp_path: Path) -> None:
    sft = Path(shutil.copytree(base, tmp_path / "sft"))
    pickled(sft, {"transformer.wte.weight": Touch(tmp_path / "was-run")})
    with pytest.raises(RunError, match=r"sft: .* cannot be loaded .*[Ww]eights.only"):
        stagelens.assemble({"base": base, "sft": sft}, tmp_path / "run", allow_bin=True)
    assert not (tmp_path / "was-run").exists()


def test_adapters_are_merged_into_the_stage_that_they_name(base: Path, tmp_path: Path) -> None:
    full = save(changed(CAUSAL.from_pretrained(base), 2), tmp_path / "full")
    sft, dpo = adapter(base, tmp_path / "sft"), adapter(full, tmp_path / "dpo", seed=1)
    run = stagelens.assemble({"base": base, "full": full, "sft": sft, "dpo": dpo}, tmp_path / "run")
    check_end(run, merged(full, dpo))
    start = run.last.start().model
    for name, tensor in weights(merged(base, sft)).items():
        assert torch.equal(start[name], tensor), name
    assert run.problems == [
        "sft: an adapter (LORA) on base, merged into it in float32",
        "dpo: an adapter (LORA) on full, merged into it in float32",
    ]


def test_checkpoints_of_one_adapter_lie_on_the_same_base(base: Path, tmp_path: Path) -> None:
    folders = {
        f"s{seed}": adapter(base, tmp_path / f"checkpoint-{seed}", seed, name="/cluster/gone")
        for seed in (1, 2)
    }
    run = stagelens.assemble({"start": base, **folders}, tmp_path / "run")
    check_end(run, merged(base, folders["s2"]))
    assert (
        "its base, which is none of the stages, so it is laid on the one before"
        in (run.problems[0])
    )


def test_an_output_folder_of_adapters_ends_at_its_last_checkpoint(
    base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for seed in (4, 12):
        adapter(base, out / f"checkpoint-{seed}", seed)
    run = stagelens.assemble({"base": base, "sft": out}, tmp_path / "run")
    check_end(run, merged(base, out / "checkpoint-12"))


def test_an_adapter_that_added_tokens_has_rows_of_its_own(base: Path, tmp_path: Path) -> None:
    tokenizer = gpt_tokenizer()
    tokenizer.add_tokens(["<|user|>", "<|model|>"])
    model = CAUSAL.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    adapted = peft.get_peft_model(model, peft.LoraConfig(**LORA, task_type="CAUSAL_LM"))
    sft = tmp_path / "sft"
    adapted.save_pretrained(sft)
    tokenizer.save_pretrained(sft)
    run = stagelens.assemble({"base": base, "sft": sft}, tmp_path / "run")
    check_end(run, adapted.merge_and_unload())


def test_an_adapter_brings_the_head_of_a_classifier(tmp_path: Path) -> None:
    base = save(bert(bert_tokenizer(), auto=transformers.AutoModel), tmp_path / "base")
    sft, adapted = classifier_adapter(base, tmp_path / "sft")
    run = stagelens.assemble({"base": base, "sft": sft}, tmp_path / "run")
    check_end(run, adapted.merge_and_unload())


def test_what_an_adapter_did_not_save_is_not_drawn_anew(tmp_path: Path) -> None:
    # A masked language model has no pooler, and LoRA saves none.
    base = save(bert(bert_tokenizer(), auto=transformers.AutoModelForMaskedLM), tmp_path / "base")
    sft, _ = classifier_adapter(base, tmp_path / "sft")
    with pytest.raises(RunError, match=r"sft: neither base nor the adapter .* bert\.pooler"):
        stagelens.assemble({"base": base, "sft": sft}, tmp_path / "run")


def classifier_adapter(base: Path, folder: Path) -> tuple[Path, Any]:
    labels = {"id2label": dict(enumerate(CLASSES)), "num_labels": len(CLASSES)}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, **labels)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2)
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    adapted.save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    return folder, adapted


def test_an_adapter_alone_asks_for_its_model(base: Path, tmp_path: Path) -> None:
    sft = adapter(base, tmp_path / "sft", name="meta-llama/Llama-3.1-8B")
    with pytest.raises(RunError, match=r"give the model that it was trained on \(meta-llama/Llama"):
        stagelens.assemble({"one": sft, "two": base}, tmp_path / "run")


def test_an_adapter_that_does_not_fit_is_refused(base: Path, tmp_path: Path) -> None:
    sft = adapter(base, tmp_path / "sft")
    other = save(gpt(gpt_tokenizer(), n_embd=8), tmp_path / "other", gpt_tokenizer())
    with pytest.raises(RunError, match=r"sft: .* cannot be loaded"):
        stagelens.assemble({"base": other, "sft": sft}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_in_4_bits_are_dequantised(tmp_path: Path) -> None:
    base = save(tiny("llama", "causal"), tmp_path / "base")
    four = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = CAUSAL.from_pretrained(base, quantization_config=four, dtype=torch.float32)
    sft = save(model, tmp_path / "sft", gpt_tokenizer())
    expected = CAUSAL.from_pretrained(sft).dequantize()
    run = stagelens.assemble({"base": base, "sft": sft}, tmp_path / "run")
    check_end(run, expected)
    assert any("sft: quantised (bitsandbytes)" in note for note in run.problems)


def test_layers_that_quantising_transposes_are_turned_back(tmp_path: Path) -> None:
    base = save(gpt(gpt_tokenizer(), n_embd=64), tmp_path / "base", gpt_tokenizer())
    four = transformers.BitsAndBytesConfig(load_in_4bit=True)
    model = CAUSAL.from_pretrained(base, quantization_config=four, dtype=torch.float32)
    sft = save(model, tmp_path / "sft")
    expanded = CAUSAL.from_pretrained(sft).dequantize()
    assert expanded.transformer.h[0].attn.c_attn.weight.shape == (192, 64)
    run = stagelens.assemble({"base": base, "sft": sft}, tmp_path / "run")

    own = CAUSAL.from_pretrained(base)
    own.load_state_dict(dict(run.last.end().model), strict=False)
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        answers = [each.eval()(ids).logits for each in (own, expanded)]
    assert torch.allclose(*answers, atol=1e-5)


def test_rows_that_the_final_vocabulary_lacks_are_left_out(base: Path, tmp_path: Path) -> None:
    model = CAUSAL.from_pretrained(base)
    rows = model.transformer.wte.weight.shape[0]
    model.resize_token_embeddings(rows + 8)
    padded = save(model, tmp_path / "padded")
    run = stagelens.assemble({"base": padded, "sft": base}, tmp_path / "run")
    assert torch.equal(
        run.last.start().model["transformer.wte.weight"], model.transformer.wte.weight[:rows]
    )
    assert (
        f"base: the last 8 of its {rows + 8} rows of the vocabulary are left out"
        in (run.problems[0])
    )


def test_a_head_may_leave_its_embeddings(base: Path, tmp_path: Path) -> None:
    model = gpt(gpt_tokenizer(), tie_word_embeddings=False)
    sft = save(changed(model, 1), tmp_path / "sft", gpt_tokenizer())
    run = stagelens.assemble({"base": base, "sft": sft}, tmp_path / "run")
    check_end(run, CAUSAL.from_pretrained(sft))
    embeddings = CAUSAL.from_pretrained(base).transformer.wte.weight
    assert torch.equal(run.last.start().model["lm_head.weight"], embeddings)
    assert run.problems == [
        "base: lm_head.weight is tied to the embeddings there, and has values of its own in the "
        "final model"
    ]
