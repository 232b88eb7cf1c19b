"""Token classification: one of C tags for every word of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from stagelens.contracts import Behaviour, Example, Predictions, TaskError, TokenValues
from stagelens.contracts.task_defaults import NO_ANSWER, check_class

from .classification import NO_LABEL, classifier_behaviours
from .named_outputs import NamedOutputs
from .text_task import in_pieces
from .tokenizer import Encoded
from .transformer_task import IGNORED, Batch, unpadded

FIRST = "first"
"""What a batch of examples holds beside the model's arguments: the first token of each word."""


@dataclass(frozen=True)
class Tagged:
    """What a model says about a batch of B texts of T tokens.

    Attributes:
        logits: (B, T, C).
        first: (B, T) whether a token is the first of a word, which gives the word its tag.
    """

    logits: Tensor
    first: Tensor


class TokenClassification(NamedOutputs):
    """Words of texts, tagged by a ``transformers`` model (``AutoModelForTokenClassification``).

    Words are what blanks separate; a text may also be given as the list of its words. A label is
    one tag per word, as a list of names or indices, or as names with blanks between them. The
    first token of a word gives its tag, and the others give no loss. Arguments are those of
    :class:`~stagelens.tasks.named_outputs.NamedOutputs`.

    Example:
        >>> task = TokenClassification.from_model(model, tokenizer)      # doctest: +SKIP
        >>> loss = task.loss(model, task.batch(["Ann sat down"], ["person none none"]))
    """

    name: ClassVar[str] = "token-classification"
    several_labels: ClassVar[bool] = True
    takes_words: ClassVar[bool] = True
    has_token_values: ClassVar[bool] = True
    behaviour_kinds = (
        Behaviour(
            "margin",
            "higher",
            "nats",
            "Log-odds of each word's tag: how strongly the model prefers it to all other tags; the "
            "mean over the words.",
        ),
        Behaviour("loss", "lower", "nats", "Cross-entropy, the mean over the words.", lowest=0.0),
        Behaviour(
            "share of right tags",
            "higher",
            "points",
            "How many of the words get the tag of their label.",
            lowest=0.0,
            highest=1.0,
        ),
    )
    _auto_class = "AutoModelForTokenClassification"
    _problem = None

    def _check_classes(self, model: Mapping[str, Any]) -> None:
        odd = [name for name in self.classes if not name or len(name.split()) != 1]
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2 or odd:
            raise TaskError(
                f"tags must be distinct names without blanks, at least two, but are "
                f"{(odd or self.classes)[:8]}; name each one (id2label, for a model of "
                "transformers)"
            )

    @property
    def labels_are_answers(self) -> bool:
        """No: an answer has some tags right."""
        return False

    def check_label(self, label: Any) -> str | None:
        """Tags with blanks between them.

        Raises:
            ValueError: One is not among the task's.
        """
        if label is None:
            return None
        tags = label.split() if isinstance(label, str) else label
        if not isinstance(tags, Sequence) or not len(tags):
            raise ValueError(f"label {label!r} is not one tag for every word")
        return " ".join(str(check_class(self.classes, tag)) for tag in tags)

    def batch(
        self, texts: Sequence[str | Sequence[str]], labels: Sequence[Any] | None = None
    ) -> Batch:
        """Texts, or lists of their words, as a batch; see :meth:`TextTask.batch`."""
        if not isinstance(texts, str):  # a single text is refused below
            texts = [text if isinstance(text, str) else " ".join(text) for text in texts]
        return super().batch(cast(Sequence[str], texts), labels)

    def tokens_of(self, text: str) -> Encoded:
        """A text as the tokens of its words.

        Raises:
            ValueError: The tokenizer fails on it.
        """
        return self.tokenizer.encode_words(text.split())

    def label_tensor(self, labels: Sequence[str | None], rows: Sequence[Encoded]) -> Tensor:
        """(B, T) indices of tags, at the first token of each word."""
        values = torch.full((len(rows), max(len(row.ids) for row in rows)), IGNORED)
        for number, (label, row) in enumerate(zip(labels, rows, strict=True)):
            if label is None:
                continue
            tags = [self.classes.index(tag) for tag in label.split()]
            # A text that was cut has lost words, and their tags are not needed.
            if max(row.words, default=-1) >= len(tags):
                raise ValueError(
                    f"row {number} of the batch has {max(row.words) + 1} words but {len(tags)} "
                    "tags; give one tag per word, where blanks separate words"
                )
            for place in _first_places(row):
                values[number, place] = tags[row.words[place]]
        return values

    def collate(self, examples: Sequence[Example]) -> Batch:
        """See :meth:`batch`; ``first`` marks what gives a word its tag.

        Raises:
            TaskError: The tokenizer fails on an example, or it has not one tag per word.
        """
        for example in examples:
            words, tags = len(str(example.input["text"]).split()), example.label
            if tags is not None and len(tags.split()) != words:
                raise TaskError(
                    f"example {example.example_id!r} has {words} words but {len(tags.split())} "
                    "tags; give one tag per word, where blanks separate words"
                )
        batch = super().collate(examples)
        first = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        for number, example in enumerate(examples):
            first[number, _first_places(self.encoded(number, self.text_of(example.input)))] = True
        return {**batch, FIRST: first}

    def label_names(self, batch: Batch) -> list[str | None]:
        """Tags with blanks between them."""
        rows = [row[row != IGNORED].tolist() for row in batch["labels"]]
        return [" ".join(self.classes[tag] for tag in row) or None for row in rows]

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """The loss that the model computes of its tags: ``model(**batch).loss``."""
        return super().loss(model, {name: each for name, each in batch.items() if name != FIRST})

    def loss_terms(self, batch: Mapping[str, Any]) -> float:
        """The number of words that have a tag; 0 if the batch says what its sum is divided by."""
        return 0.0 if "num_items_in_batch" in batch else float((batch["labels"] != IGNORED).sum())

    def outputs(self, model: nn.Module, batch: Batch) -> Tagged:
        """The tags of all tokens, a few rows at a time."""
        given = {name: each for name, each in batch.items() if name != FIRST}
        first = batch[FIRST] if FIRST in batch else batch["labels"] != IGNORED
        return Tagged(in_pieces(model, given), first)

    def behaviours(self, outputs: Tagged, batch: Batch) -> dict[str, Tensor]:
        """Means over the words of a text; NaN where it has no label."""
        count = (batch["labels"] != IGNORED).sum(1)
        values = self._of_words(outputs, batch)
        right = (outputs.logits.argmax(2) == batch["labels"]).double()
        own = {"margin": values["margin"], "loss": values["loss"]}
        own["share of right tags"] = right.masked_fill(batch["labels"] == IGNORED, torch.nan)
        return {
            name: torch.where(count > 0, each.nansum(1) / count, torch.nan)
            for name, each in own.items()
        }

    def _of_words(self, outputs: Tagged, batch: Batch) -> dict[str, Tensor]:
        """(B, T) behaviours of a classifier; NaN for what has no tag."""
        labels = batch["labels"].masked_fill(batch["labels"] == IGNORED, NO_LABEL)
        flat = classifier_behaviours(outputs.logits.flatten(0, 1), labels.flatten())
        return {name: each.reshape(labels.shape) for name, each in flat.items()}

    def predictions(self, outputs: Tagged) -> Predictions:
        """The most probable tag of every word, with the probability of all of them."""
        sure, best = outputs.logits.double().log_softmax(2).max(2)
        answers, confidences = [], []
        for tags, values, first in zip(best, sure, outputs.first, strict=True):
            known = bool(values[first].isfinite().all())
            names = [self.classes[tag] for tag in tags[first].tolist()]
            answers.append(" ".join(names) if known else NO_ANSWER)
            confidences.append(float(values[first].sum().exp()))
        return Predictions(answers, confidences)

    def token_values(self, outputs: Tagged, batch: Batch) -> list[TokenValues]:
        """The margin of every word's tag, at the word's first token; NaN elsewhere."""
        margins = self._of_words(outputs, batch)["margin"]
        return [
            TokenValues(self.tokenizer.pieces(ids), values[: len(ids)].detach().cpu().numpy())
            for ids, values in zip(unpadded(batch), margins, strict=True)
        ]


def _first_places(row: Encoded) -> list[int]:
    """Places of the tokens with which words begin."""
    before = [-1, *row.words]
    return [
        place
        for place, (word, last) in enumerate(zip(row.words, before, strict=False))
        if word >= 0 and word != last
    ]
