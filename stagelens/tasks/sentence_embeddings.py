"""Sentence embeddings: how alike two texts are to a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from stagelens.contracts import Behaviour, Example, Predictions, TaskError
from stagelens.contracts.task_defaults import answers_of, check_number

from .cutting import pieces
from .tokenizer import Encoded, TextError
from .transformer_task import Batch, TransformerTask, checked_texts, model_facts

Pooling = Literal["mean", "first", "last"]
OTHER, REJECTED = "other_", "rejected_"
"""Prefixes of what a batch holds about the second and the third texts."""


class SentenceEmbeddings(TransformerTask):
    """Pairs of texts, compared by the cosine of their embeddings (``AutoModel``).

    An example's input is a ``text`` and an ``other`` one, and maybe a ``rejected`` one that should
    be less alike. A label is a number, how alike the two are. An embedding is the mean of the
    model's last hidden states, or that of the first or the last token.

    The loss of a batch with ``labels`` is the mean squared error of the cosines; of one without,
    the cross-entropy with which each text finds its own other one among those of the batch and the
    rejected ones, by ``scale`` times the cosines ("in-batch negatives"; Henderson et al., 2017).

    Args:
        model: Configuration of the model, ``model.config.to_dict()``; it is kept as plain JSON,
            and the model is made from it alone.
        tokenizer: A fast tokenizer; its files become the task's assets.
        assets: Those files, where there is no tokenizer object.
        max_length: Longer texts are cut to so many tokens; None for what model and tokenizer take.
        attention: The model's ``attn_implementation``; None for transformers' default.
        make_model: Builds a module of your own from ``model``; see :class:`ImageClassification`.
        pooling: Which hidden states make up an embedding: ``mean``, ``first`` or ``last``.
        scale: Of the cosines in the loss of batches without labels.
    """

    name: ClassVar[str] = "sentence-embeddings"
    input_fields: ClassVar[tuple[str, ...]] = ("text", "other", "rejected")
    has_maps: ClassVar[bool] = False
    behaviour_kinds = (
        Behaviour(
            "similarity",
            "higher",
            "",
            "Cosine of the embeddings of the two texts. Credit means that they are more alike, "
            "whether or not they should be.",
            lowest=-1.0,
            highest=1.0,
        ),
        Behaviour(
            "squared error",
            "lower",
            "",
            "Square of the difference between the similarity and the label.",
            lowest=0.0,
        ),
        Behaviour(
            "preference",
            "higher",
            "",
            "Similarity of the other text minus that of the rejected one.",
            lowest=-2.0,
            highest=2.0,
        ),
    )
    _auto_class = "AutoModel"

    def __init__(
        self,
        model: Mapping[str, Any],
        tokenizer: Any = None,
        assets: Mapping[str, bytes] | None = None,
        max_length: int | None = None,
        attention: str | None = None,
        make_model: Callable[[Mapping[str, Any]], nn.Module] | None = None,
        pooling: Pooling = "mean",
        scale: float = 20.0,
    ) -> None:
        if pooling not in get_args(Pooling):
            raise TaskError(f"pooling={pooling!r}; give one of {', '.join(get_args(Pooling))}")
        self.pooling, self.scale = pooling, float(scale)
        super().__init__(model, tokenizer, assets, max_length, attention, make_model)

    @classmethod
    def from_model(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        pooling: Pooling = "mean",
        scale: float = 20.0,
    ) -> Self:
        """The task of a model as it is: configuration and attention are read from it.

        Args:
            model: A ``transformers`` model that gives hidden states.
            tokenizer: The model's fast tokenizer.
            max_length: Longer texts are cut to this many tokens.
            pooling: See the class.
            scale: See the class.

        Raises:
            TaskError: Model and tokenizer do not fit each other, or the task.
        """
        return cls(
            tokenizer=tokenizer,
            max_length=max_length,
            pooling=pooling,
            scale=scale,
            **model_facts(model),
        )

    @property
    def config(self) -> dict[str, Any]:
        """See :class:`~stagelens.contracts.Task`."""
        return {**super().config, "pooling": self.pooling, "scale": self.scale}

    @property
    def labels_are_answers(self) -> bool:
        """No: a similarity is near the label or far from it."""
        return False

    def check_input(self, value: Mapping[str, Any]) -> str | None:
        """Say so if a text is longer than the model takes.

        Raises:
            ValueError: It lacks one of the two texts.
        """
        for name in ("text", "other"):
            if value.get(name) is None:
                raise ValueError(f"needs a text that is called {name}")
        if not self.assets or (longest := self.longest) is None:
            return None
        lengths = [len(self.tokenizer.encode(str(each)).ids) for each in value.values() if each]
        return f"cut to {longest} tokens" if max(lengths, default=0) > longest else None

    def batch(
        self,
        texts: Sequence[str],
        others: Sequence[str],
        labels: Sequence[float] | None = None,
        rejected: Sequence[str] | None = None,
    ) -> Batch:
        """Pairs as a batch for training.

        Args:
            texts: B texts.
            others: One for each.
            labels: How alike each two are; None for pairs that belong together.
            rejected: B texts that do not belong to them, for a batch without labels.

        Raises:
            TaskError: There are none, not as many of each, or the tokenizer fails on one.
        """
        checked_texts("texts", texts)
        given = {"": texts, OTHER: others, **({} if rejected is None else {REJECTED: rejected})}
        counts = {len(each) for each in (*given.values(), texts if labels is None else labels)}
        if len(counts) > 1:
            raise TaskError(f"{len(texts)} texts, but not as many of the rest; give one for each")
        batch = {
            prefix + name: tensor
            for prefix, own in given.items()
            for name, tensor in self._framed(own).items()
        }
        return batch if labels is None else {**batch, "labels": torch.tensor(labels).float()}

    def _framed(self, texts: Sequence[str]) -> Batch:
        rows = []
        for number, text in enumerate(texts):
            try:
                encoded = self.tokenizer.encode(text)
            except ValueError as error:
                raise TextError(number, error) from None
            encoded = encoded if encoded.ids else Encoded([self._start_id], [0], [1])
            rows.append((encoded if self.longest is None else encoded.cut(self.longest)).ids)
        return self._padded(rows)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as one batch; ``rejected_...`` are the rejected texts of some of them.

        Raises:
            TaskError: The tokenizer fails on an example.
        """
        given = [example.input for example in examples]
        labels = [math.nan if e.label is None else float(e.label) for e in examples]
        rows = [number for number, value in enumerate(given) if value.get("rejected")]
        try:
            batch = self.batch(
                [str(value["text"]) for value in given],
                [str(value["other"]) for value in given],
                labels,
            )
            if rows:
                third = self._framed([str(given[row]["rejected"]) for row in rows])
                batch |= {REJECTED + name: tensor for name, tensor in third.items()}
                batch["rejected_rows"] = torch.tensor(rows)
        except TextError as error:
            raise error.of(examples) from None
        return batch

    def examples(self, batch: Batch) -> list[Example] | None:
        """Pairs as the tokenizer decodes them."""
        if not self.assets or f"{OTHER}input_ids" not in batch:
            return None
        count = len(batch["input_ids"])
        labels = batch.get("labels", torch.full((count,), torch.nan)).tolist()
        found = []
        for row in range(count):
            content = {
                name: self.tokenizer.decode(
                    batch[f"{prefix}input_ids"][row][
                        batch[f"{prefix}attention_mask"][row] != 0
                    ].tolist(),
                    special=False,
                )
                for name, prefix in (("text", ""), ("other", OTHER))
            }
            label = labels[row]
            found.append(
                Example(str(row), content, check_number(label) if math.isfinite(label) else None)
            )
        return found

    def coupling(self, batch: Batch) -> str | None:
        """Without labels, each text is compared with those of all other pairs."""
        if "labels" in batch:
            return None
        return (
            "without labels, the loss compares each text with those of all other pairs of the "
            "batch (in-batch negatives), so that no pair has a part of its own"
        )

    def embed(self, model: nn.Module, batch: Batch, prefix: str = "") -> Tensor:
        """(B, D) embeddings of length 1 of the texts whose names in a batch have this prefix."""
        mask = batch[f"{prefix}attention_mask"]
        hidden = model(input_ids=batch[f"{prefix}input_ids"], attention_mask=mask)
        return nn.functional.normalize(self._pooled(hidden.last_hidden_state, mask), dim=1)

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "first":
            return states[:, 0]
        if self.pooling == "last":
            last = mask.sum(1) - 1
            return states[torch.arange(len(states), device=states.device), last]
        weights = mask.to(states.dtype)[:, :, None]
        return (states * weights).sum(1) / weights.sum(1)

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Mean squared error of the cosines, or the cross-entropy of finding the other text."""
        own = dict(batch)
        text, other = self.embed(model, own), self.embed(model, own, OTHER)
        if "labels" in own:
            return (((text * other).sum(1) - own["labels"]) ** 2).mean()
        among = other
        if f"{REJECTED}input_ids" in own:
            among = torch.cat([other, self.embed(model, own, REJECTED)])
        return nn.functional.cross_entropy(
            self.scale * text @ among.T, torch.arange(len(text), device=text.device)
        )

    def outputs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B,) float64 cosines of the two texts, and of the text and the rejected one, or NaN."""
        text, other = (self._embedded(model, batch, prefix) for prefix in ("", OTHER))
        rejected = torch.full_like(text[:, 0], torch.nan)
        if (rows := batch.get("rejected_rows")) is not None:
            third = self._embedded(model, batch, REJECTED)
            rejected = rejected.index_put((rows,), (text[rows] * third).sum(1))
        return (text * other).sum(1), rejected

    def _embedded(self, model: nn.Module, batch: Batch, prefix: str) -> Tensor:
        """:meth:`embed` a few rows at a time, in float64."""
        given = {name: batch[prefix + name] for name in ("input_ids", "attention_mask")}
        parts, order = [], []
        for rows, piece in pieces(given):
            parts.append(self.embed(model, piece).double())
            order.append(rows)
        return torch.cat(parts)[torch.cat(order).argsort()]

    def behaviours(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Similarity; its squared error takes a label, and preference a rejected text."""
        similarity, rejected = outputs
        error = similarity - batch["labels"].double()
        return {
            "similarity": similarity,
            "squared error": error.square(),
            "preference": similarity - rejected,
        }

    def predictions(self, outputs: tuple[Tensor, Tensor]) -> Predictions:
        """The similarity of each pair."""
        return answers_of(outputs[0], ())
