"""Text classification: a text in, one of C classes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stagelens.contracts import Example, Predictions, TaskError

from .classification import (
    CLASSIFIER_BEHAVIOURS,
    NO_LABEL,
    check_class,
    class_names,
    classifier_behaviours,
    classifier_predictions,
)
from .tokenizer import Encoded, TextError
from .transformer_task import (
    IGNORED,
    Batch,
    TransformerTask,
    checked_texts,
    filled,
    model_facts,
    pieces,
    plain_config,
    unpadded,
)


class TextClassification(TransformerTask):
    """Texts, classified by a ``transformers`` model (``AutoModelForSequenceClassification``).

    A batch is a dictionary of the model's keyword arguments: ``input_ids``, ``attention_mask``
    and ``labels``, with ``token_type_ids`` where any is not 0.

    Args:
        classes: Class names, in the order of the model's outputs.
        model: Configuration of the model, ``model.config.to_dict()``; it is kept as plain JSON,
            and the model is made from it alone.
        tokenizer: A fast tokenizer; its files become the task's assets.
        assets: Those files, where there is no tokenizer object.
        max_length: Longer texts are cut to so many tokens; None for what model and tokenizer take.
        attention: The model's ``attn_implementation``; None for transformers' default.
        make_model: Builds a module of your own from ``model``; see :class:`ImageClassification`.

    Example:
        >>> task = TextClassification.from_model(model, tokenizer)      # doctest: +SKIP
        >>> batch = task.batch(["how kind", "you fool"], ["harmless", "toxic"])
        >>> loss = task.loss(model, batch)
    """

    name: ClassVar[str] = "text-classification"
    behaviour_kinds = CLASSIFIER_BEHAVIOURS
    _auto_class = "AutoModelForSequenceClassification"

    def __init__(
        self,
        classes: Sequence[str],
        model: Mapping[str, Any],
        tokenizer: Any = None,
        assets: Mapping[str, bytes] | None = None,
        max_length: int | None = None,
        attention: str | None = None,
        make_model: Callable[[Mapping[str, Any]], nn.Module] | None = None,
    ) -> None:
        self.classes = [str(name) for name in classes]
        outputs = model.get("id2label") or range(model.get("num_labels", 1))
        if len(self.classes) == len(outputs) == 1:
            raise TaskError(
                "the model has one output (num_labels=1), so it gives a score instead of a class, "
                "as regression and reward models do; attribute it with a task of your own (task=, "
                "or --task MODULE:CLASS)"
            )
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise TaskError(
                f"classes must be distinct names, at least two, but are {self.classes[:8]}; name "
                "each one (id2label, for a model of transformers)"
            )
        super().__init__(
            self._classifying(plain_config(model)),
            tokenizer,
            assets,
            max_length,
            attention,
            make_model,
        )

    def _classifying(self, model: dict[str, Any]) -> dict[str, Any]:
        """The configuration with the task's classes, one for each of its outputs."""
        kind = model.get("problem_type")
        if kind not in (None, "single_label_classification"):
            raise TaskError(
                f"the model's problem_type is {kind!r}, but text-classification gives each text "
                'one class; set model.config.problem_type = "single_label_classification"'
            )
        # Models such as GPT-2 classify a text at its last token that is not padding.
        if "pad_token_id" in model and model["pad_token_id"] is None:
            raise TaskError(
                "the model has no padding token, so it cannot tell where a text in a batch ends; "
                "set model.config.pad_token_id (for GPT-2, to the tokenizer's eos_token_id)"
            )
        known = model.get("id2label")
        count = len(known) if known else model.pop("num_labels", len(self.classes))
        if count != len(self.classes):
            raise TaskError(
                f"the model has {count} outputs (id2label), but there are {len(self.classes)} "
                "classes; give one class name per output, in their order"
            )
        if known:
            _check_names(known, self.classes)
        # Always set, because a model sets its own problem_type when it first computes a loss: the
        # configuration would differ before and after training.
        return {
            **model,
            "problem_type": "single_label_classification",
            "id2label": {str(number): name for number, name in enumerate(self.classes)},
            "label2id": {name: number for number, name in enumerate(self.classes)},
        }

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, *, max_length: int | None = None
    ) -> TextClassification:
        """The task of a model as it is: classes, configuration and attention are read from it.

        Args:
            model: A ``transformers`` model; its classes are ``model.config.id2label``.
            tokenizer: The model's fast tokenizer.
            max_length: Longer texts are cut to this many tokens.

        Raises:
            TaskError: Model and tokenizer do not fit each other, or the task.
        """
        labels = model.config.id2label
        return cls(
            # In the order of the model's outputs.
            [labels[number] for number in sorted(labels)],
            tokenizer=tokenizer,
            max_length=max_length,
            **model_facts(model),
        )

    @property
    def config(self) -> dict[str, Any]:
        """See :class:`~stagelens.contracts.Task`."""
        return {"classes": self.classes, **super().config}

    def check_label(self, label: Any) -> str | None:
        """The name of a class that is given by its name, or by its index as a number or as text.

        Raises:
            ValueError: It is neither.
        """
        return check_class(self.classes, label)

    def check_input(self, value: Mapping[str, Any]) -> str | None:
        """Say so if a text is longer than the model takes.

        Raises:
            ValueError: The tokenizer fails on it.
        """
        if not self.assets:
            return None
        longest = self.longest
        length = len(self.tokenizer.encode(str(value["text"])).ids)
        return f"cut to {longest} tokens" if longest is not None and length > longest else None

    def batch(self, texts: Sequence[str], labels: Sequence[Any] | None = None) -> Batch:
        """Texts as a batch for training or evaluation.

        Args:
            texts: Longer ones are cut at ``max_length`` tokens, and keep what the tokenizer adds
                at their end.
            labels: Class names or indices, None for a text without one (which gives no loss);
                None for a batch without labels.

        Raises:
            TaskError: There are no texts, or not one label per text.
            ValueError: A label is not a class.
            TextError: The tokenizer fails on a text.
        """
        rows = [
            self._encoded(number, text) for number, text in enumerate(checked_texts("texts", texts))
        ]
        padded = self._padded([row.ids for row in rows])
        # Left out where all are 0, their default: many models do not take the argument.
        if any(any(row.types) for row in rows):
            padded["token_type_ids"] = filled([row.types for row in rows], 0)
        if labels is None:
            return padded
        if len(labels) != len(texts):
            raise TaskError(f"{len(texts)} texts but {len(labels)} labels; give one label per text")
        names = [self.check_label(label) for label in labels]
        numbers = [IGNORED if name is None else self.classes.index(name) for name in names]
        return {**padded, "labels": torch.tensor(numbers)}

    def _encoded(self, number: int, text: str) -> Encoded:
        try:
            encoded = self.tokenizer.encode(text)
        except ValueError as error:
            raise TextError(number, error) from None
        if not encoded.ids:
            # A forward pass needs at least one token.
            return Encoded([self._start_id], [0], [1])
        return encoded if self.longest is None else encoded.cut(self.longest)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """See :meth:`batch`; examples without a label give no loss.

        Raises:
            TaskError: The tokenizer fails on an example.
        """
        try:
            return self.batch([e.input["text"] for e in examples], [e.label for e in examples])
        except TextError as error:
            raise error.of(examples) from None

    def examples(self, batch: Batch) -> list[Example] | None:
        """Texts as the tokenizer decodes them; see :class:`~stagelens.contracts.Task`."""
        if not self.assets or "labels" not in batch:
            return None
        names = class_names(self.classes, batch["labels"])
        return [
            Example(str(number), {"text": self.tokenizer.decode(ids, special=False)}, name)
            for number, (ids, name) in enumerate(zip(unpadded(batch), names, strict=True))
        ]

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, C) logits, a few rows at a time."""
        given = {name: tensor for name, tensor in batch.items() if name != "labels"}
        parts, order = [], []
        for rows, piece in pieces(given):
            parts.append(model(**piece).logits)
            order.append(rows)
        # Pieces go by length; this restores the order of the batch.
        return torch.cat(parts)[torch.cat(order).argsort()]

    def behaviours(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Margin, loss and probability of the label; see :func:`classifier_behaviours`."""
        labels = batch["labels"]
        return classifier_behaviours(outputs, labels.masked_fill(labels == IGNORED, NO_LABEL))

    def predictions(self, outputs: Tensor) -> Predictions:
        """The most probable class of each text."""
        return classifier_predictions(outputs, self.classes)


def _check_names(id2label: Mapping[Any, str], classes: Sequence[str]) -> None:
    """Refuse names in another order than that of a model's own outputs.

    Raises:
        TaskError: The configuration's numbers are not those of outputs, or its names are others.
    """
    own = {int(number): str(name) for number, name in id2label.items()}
    if sorted(own) != list(range(len(classes))):
        raise TaskError(
            f"the model's id2label has the numbers {', '.join(map(str, sorted(own)[:8]))}, but its "
            f"{len(classes)} outputs are 0 to {len(classes) - 1}; correct model.config.id2label"
        )
    moved = next((n for n, name in own.items() if name in classes and classes[n] != name), None)
    if moved is not None:
        raise TaskError(
            f"the model names its output {moved} {own[moved]!r} (id2label), but classes[{moved}] "
            f"is {classes[moved]!r}; give the classes in the order of the model's outputs"
        )
