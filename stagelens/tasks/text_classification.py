"""Text classification: a text in, one of C classes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from stagelens.contracts import Predictions, TaskError

from .classification import (
    CLASSIFIER_BEHAVIOURS,
    NO_LABEL,
    class_names,
    classifier_behaviours,
    classifier_predictions,
)
from .named_outputs import NamedOutputs, check_padding
from .tokenizer import Encoded
from .transformer_task import IGNORED, Batch


class TextClassification(NamedOutputs):
    """Texts, classified by a ``transformers`` model (``AutoModelForSequenceClassification``).

    A batch is a dictionary of the model's keyword arguments: ``input_ids``, ``attention_mask``
    and ``labels``, with ``token_type_ids`` where any is not 0. Arguments are those of
    :class:`~stagelens.tasks.named_outputs.NamedOutputs`.

    Example:
        >>> task = TextClassification.from_model(model, tokenizer)      # doctest: +SKIP
        >>> batch = task.batch(["how kind", "you fool"], ["harmless", "toxic"])
        >>> loss = task.loss(model, batch)
    """

    name: ClassVar[str] = "text-classification"
    behaviour_kinds = CLASSIFIER_BEHAVIOURS
    _auto_class = "AutoModelForSequenceClassification"
    _problem = "single_label_classification"

    def _check_classes(self, model: Mapping[str, Any]) -> None:
        outputs = model.get("id2label") or range(model.get("num_labels", 1))
        if len(self.classes) == len(outputs) == 1:
            raise TaskError(
                "the model has one output (num_labels=1), so it gives a score instead of a class, "
                "as regression and reward models do; attribute it with the task regression or "
                "reward-model"
            )
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise TaskError(
                f"classes must be distinct names, at least two, but are {self.classes[:8]}; name "
                "each one (id2label, for a model of transformers)"
            )
        kind = model.get("problem_type")
        if kind not in (None, "single_label_classification"):
            raise TaskError(
                f"the model's problem_type is {kind!r}, but text-classification gives each text "
                'one class; set model.config.problem_type = "single_label_classification"'
            )
        check_padding(model)

    def label_tensor(self, labels: Sequence[str | None], rows: Sequence[Encoded]) -> Tensor:
        """(B,) class indices."""
        numbers = [IGNORED if name is None else self.classes.index(name) for name in labels]
        return torch.tensor(numbers)

    def label_names(self, batch: Batch) -> list[str | None]:
        """Names of classes."""
        return class_names(self.classes, batch["labels"])

    def behaviours(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Margin, loss and probability of the label; see :func:`classifier_behaviours`."""
        labels = batch["labels"]
        return classifier_behaviours(outputs, labels.masked_fill(labels == IGNORED, NO_LABEL))

    def predictions(self, outputs: Tensor) -> Predictions:
        """The most probable class of each text."""
        return classifier_predictions(outputs, self.classes)
