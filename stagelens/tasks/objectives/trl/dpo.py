"""Direct preference optimisation, on pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from stagelens.contracts import Example, Task
from stagelens.tasks.objectives.pairs import pair_examples, pair_rows

from .referred import Referred


class DPO(Referred):
    """The loss of TRL's ``DPOTrainer``, with any of its loss types."""

    name = "dpo"
    home = "trl.trainer.dpo_trainer:DPOTrainer"
    methods = ("compute_loss", "_compute_loss", "compute_ref_log_probs")
    read = (
        "beta",
        "precompute_ref_logps",
        "loss_types",
        "loss_weights",
        "ld_alpha",
        "f_divergence_type",
        "f_alpha_divergence_coef",
        "label_smoothing",
        "use_weighting",
    )
    read_arguments = ("discopop_tau", "disable_dropout")

    def add_head(self, model: Any) -> None:
        wpo = ("log_sum_sq_probs",) if self.attributes.get("use_weighting") else ()
        self.add_log_probabilities(
            model, outputs=("log_probs", "entropy", "mean_logits", "is_top1", *wpo)
        )

    def row_examples(self, task: Task, batch: Any) -> Sequence[int]:
        return pair_rows(batch)

    def coupling(self, task: Task, batch: Any) -> str | None:
        """Some loss types sort the pairs of a batch."""
        for kind in self.attributes.get("loss_types", ()):
            if str(kind).startswith("aot"):
                return (
                    f"the loss type {kind!r} compares the pairs of a batch with one another, so "
                    "that none has a part of its own"
                )
        return None

    def examples(self, task: Task, batch: Any) -> Sequence[Example] | None:
        return pair_examples(task, batch)

    def log_probabilities(
        self, trainer: Any, reference: nn.Module, inputs: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        chosen, rejected = trainer.compute_ref_log_probs(reference, inputs)
        return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
