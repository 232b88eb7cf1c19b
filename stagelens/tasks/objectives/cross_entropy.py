"""Cross-entropy with label smoothing or class weights, computed outside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

from stagelens.contracts import Objective, Task

if TYPE_CHECKING:
    import torch
    from torch import nn


class CrossEntropy(Objective):
    """Cross-entropy of the model's outputs, with smoothed labels or with a weight per class.

    Labels of -100 do not count. A batch is a mapping with ``labels``, whose other entries are given
    to the model, or a tuple that ends with the labels.

    Args:
        smoothing: Share of the target that is spread evenly over all classes.
        weights: One per class; None for equal weights.
        shift: Whether a position's label is the next one, as in causal language models.
        by: Whose arithmetic: ``"torch"``, as ``nn.functional.cross_entropy`` has it, or
            ``"trainer"``, as that of ``label_smoothing_factor``, which takes no weights.

    Raises:
        ValueError: A setting is out of range.
    """

    name = "cross-entropy"

    def __init__(
        self,
        smoothing: float = 0.0,
        weights: Sequence[float] | None = None,
        shift: bool = False,
        by: Literal["torch", "trainer"] = "torch",
    ) -> None:
        if not 0 <= smoothing <= 1:
            raise ValueError(f"smoothing={smoothing!r}; pass a share between 0 and 1")
        if by not in ("torch", "trainer"):
            raise ValueError(f'by={by!r}; pass "torch" or "trainer"')
        if by == "trainer" and weights is not None:
            raise ValueError('weights are not known to by="trainer"; use by="torch"')
        self.smoothing, self.shift, self.by = smoothing, shift, by
        self.weights = None if weights is None else [float(weight) for weight in weights]

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "smoothing": self.smoothing,
            "weights": self.weights,
            "shift": self.shift,
            "by": self.by,
        }

    def loss(
        self, task: Task, model: nn.Module, batch: Any, references: Mapping[str, nn.Module]
    ) -> torch.Tensor:
        outputs, labels, items = _outputs(model, batch)
        if self.by == "trainer":
            from transformers.trainer_pt_utils import LabelSmoother

            smoother = LabelSmoother(epsilon=self.smoothing)
            # Older versions divide by the tokens of the micro-batch, whatever they are given.
            known = "num_items_in_batch" in signature(LabelSmoother.__call__).parameters
            counted = {"num_items_in_batch": items} if known else {}
            return smoother(outputs, labels, shift_labels=self.shift, **counted)
        return self._torch(_logits(outputs), labels, items)

    def _torch(self, logits: torch.Tensor, labels: torch.Tensor, items: Any) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        if self.shift:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        if logits.ndim > 2 and labels.shape == logits.shape[:-1]:  # a label per position
            logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        weight = None if self.weights is None else logits.new_tensor(self.weights)
        loss = cross_entropy(
            logits,
            labels,
            weight,
            label_smoothing=self.smoothing,
            reduction="mean" if items is None else "sum",
        )
        return loss if items is None else loss / items

    @classmethod
    def of_trainer(cls, trainer: Any) -> Objective | None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        if getattr(trainer, "compute_loss_func", None) or trainer.label_smoother is None:
            return None
        model = trainer.accelerator.unwrap_model(trainer.model)
        if hasattr(model, "peft_config") and hasattr(model, "base_model"):
            model = model.base_model.model
        shift = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        return cls(float(trainer.label_smoother.epsilon), shift=shift, by="trainer")


def _outputs(model: nn.Module, batch: Any) -> tuple[Any, torch.Tensor, Any]:
    """What the model returns, the labels, and the number of items to divide by, if one is given."""
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        labels, items = inputs.pop("labels"), inputs.pop("num_items_in_batch", None)
        return model(**inputs), labels, items
    *inputs, labels = batch
    return model(*inputs), labels, None


def _logits(outputs: Any) -> torch.Tensor:
    if isinstance(outputs, Mapping):
        logits: torch.Tensor = outputs["logits"]
        return logits
    return outputs[0] if isinstance(outputs, tuple | list) else outputs
