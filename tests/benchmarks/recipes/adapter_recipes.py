"""Recipes with adapters: their variants, several of them, and bases in 4 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from stagelens import StageRecorderCallback
from tests.benchmarks.recipes.recipe import Part, Recipe
from tests.benchmarks.recipes.trl_recipes import part
from tests.support.trl_trainings import Training, load, save_base, texts

ON_GPT = {"target_modules": r".*attn\.c_proj", "fan_in_fan_out": True}
ON_LLAMA = {"target_modules": ["q_proj", "down_proj"]}

Change = Callable[[Any, Path], Any]
"""Makes the model of a stage, from the one before and the folder that all began with."""


def lora(**settings: Any) -> Any:
    """An adapter of rank 2."""
    return peft.LoraConfig(**{"r": 2, "task_type": "CAUSAL_LM", **settings})


def save_llama(folder: Path) -> Path:
    """A small model of linear layers, which can be packed, and its tokenizer."""
    save_base(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=48,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def in_turn(stages: Sequence[tuple[str, Change]]) -> Part:
    """Several stages of supervised fine-tuning on one model, which is changed between them."""

    def train(start: Path, end: Path, run: Path | None, stage: str) -> None:
        model, tokenizer = load(start)
        for number, (name, change) in enumerate(stages):
            torch.manual_seed(number)
            model = change(model, start)
            callbacks = [] if run is None else [StageRecorderCallback(run, name)]
            training = Training("sft", texts, {"max_steps": 3, "seed": number})
            trainer = training.trainer(model, tokenizer, end / name, callbacks)
            trainer.train()
        trainer.save_model(str(end))

    return Part(stages[-1][0], train)


def adapted(model: Any, _: Path, **settings: Any) -> Any:
    """The model with an adapter."""
    return peft.get_peft_model(model, lora(**settings))


def with_second(model: Any, _: Path, **settings: Any) -> Any:
    """A second adapter beside the first, which is trained; both are in use."""
    model.add_adapter("second", lora(**settings))
    model.base_model.set_adapter(["default", "second"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".second." in name)
    return model


def merged(model: Any, _: Path) -> Any:
    """All adapters in use merged; everything is trained."""
    return model.merge_and_unload().requires_grad_(True)


def packed(_: Any, start: Path, **settings: Any) -> Any:
    """The weights of the folder in 4 bits, with an adapter."""
    how = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        start, quantization_config=how, dtype=torch.float32
    )
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return adapted(model, start, **ON_LLAMA, **settings)


def merged_in_4_bits(model: Any, start: Path) -> Any:
    """Merged into the packed weights, with a new adapter on them."""
    return adapted(model.merge_and_unload(), start, **ON_LLAMA)


def merged_into_whole_weights(model: Any, start: Path) -> Any:
    """Merged into the weights of the folder, loaded again as they are."""
    factors = {n: t for n, t in model.state_dict().items() if ".lora_" in n}
    whole = adapted(load(start)[0], start, **ON_LLAMA)
    whole.load_state_dict(factors, strict=False)
    return merged(whole, start)


def after_qlora() -> Part:
    """A stage of everything, with the folder's adapter, if any, merged into its whole base."""

    def train(start: Path, end: Path, run: Path | None, stage: str) -> None:
        base = start
        if (start / "adapter_config.json").exists():
            base = Path(peft.PeftConfig.from_pretrained(str(start)).base_model_name_or_path)
        model, tokenizer = load(base)
        if base != start:
            model = merged(peft.PeftModel.from_pretrained(model, str(start)), base)
        callbacks = [] if run is None else [StageRecorderCallback(run, stage)]
        trainer = Training("sft", texts, {"max_steps": 3}).trainer(model, tokenizer, end, callbacks)
        trainer.train()
        trainer.save_model(str(end))

    return Part("sft", train)


def recipes() -> list[Recipe]:
    """All of them."""
    first = part("first", Training("sft", texts, {"max_steps": 3, "seed": 3}))
    found: list[Recipe] = []
    for kind, name, settings in (
        ("sft", "DoRA", {"use_dora": True}),
        ("sft", "rank-stable LoRA", {"use_rslora": True}),
        ("sft", "PiSSA", {"init_lora_weights": "pissa"}),
        ("sft", "PiSSA, random", {"init_lora_weights": "pissa_niter_4"}),
        ("sft", "OLoRA", {"init_lora_weights": "olora"}),
        ("dpo", "DoRA", {"use_dora": True}),
        ("dpo", "PiSSA", {"init_lora_weights": "pissa"}),
    ):
        options = {"peft_config": partial(lora, **ON_GPT, **settings)}
        own = part(kind, Training(kind, options=options))
        found.append(Recipe(f"{kind.upper()} {name}", save_base, [first, own]))
    one, two = partial(adapted, **ON_GPT), partial(with_second, **ON_GPT)
    histories: dict[str, list[tuple[str, Change]]] = {
        "LoRA merged": [("lora", one), ("after", merged)],
        "two LoRA adapters, merged at once": [("one", one), ("two", two), ("after", merged)],
        "DoRA merged": [("dora", partial(one, use_dora=True)), ("after", merged)],
    }
    found += [Recipe(f"SFT {n}", save_base, [first, in_turn(h)]) for n, h in histories.items()]
    histories = {
        "QLoRA": [("qlora", packed)],
        "QLoRA with DoRA": [("qlora", partial(packed, use_dora=True))],
        "QLoRA merged in 4 bits": [("qlora", packed), ("after", merged_in_4_bits)],
        "QLoRA merged into trained whole weights": [
            ("qlora", packed),
            ("after", merged_into_whole_weights),
        ],
    }
    found += [Recipe(f"SFT {n}", save_llama, [first, in_turn(h)]) for n, h in histories.items()]
    parts = [in_turn([("qlora", packed)]), after_qlora()]
    found.append(Recipe("QLoRA - SFT of the merged whole weights", save_llama, parts))
    return found
