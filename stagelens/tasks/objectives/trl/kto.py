"""Kahneman-Tversky optimisation, on answers that are good or bad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .referred import Referred

if TYPE_CHECKING:
    import torch
    from torch import nn


class KTO(Referred):
    """The loss of TRL's ``KTOTrainer``, with any of its loss types."""

    name = "kto"
    home = "trl.trainer.kto_trainer:KTOTrainer"
    methods = ("compute_loss", "_compute_loss", "_compute_kl_logps", "compute_ref_log_probs")
    read = (
        "beta",
        "precompute_ref_logps",
        "loss_type",
        "calculate_KL",
        "desirable_weight",
        "undesirable_weight",
    )
    read_arguments = ("disable_dropout",)

    @property
    def heads(self) -> dict[str, Any]:
        return {"outputs": ("log_probs", "entropy", "mean_logits")}

    def log_probabilities(
        self, trainer: Any, reference: nn.Module, inputs: Mapping[str, Any]
    ) -> dict[str, torch.Tensor]:
        completion, kl = trainer.compute_ref_log_probs(reference, inputs)
        return {"ref_logps": completion} | ({} if kl is None else {"ref_KL_logps": kl})
