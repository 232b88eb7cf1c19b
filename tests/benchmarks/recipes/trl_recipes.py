"""Recipes of TRL: every trainer, after a stage of supervised fine-tuning."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from stagelens import StageRecorderCallback
from tests.benchmarks.recipes.recipe import Part, Recipe
from tests.support.trl_trainings import Training, load, prompts, save_base, texts

DPO_LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)


PARTIAL = {
    "max_steps": -1,
    "num_train_epochs": 1,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 1,
    "beta": 0.1,
}
"""Five micro-batches of ten prompts, two to a step."""


def ten_prompts() -> list[dict[str, Any]]:
    """As many prompts as make an odd number of micro-batches."""
    return prompts()[:10]


def part(
    name: str, training: Training, reference_attention: str | None = None, **recording: Any
) -> Part:
    """A stage by a trainer of TRL, the reference model with an attention of its own if given."""

    def train(start: Path, end: Path, run: Path | None, stage: str) -> None:
        model, tokenizer = load(start, training.classifies)
        callbacks = [] if run is None else [StageRecorderCallback(run, stage, **recording)]
        trainer = training.trainer(model, tokenizer, end / "out", callbacks)
        if reference_attention is not None:
            trainer.ref_model.set_attn_implementation(reference_attention)
        trainer.train()
        trainer.save_model(str(end))

    return Part(name, train)


def resumed(name: str, training: Training) -> Part:
    """A stage that is interrupted after its third update, and goes on from its second.

    Without a run it is trained as if nothing had happened.
    """
    from transformers import TrainerCallback

    class Interruption(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    saving = Training(
        training.kind,
        settings={**training.settings, "save_strategy": "steps", "save_steps": 2},
    )

    def train(start: Path, end: Path, run: Path | None, stage: str) -> None:
        if run is None:
            part(name, saving).train(start, end, None, stage)
            return
        model, tokenizer = load(start)
        callbacks = [StageRecorderCallback(run, stage, checkpoint_every=2), Interruption()]
        try:
            saving.trainer(model, tokenizer, end / "out", callbacks).train()
        except KeyboardInterrupt:
            callbacks[0].interrupt()
        model, tokenizer = load(start)
        callbacks = [StageRecorderCallback(run, f"{stage} resumed")]
        trainer = saving.trainer(model, tokenizer, end / "out", callbacks)
        trainer.train(resume_from_checkpoint=True)
        trainer.save_model(str(end))

    return Part(name, train)


def lora(**settings: Any) -> Any:
    """An adapter of rank 2."""
    import peft

    return peft.LoraConfig(
        r=2,
        target_modules=["c_attn"],
        task_type="CAUSAL_LM",
        fan_in_fan_out=True,
        **settings,
    )


def other_reference() -> Any:
    """A reference model that no stage of the run has left."""
    with tempfile.TemporaryDirectory() as folder:
        return load(save_base(Path(folder), seed=5))[0]


def recipes() -> list[Recipe]:
    """All of them."""
    found: list[Recipe] = []
    base: Callable[[Path], object] = save_base
    first = part("first", Training("sft", texts, {"max_steps": 3, "seed": 3}))

    def add(name: str, kind: str, options: dict[str, Any] | None = None, **settings: Any) -> None:
        training = Training(kind, None, settings, options or {})
        found.append(Recipe(f"{kind.upper()} {name}", base, [first, part(kind, training)]))

    def add_sft(name: str, rows: Any = None, **settings: Any) -> None:
        training = Training("sft", rows, settings)
        found.append(Recipe(f"SFT {name}", base, [first, part("sft", training)]))

    from tests.support.trl_trainings import completions, conversations

    add_sft("nll")
    add_sft("DFT", loss_type="dft")
    add_sft("completions only", completions)
    add_sft("assistant only", conversations, assistant_only_loss=True)
    add_sft("packing, best fit", packing=True, max_length=24)
    add_sft("packing, wrapped", packing=True, packing_strategy="wrapped", max_length=16)
    add_sft("padding-free", padding_free=True, max_length=None)
    add_sft("accumulation", gradient_accumulation_steps=2)
    add_sft("bf16, checkpointing", bf16=True, gradient_checkpointing=True)
    add_sft("label smoothing", label_smoothing_factor=0.1)
    add_sft("NEFTune", neftune_noise_alpha=5.0)
    add("LoRA", "sft", {"peft_config": lora})
    for loss in DPO_LOSSES:
        add(loss, "dpo", loss_type=[loss], label_smoothing=0.1)
    add("several losses", "dpo", loss_type=["sigmoid", "bco_pair", "sft"])
    add("dropout on", "dpo", disable_dropout=False)
    add("WPO, length desensitised", "dpo", use_weighting=True, ld_alpha=0.5)
    add(
        "bf16, checkpointing, accumulation",
        "dpo",
        bf16=True,
        gradient_checkpointing=True,
        gradient_accumulation_steps=2,
    )
    add("reference computed ahead", "dpo", precompute_ref_log_probs=True)
    add("reference moves", "dpo", sync_ref_model=True, ref_model_sync_steps=2)
    add("another reference", "dpo", {"ref_model": other_reference})
    own = part("dpo", Training("dpo"), reference_attention="eager")
    found.append(Recipe("DPO reference with another attention", base, [first, own]))
    add("LoRA", "dpo", {"peft_config": lora})
    add(
        "LoRA, reference computed ahead",
        "dpo",
        {"peft_config": lora},
        precompute_ref_log_probs=True,
    )
    found.append(Recipe("DPO resumed", base, [first, resumed("dpo", Training("dpo"))]))
    add("", "kto")
    add("APO, unpaired", "kto", loss_type="apo_zero_unpaired")
    add("reference computed ahead", "kto", precompute_ref_log_probs=True)
    add("", "orpo")
    add("bf16", "orpo", bf16=True)
    rewards = part("first", Training("reward", settings={"max_steps": 3, "seed": 3}))
    reward_base = partial(save_base, classifies=True)
    for name, settings in {
        "pairs": {},
        "pairs, centred, bf16": {"center_rewards_coefficient": 0.1, "bf16": True},
    }.items():
        own = part("reward", Training("reward", settings=settings))
        found.append(Recipe(f"Reward {name}", reward_base, [rewards, own]))
    add("", "grpo")
    add("KL to the reference", "grpo", beta=0.1)
    add("two iterations, accumulation", "grpo", num_iterations=2, gradient_accumulation_steps=2)
    own = part("grpo", Training("grpo", ten_prompts, PARTIAL))
    found.append(Recipe("GRPO accumulation, the last one partial", base, [first, own]))
    add("LoRA, KL", "grpo", {"peft_config": lora}, beta=0.1)
    add("entropy bonus", "grpo", entropy_coef=0.01)
    add("adaptive entropy", "grpo", use_adaptive_entropy=True)
    stages = [part("sft", Training("sft")), part("dpo", Training("dpo"))]
    found.append(Recipe("SFT - DPO - GRPO", base, [*stages, part("grpo", Training("grpo"))]))
    found.append(Recipe("SFT - DPO - DPO", base, [*stages, part("again", Training("dpo"))]))
    return found
