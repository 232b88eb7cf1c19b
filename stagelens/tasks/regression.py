"""Regression on texts: a text in, a number out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from stagelens.contracts import Behaviour, Predictions, TaskError
from stagelens.contracts.task_defaults import answers_of, number_text

from .named_outputs import check_padding
from .text_task import TextTask
from .tokenizer import Encoded
from .transformer_task import Batch, model_facts, plain_config

SCORE = "score"


class OneNumber(TextTask):
    """Texts of which a ``transformers`` model gives one number (``num_labels=1``).

    Args:
        model: Configuration of the model, ``model.config.to_dict()``; it is kept as plain JSON,
            and the model is made from it alone.
        tokenizer: A fast tokenizer; its files become the task's assets.
        assets: Those files, where there is no tokenizer object.
        max_length: Longer texts are cut to so many tokens; None for what model and tokenizer take.
        attention: The model's ``attn_implementation``; None for transformers' default.
        make_model: Builds a module of your own from ``model``; see :class:`ImageClassification`.
    """

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(
        self,
        model: Mapping[str, Any],
        tokenizer: Any = None,
        assets: Mapping[str, bytes] | None = None,
        max_length: int | None = None,
        attention: str | None = None,
        make_model: Callable[[Mapping[str, Any]], nn.Module] | None = None,
    ) -> None:
        own = plain_config(model)
        check_padding(own)
        count = len(own.get("id2label") or range(own.get("num_labels", 1)))
        if count != 1:
            raise TaskError(
                f"the model has {count} outputs, and {self.name} needs a single one; make it with "
                "num_labels=1, or attribute it with the task text-classification"
            )
        own.pop("num_labels", None)
        # Always set, because a model sets its own when it first computes a loss: the configuration
        # would differ before and after training. A single output always means regression.
        own |= {
            "problem_type": "regression",
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
        }
        super().__init__(own, tokenizer, assets, max_length, attention, make_model)

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, *, max_length: int | None = None) -> Self:
        """The task of a model as it is: configuration and attention are read from it.

        Args:
            model: A ``transformers`` model with one output.
            tokenizer: The model's fast tokenizer.
            max_length: Longer texts are cut to this many tokens.

        Raises:
            TaskError: Model and tokenizer do not fit each other, or the task.
        """
        return cls(tokenizer=tokenizer, max_length=max_length, **model_facts(model))

    def label_tensor(self, labels: Sequence[str | None], rows: Sequence[Encoded]) -> Tensor:
        """(B,) numbers; NaN where there is none."""
        return torch.tensor([math.nan if each is None else float(each) for each in labels])

    def label_names(self, batch: Batch) -> list[str | None]:
        """The numbers as text; None for what is not one number per text."""
        labels = batch["labels"].flatten()
        if len(labels) != len(batch["input_ids"]):
            return [None] * len(batch["input_ids"])
        return [number_text(value) if math.isfinite(value) else None for value in labels.tolist()]


class Regression(OneNumber):
    """A number for each text, as ``AutoModelForSequenceClassification`` with one output gives it.

    Labels are numbers. Answers are neither right nor wrong, only nearer or farther. Arguments are
    those of :class:`OneNumber`.

    Example:
        >>> task = Regression.from_model(model, tokenizer)      # doctest: +SKIP
        >>> loss = task.loss(model, task.batch(["how kind", "you fool"], [0.9, 0.1]))
    """

    name: ClassVar[str] = "regression"
    behaviour_kinds = (
        Behaviour(
            "squared error",
            "lower",
            "",
            "Square of the difference between the model's number and the label.",
            lowest=0.0,
        ),
        Behaviour(
            "absolute error",
            "lower",
            "",
            "Difference between the model's number and the label, without its sign.",
            lowest=0.0,
        ),
        Behaviour(
            SCORE,
            "higher",
            "",
            "The number that the model gives. Credit means that it is higher, whether or not that "
            "is better.",
        ),
    )

    @property
    def labels_are_answers(self) -> bool:
        """No: a number is near the label or far from it."""
        return False

    def behaviours(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Squared and absolute error, which take a label, and the score."""
        score = outputs.flatten().double()
        error = score - batch["labels"].flatten().double()
        return {"squared error": error.square(), "absolute error": error.abs(), SCORE: score}

    def predictions(self, outputs: Tensor) -> Predictions:
        """The number of each text."""
        return answers_of(outputs, ())
