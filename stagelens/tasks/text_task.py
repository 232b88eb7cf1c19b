"""What the tasks share whose models read a whole text, or two, and give numbers for it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.contracts import Example, TaskError

from .cutting import pieces
from .tokenizer import Encoded, TextError
from .transformer_task import Batch, TransformerTask, checked_texts, filled, unpadded


class TextTask(TransformerTask):
    """Texts of which a ``transformers`` model gives ``logits``.

    A batch is a dictionary of the model's keyword arguments: ``input_ids``, ``attention_mask``
    and ``labels``, with ``token_type_ids`` where any is not 0.
    """

    @abstractmethod
    def label_tensor(self, labels: Sequence[str | None], rows: Sequence[Encoded]) -> Tensor:
        """What the model takes as ``labels``.

        Args:
            labels: As :meth:`check_label` returns them; None for a text without one.
            rows: The texts as tokens.
        """

    @abstractmethod
    def label_names(self, batch: Batch) -> Sequence[str | None]:
        """The labels of a training batch, as :meth:`check_label` returns them."""

    def check_input(self, value: Mapping[str, Any]) -> str | None:
        """Say so if a text is longer than the model takes, or has words that it cannot tell apart.

        Raises:
            ValueError: The tokenizer fails on it.
        """
        if not self.assets:
            return None
        longest, text = self.longest, self.text_of(value)
        length = len(self.tokens_of(text).ids)
        notes = [f"cut to {longest} tokens"] if longest is not None and length > longest else []
        if unknown := self.tokenizer.unknown_note(text):
            notes.append(unknown)
        return "; ".join(notes) or None

    def text_of(self, value: Mapping[str, Any]) -> str:
        """An example's input as the one text that the model reads."""
        return str(value["text"])

    def tokens_of(self, text: str) -> Encoded:
        """A text as tokens, however many they are.

        Raises:
            ValueError: The tokenizer fails on it.
        """
        return self.tokenizer.encode(text)

    def batch(self, texts: Sequence[str], labels: Sequence[Any] | None = None) -> Batch:
        """Texts as a batch for training or evaluation.

        Args:
            texts: Longer ones are cut at ``max_length`` tokens, and keep what the tokenizer adds
                at their end.
            labels: As :meth:`check_label` takes them, None for a text without one (which gives no
                loss); None for a batch without labels.

        Raises:
            TaskError: There are no texts, or not one label per text.
            ValueError: A label is not one of the task's.
            TextError: The tokenizer fails on a text.
        """
        rows = [
            self.encoded(number, text) for number, text in enumerate(checked_texts("texts", texts))
        ]
        batch = self.framed(rows)
        if labels is None:
            return batch
        if len(labels) != len(texts):
            raise TaskError(f"{len(texts)} texts but {len(labels)} labels; give one label per text")
        return {
            **batch,
            "labels": self.label_tensor([self.check_label(each) for each in labels], rows),
        }

    def framed(self, rows: Sequence[Encoded]) -> Batch:
        """Tokens of texts as a batch without labels, padded on the right."""
        padded = self._padded([row.ids for row in rows])
        # Left out where all are 0, their default: many models do not take the argument.
        if any(any(row.types) for row in rows):
            padded["token_type_ids"] = filled([row.types for row in rows], 0)
        return padded

    def encoded(self, number: int, text: str) -> Encoded:
        """Text ``number`` of a batch as tokens, as many as the model takes.

        Raises:
            TextError: The tokenizer fails on it.
        """
        try:
            encoded = self.tokens_of(text)
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
            return self.batch(
                [self.text_of(e.input) for e in examples], [e.label for e in examples]
            )
        except TextError as error:
            raise error.of(examples) from None

    def examples(self, batch: Batch) -> list[Example] | None:
        """Texts as the tokenizer decodes them; see :class:`~stagelens.contracts.Task`."""
        if not self.assets or "labels" not in batch:
            return None
        names = self.label_names(batch)
        return [
            Example(str(number), {"text": self.tokenizer.decode(ids, special=False)}, name)
            for number, (ids, name) in enumerate(zip(unpadded(batch), names, strict=True))
        ]

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """(B, ...) logits, a few rows at a time."""
        return in_pieces(model, batch)


def in_pieces(model: nn.Module, batch: Batch) -> Tensor:
    """(B, ...) logits of a batch without its labels, in its order, a few rows at a time."""
    # A Trainer's batches hold a count of labels too.
    given = {n: each for n, each in batch.items() if n != "labels" and getattr(each, "ndim", 0) > 1}
    parts, order, width = [], [], given["input_ids"].shape[1]
    for rows, piece in pieces(given):
        logits = model(**piece).logits
        if logits.ndim == 3:  # of every token: pieces differ in how many they have
            logits = nn.functional.pad(logits, (0, 0, 0, width - logits.shape[1]))
        parts.append(logits)
        order.append(rows)
    # Pieces go by length; this restores the order of the batch.
    return torch.cat(parts)[torch.cat(order).argsort()]
