"""Group relative policy optimisation: training on answers that the model sampled itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.contracts import Example, Task
from stagelens.tasks.adapters import is_adapted
from stagelens.tasks.objectives.pairs import completions

from .bare import base_of
from .objective import refuse
from .referred import Referred


class GRPO(Referred):
    """The loss of TRL's ``GRPOTrainer``, on the answers and advantages of the recording.

    Held fixed: the sampled answers, their advantages, and the log-probabilities that they were
    sampled with. Where the trainer keeps none of these, because every answer is trained on by the
    model that sampled it, their ratio is 1 in a replay too.
    """

    name = "grpo"
    on_samples = True
    reads_micro_batches = True
    counted = False  # under the same name, the batch has the tokens of a whole generation
    home = "trl.trainer.grpo_trainer:GRPOTrainer"
    methods = (
        "compute_loss",
        "_compute_loss",
        "_get_per_token_logps_and_entropies",
        "get_high_entropy_mask",
        "get_off_policy_mask",
        "get_gamma_weights",
    )
    read = (
        "beta",
        "loss_type",
        "epsilon_low",
        "epsilon_high",
        "importance_sampling_level",
        "max_completion_length",
        "off_policy_mask_threshold",
        "top_entropy_quantile",
        "use_adaptive_entropy",
        "_entropy_bonus_enabled",
        "entropy_coef",
        "temperature",
        "use_vllm",
        "vllm_importance_sampling_correction",
    )
    read_arguments = (
        "delta",
        "disable_dropout",
        "gradient_accumulation_steps",
        "sapo_temperature_neg",
        "sapo_temperature_pos",
        "steps_per_generation",
        "use_bias_correction_kl",
        "vespo_k_neg",
        "vespo_k_pos",
        "vespo_lambda_neg",
        "vespo_lambda_pos",
    )

    def add_head(self, model: Any) -> None:
        temperature = self.attributes["temperature"]
        self.add_log_probabilities(model, temperature=temperature, outputs=("log_probs", "entropy"))

    @property
    def needed(self) -> bool:
        return bool(self.attributes["beta"])

    @property
    def in_batches(self) -> bool:
        return True

    @classmethod
    def check(cls, trainer: Any, known: type) -> None:
        super().check(trainer, known)
        refuse(
            [
                (
                    "use_adaptive_entropy",
                    trainer.use_adaptive_entropy,
                    "the weight of the entropy changes during training by what was sampled; set "
                    "entropy_coef alone",
                ),
                (
                    "cast_lm_head_to_fp32",
                    trainer.args.cast_lm_head_to_fp32,
                    "it replaces the model's head, which the replayed model has not; train the "
                    "whole model in float32",
                ),
                (
                    "top_entropy_quantile in several processes",
                    trainer.accelerator.num_processes > 1 and trainer.top_entropy_quantile < 1,
                    "which tokens count depends on the entropies of all processes' tokens, and "
                    "replay has those of one at a time; train in one process, or with "
                    "top_entropy_quantile=1",
                ),
            ]
        )

    def bare(self, model: nn.Module, references: Mapping[str, nn.Module]) -> Any:
        trainer = super().bare(model, references)
        trainer.model_kwarg_keys = signature(base_of(model).forward).parameters
        return trainer

    def examples(self, task: Task, batch: Any) -> Sequence[Example] | None:
        ids, mask = _joined(batch)
        scored = torch.zeros_like(mask)
        scored[:, batch["prompt_ids"].size(1) :] = batch["completion_mask"]
        rows = {"input_ids": ids, "attention_mask": mask, "completion_mask": scored}
        return completions(task, rows)

    def log_probabilities(
        self, trainer: Any, reference: nn.Module, inputs: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        from trl.trainer.utils import use_adapter

        off: AbstractContextManager[Any] = nullcontext()
        if is_adapted(reference):
            off = use_adapter(reference, "ref" if "ref" in reference.peft_config else None)
        ids, mask = _joined(inputs)
        length = inputs["completion_ids"].size(1)
        with torch.no_grad(), off:
            found = trainer._get_per_token_logps_and_entropies(reference, ids, mask, length)
        return {"ref_per_token_logps": found[0]}


def _joined(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(B, T) ids and mask of prompts with their completions."""
    ids, mask = (
        torch.cat([batch[f"prompt_{kind}"], batch[f"completion_{kind}"]], 1)
        for kind in ("ids", "mask")
    )
    return ids, mask
