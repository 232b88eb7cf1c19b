"""Supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .objective import TrlObjective, refuse

if TYPE_CHECKING:
    from torch import nn


class SFT(TrlObjective):
    """The loss of TRL's ``SFTTrainer``: negative log-likelihood, by its fused head, or DFT.

    Which tokens count (those of completions or of assistants only), packing and padding-free
    batches are in the recorded labels and positions.
    """

    name = "sft"
    home = "trl.trainer.sft_trainer:SFTTrainer"
    read_arguments = (
        "loss_type",
        "label_smoothing_factor",
        "average_tokens_across_devices",
        "gradient_accumulation_steps",
    )

    @property
    def heads(self) -> dict[str, Any]:
        return {"outputs": ("log_probs", "entropy", "is_top1")}

    @classmethod
    def check(cls, trainer: Any, known: type) -> None:
        super().check(trainer, known)
        refuse(
            [
                (
                    "compute_loss_func",
                    trainer.compute_loss_func is not None,
                    "it is code, which no run keeps; give it as an objective of your own, "
                    "StageRecorderCallback(..., objective=...)",
                )
            ]
        )

    def bare(self, model: nn.Module, references: Mapping[str, nn.Module]) -> Any:
        from transformers.trainer_pt_utils import LabelSmoother

        trainer = super().bare(model, references)
        epsilon = self.arguments.get("label_smoothing_factor", 0)
        trainer.label_smoother = LabelSmoother(epsilon=epsilon) if epsilon else None
        trainer.compute_loss_func = None
        return trainer
