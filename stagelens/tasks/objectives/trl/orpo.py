"""Odds ratio preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from stagelens.contracts import Task

from .objective import TrlObjective


class ORPO(TrlObjective):
    """The loss of TRL's ``ORPOTrainer``, which needs no reference model."""

    name = "orpo"
    home = "trl.experimental.orpo.orpo_trainer:ORPOTrainer"
    methods = (
        "compute_loss",
        "get_batch_loss_metrics",
        "concatenated_forward",
        "concatenated_inputs",
        "odds_ratio_loss",
        "get_batch_logps",
    )
    read = (
        "beta",
        "aux_loss_coef",
        "is_encoder_decoder",
        "padding_value",
        "pad_token_id",
        "decoder_start_token_id",
        "_peft_has_been_casted_to_bf16",
    )
    read_arguments = ("disable_dropout",)

    def row_examples(self, task: Task, batch: Any) -> Sequence[int]:
        """A pair has two rows, which the trainer puts below each other itself."""
        return [*range(len(batch["chosen_input_ids"]))] * 2

    def examples(self, task: Task, batch: Any) -> None:
        """Not shown: its batches hold each answer apart."""

    def bare(self, model: nn.Module, references: Mapping[str, nn.Module]) -> Any:
        trainer = super().bare(model, references)
        trainer._stored_metrics = {"train": trainer._metrics["train"]}
        return trainer
