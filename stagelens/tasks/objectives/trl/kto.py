"""Kahneman-Tversky optimisation, on answers that are good or bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from stagelens.contracts import Example, Task
from stagelens.tasks.objectives.pairs import completions

from .objective import refuse
from .referred import Referred


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

    @classmethod
    def check(cls, trainer: Any, known: type) -> None:
        super().check(trainer, known)
        refuse(
            [
                (
                    "a KL over several processes",
                    trainer.accelerator.num_processes > 1 and trainer.calculate_KL,
                    "its loss compares every example with the KL of all processes' examples, of "
                    "which replay has those of one at a time; train in one process, or with "
                    "loss_type='apo_zero_unpaired', which has no KL",
                )
            ]
        )

    def add_head(self, model: Any) -> None:
        self.add_log_probabilities(model, outputs=("log_probs", "entropy", "mean_logits"))

    def examples(self, task: Task, batch: Any) -> Sequence[Example] | None:
        return completions(task, batch)

    def log_probabilities(
        self, trainer: Any, reference: nn.Module, inputs: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        completion, kl = trainer.compute_ref_log_probs(reference, inputs)
        return {"ref_logps": completion} | ({} if kl is None else {"ref_KL_logps": kl})
