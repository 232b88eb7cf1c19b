"""Multi-label classification: a text in, any number of C classes out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from stagelens.contracts import Behaviour, Predictions, TaskError
from stagelens.contracts.task_defaults import NO_ANSWER, check_class

from .named_outputs import NamedOutputs, check_padding
from .tokenizer import Encoded
from .transformer_task import Batch

NO_CLASS = "no class"
"""The label, or the answer, of a text to which no class belongs."""

_BETWEEN = ", "


class MultiLabelClassification(NamedOutputs):
    """Texts to which any number of classes belong (``problem_type`` multi_label_classification).

    A label is a list of class names or indices, a row of C zeros and ones, or names with commas
    between them; ``no class`` or an empty list where none belongs. An answer is right if it has
    just the label's classes. In batches, ``labels`` are (B, C) zeros and ones, float32. Arguments
    are those of :class:`~stagelens.tasks.named_outputs.NamedOutputs`.

    Example:
        >>> task = MultiLabelClassification.from_model(model, tokenizer)      # doctest: +SKIP
        >>> loss = task.loss(model, task.batch(["how kind"], [["joy", "surprise"]]))
    """

    name: ClassVar[str] = "multi-label-classification"
    several_labels: ClassVar[bool] = True
    behaviour_kinds = (
        Behaviour(
            "margin",
            "higher",
            "nats",
            "Log-odds with which the model gives, or withholds, each class as the label says; the "
            "mean over all classes.",
        ),
        Behaviour("loss", "lower", "nats", "Cross-entropy, the mean over all classes.", lowest=0.0),
        Behaviour(
            "worst margin",
            "higher",
            "nats",
            "The least of these log-odds: above 0 where the answer has just the label's classes.",
        ),
    )
    _auto_class = "AutoModelForSequenceClassification"
    _problem = "multi_label_classification"

    def _check_classes(self, model: Mapping[str, Any]) -> None:
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise TaskError(
                f"classes must be distinct names, at least one, but are {self.classes[:8]}; name "
                "each one (id2label, for a model of transformers)"
            )
        if (kind := model.get("problem_type")) not in (None, self._problem):
            raise TaskError(
                f"the model's problem_type is {kind!r}, but {self.name} gives each text any number "
                f'of classes; set model.config.problem_type = "{self._problem}"'
            )
        check_padding(model)

    def check_label(self, label: Any) -> str | None:
        """Names of classes in the order of the model's outputs, with commas between them.

        Raises:
            ValueError: It names no class, or holds other numbers than indices, or zeros and ones.
        """
        if label is None:
            return None
        chosen = sorted(self._indices(label))
        return _BETWEEN.join(self.classes[index] for index in chosen) or NO_CLASS

    def _indices(self, label: Any) -> set[int]:
        names: list[Any]
        if isinstance(label, str):
            names = self._listed(label)
        else:
            names = list(label) if isinstance(label, Sequence) else [label]
        if len(names) == len(self.classes) > 1 and all(each in (0, 1) for each in names):
            # Of two classes, [0, 1] could be indices too; floats, truth values and what appears
            # twice could not.
            if all(type(each) is int for each in names) and len(set(names)) == len(names):
                raise ValueError(
                    f"label {label!r} may be indices, or zeros and ones; give names of classes"
                )
            return {index for index, each in enumerate(names) if each}
        found = [check_class(self.classes, each) for each in names]
        return {self.classes.index(name) for name in found if name is not None}

    def _listed(self, label: str) -> list[str]:
        """The names in a text, of which some may have commas in them."""
        names, rest = [], label.strip()
        if rest == NO_CLASS:
            return []
        while rest:
            fits = [name for name in self.classes if f"{rest},".startswith(f"{name},")]
            name = max(fits, key=len, default=rest.partition(",")[0])
            names.append(name)
            rest = rest[len(name) :].lstrip(", ")
        return names

    def label_tensor(self, labels: Sequence[str | None], rows: Sequence[Encoded]) -> Tensor:
        """(B, C) zeros and ones; NaN for a text without a label."""
        values = torch.full((len(labels), len(self.classes)), torch.nan)
        for number, label in enumerate(labels):
            if label is not None:
                values[number] = 0.0
                values[number, sorted(self._indices(label))] = 1.0
        return values

    def label_names(self, batch: Batch) -> list[str | None]:
        """Names of classes, with commas between them."""
        labels = batch["labels"]
        if labels.ndim != 2 or labels.shape[1] != len(self.classes):
            return [None] * len(labels)
        return [self._named(row > 0.5) if row.isfinite().all() else None for row in labels.float()]

    def _named(self, given: Tensor) -> str:
        names = [name for name, own in zip(self.classes, given.tolist(), strict=True) if own]
        return _BETWEEN.join(names) or NO_CLASS

    def behaviours(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Margins and loss; NaN where there is no label.

        With z_c the logit of class c, negated where the label lacks the class: mean and minimum of
        z_c, and mean of log(1 + exp(-z_c)).
        """
        logits = outputs.double() * (2 * batch["labels"].double() - 1)
        return {
            "margin": logits.mean(1),
            "loss": torch.nn.functional.softplus(-logits).mean(1),
            "worst margin": logits.amin(1),
        }

    def predictions(self, outputs: Tensor) -> Predictions:
        """The classes of probability above one half, with the probability of just these."""
        logits = outputs.double()
        sure = torch.nn.functional.logsigmoid(logits.abs()).sum(1).exp().tolist()
        answers = [
            self._named(row > 0) if math.isfinite(value) else NO_ANSWER
            for row, value in zip(logits, sure, strict=True)
        ]
        return Predictions(answers, sure)
