"""Supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from torch import Tensor, nn
from transformers.trainer_pt_utils import LabelSmoother

from stagelens.contracts import Example, Objective, RecordingError, Task
from stagelens.tasks.causal_lm import CausalLM

from .objective import TrlObjective


class SFT(TrlObjective):
    """The loss of TRL's ``SFTTrainer``: negative log-likelihood, by its fused head, or DFT.

    Which tokens count (those of completions or of assistants only), packing and padding-free
    batches are in the recorded labels and positions.
    """

    name = "sft"
    home = "trl.trainer.sft_trainer:SFTTrainer"
    read = ("model_accepts_loss_kwargs", "num_virtual_tokens")
    read_arguments = (
        "loss_type",
        "label_smoothing_factor",
        "average_tokens_across_devices",
        "gradient_accumulation_steps",
        "packing",
        "packing_strategy",
    )

    @property
    def _wrapped(self) -> bool:
        """Whether rows are cut out of one stream of texts, each of which ends with its token."""
        packs = self.arguments.get("packing") and self.arguments.get("packing_strategy")
        return bool(packs == "wrapped")

    def documents(self, task: Task, batch: Any) -> Tensor | None:
        if isinstance(task, CausalLM):
            return task.documents(batch, self._wrapped)
        return task.documents(batch)

    def examples(self, task: Task, batch: Any) -> Sequence[Example] | None:
        if isinstance(task, CausalLM):
            return task.examples(batch, self._wrapped)
        return task.examples(batch)

    def plain(self) -> Objective:
        found: Any = super().plain()
        if self.arguments.get("loss_type") == "chunked_nll":
            found.arguments = {**self.arguments, "loss_type": "nll"}
        return found

    def add_head(self, model: Any) -> None:
        if self.arguments.get("loss_type") == "chunked_nll":  # of TRL 1.14 and before
            sft_trainer: Any = import_module("trl.trainer.sft_trainer")
            size = sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE
            sft_trainer._patch_chunked_ce_lm_head(model, chunk_size=size)
        else:
            self.add_log_probabilities(model, outputs=("log_probs", "entropy", "is_top1"))

    @classmethod
    def check(cls, trainer: Any, known: type) -> None:
        super().check(trainer, known)
        given = trainer.compute_loss_func
        if given is not None and given is not _dft_function():
            raise RecordingError(
                "an SFTTrainer with compute_loss_func computes a loss that is code, which no run "
                "keeps; give it as an objective of your own, StageRecorderCallback(..., "
                "objective=...)"
            )

    def bare(self, model: nn.Module, references: Mapping[str, nn.Module]) -> Any:
        trainer = super().bare(model, references)
        epsilon = self.arguments.get("label_smoothing_factor", 0)
        trainer.label_smoother = LabelSmoother(epsilon=epsilon) if epsilon else None
        trainer.compute_loss_func = None
        if self.arguments.get("loss_type") == "dft":
            trainer.compute_loss_func = _dft_function()
        trainer.compute_metrics = trainer.preprocess_logits_for_metrics = None
        return trainer


def _dft_function() -> Any:
    """The loss function that TRL 1.14 and before give themselves for DFT; None later."""
    from trl.trainer import sft_trainer

    return getattr(sft_trainer, "dft_loss", None)
