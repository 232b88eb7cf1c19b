"""Sequence to sequence: how likely an answer is, given the text that an encoder reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from stagelens.contracts import Example, TaskError, TokenValues

from .causal_lm import CausalLM, Scored
from .cutting import pieces
from .tokenizer import Encoded, TextError
from .transformer_task import (
    IGNORED,
    Batch,
    TransformerTask,
    checked_texts,
    filled,
    model_facts,
    unpadded,
)


class Seq2Seq(CausalLM):
    """Prompts and completions by a ``transformers`` model with encoder and decoder.

    ``AutoModelForSeq2SeqLM``, such as T5 or BART: the encoder reads the ``prompt`` (a text to
    translate or to sum up), the decoder gives the ``completion``; an example may have a
    ``rejected`` one too. Both are tokenised with what the tokenizer adds around a text. What is
    longer than the model takes is cut at its end. Arguments and behaviours are those of
    :class:`~stagelens.tasks.causal_lm.CausalLM`.

    Example:
        >>> task = Seq2Seq.from_model(model, tokenizer)      # doctest: +SKIP
        >>> batch = task.batch(prompts=["translate: good day"], completions=["bonjour"])
        >>> loss = task.loss(model, batch)
    """

    name: ClassVar[str] = "seq2seq"
    input_fields: ClassVar[tuple[str, ...]] = ("prompt", "completion", "rejected")
    has_maps: ClassVar[bool] = False
    _auto_class = "AutoModelForSeq2SeqLM"

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, *, max_length: int | None = None, **options: Any
    ) -> Self:
        """The task of a model as it is; see :meth:`CausalLM.from_model`."""
        facts = model_facts(model)
        # A Trainer switches it off for the model, but a decoder has a configuration of its own,
        # and gradients with and without a cache differ in their last bits.
        decoder = model.get_decoder()
        if decoder is not None and hasattr(decoder.config, "use_cache"):
            facts["model"]["use_cache"] = decoder.config.use_cache
        return cls(tokenizer=tokenizer, max_length=max_length, **facts, **options)

    def check_input(self, value: Mapping[str, Any]) -> str | None:
        """Say so if an input is longer than the model takes.

        Raises:
            ValueError: It lacks a prompt or a completion.
        """
        for name in ("prompt", "completion"):
            if not value.get(name):
                raise ValueError(f"needs a {name}")
        if not self.assets or (longest := self.longest) is None:
            return None
        lengths = [len(self.tokenizer.encode(str(text)).ids) for text in value.values() if text]
        return f"cut to {longest} tokens" if max(lengths) > longest else None

    def batch(
        self,
        texts: Sequence[str] | None = None,
        *,
        prompts: Sequence[str] | None = None,
        completions: Sequence[str] | None = None,
    ) -> Batch:
        """Prompts with completions as a batch for training; the loss is over the completions.

        Args:
            texts: None; a text alone has nothing to answer to.
            prompts: What the encoder reads.
            completions: What the model learns to answer, one per prompt.

        Raises:
            TaskError: Not one prompt per completion, or the tokenizer fails on one.
        """
        if texts is not None or prompts is None or completions is None:
            raise TaskError("a batch needs prompts and completions; give prompts= and completions=")
        checked_texts("completions", completions)
        if len(prompts) != len(completions):
            raise TaskError(
                f"{len(prompts)} prompts but {len(completions)} completions; give one prompt per "
                "completion"
            )
        return {**self._read(prompts), "labels": self._answers(completions)}

    def prompt_tokens(self, prompt: str, room: int = 0) -> tuple[list[int], bool]:
        """What the encoder reads, and whether its end was cut; the answer takes no room of it."""
        ids = self._cut(0, prompt).ids
        return ids, len(ids) < len(self.tokenizer.encode(prompt).ids)

    def _read(self, prompts: Sequence[str]) -> Batch:
        return self._padded([self._cut(number, text).ids for number, text in enumerate(prompts)])

    def _answers(self, completions: Sequence[str]) -> Tensor:
        rows = [self._cut(number, text).ids for number, text in enumerate(completions)]
        return filled(rows, IGNORED)

    def _cut(self, number: int, text: str) -> Encoded:
        try:
            encoded = self.tokenizer.encode(text)
        except ValueError as error:
            raise TextError(number, error) from None
        if not encoded.ids:
            return Encoded([self._start_id], [0], [1])
        return encoded if self.longest is None else encoded.cut(self.longest)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as one batch; ``rejected_labels`` are the rejected completions of some of them.

        Raises:
            TaskError: The tokenizer fails on an example.
        """
        given = [example.input for example in examples]
        try:
            batch = self.batch(
                prompts=[str(value["prompt"]) for value in given],
                completions=[str(value["completion"]) for value in given],
            )
        except TextError as error:
            raise error.of(examples) from None
        rows = [number for number, value in enumerate(given) if value.get("rejected")]
        if rows:
            batch["rejected_labels"] = self._answers([given[row]["rejected"] for row in rows])
            batch["rejected_rows"] = torch.tensor(rows)
        return batch

    def documents(self, batch: Batch, by_end: bool = False) -> None:
        """None: what the encoder reads is not packed."""

    def examples(self, batch: Batch, by_end: bool = False) -> list[Example] | None:
        """Prompts and completions as the tokenizer decodes them."""
        if not self.assets or "labels" not in batch:
            return None
        return [
            Example(
                str(number),
                {
                    "prompt": self.tokenizer.decode(ids, special=False),
                    "completion": self.tokenizer.decode(
                        labels[labels != IGNORED].tolist(), special=False
                    ),
                },
            )
            for number, (ids, labels) in enumerate(
                zip(unpadded(batch), batch["labels"], strict=True)
            )
        ]

    def loss_terms(self, batch: Mapping[str, Any]) -> float:
        """The number of tokens predicted; 0 if the batch says what its sum is divided by."""
        return 0.0 if "num_items_in_batch" in batch else float((batch["labels"] != IGNORED).sum())

    def evaluation_order(self, examples: Sequence[Example]) -> list[int]:
        """The longest first: an encoder reads a whole prompt at once, and keeps nothing of it."""
        return TransformerTask.evaluation_order(self, examples)

    def outputs(self, model: nn.Module, batch: Batch) -> Scored:
        """One pass over completions, and one over rejected ones, a few rows at a time."""
        tokens, best = self._scored(model, batch, batch["labels"])
        rejected = torch.full_like(tokens[:, 0], torch.nan)
        if (rows := batch.get("rejected_rows")) is not None:
            own = {name: batch[name][rows] for name in ("input_ids", "attention_mask")}
            values, _ = self._scored(model, own, batch["rejected_labels"])
            rejected = rejected.index_put((rows,), values.nansum(1))
        # What comes before an answer's own words, such as a token of the language, is no answer.
        special = torch.tensor(sorted(self.special_ids), device=tokens.device)
        own_words = (batch["labels"] != IGNORED) & ~torch.isin(batch["labels"], special)
        place = own_words.int().argmax(1)
        every = torch.arange(len(place), device=tokens.device)
        ids, confidences = best[every, place, 0].long(), best[every, place, 1]
        return Scored(tokens, rejected, [self._shown(n) for n in ids.tolist()], confidences)

    def _scored(self, model: nn.Module, batch: Batch, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) log-probabilities of labels; (B, T, 2) most probable tokens, and probabilities."""
        values = torch.full(labels.shape, torch.nan, dtype=torch.float64, device=labels.device)
        best = torch.zeros(*labels.shape, 2, dtype=torch.float64, device=labels.device)
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        lengths = (labels != IGNORED).sum(1)
        for rows, piece in pieces(given):
            width = int(lengths[rows].max())  # padded no further than these rows need
            wanted = labels[rows, :width]
            # With labels the model makes the decoder's inputs of them by itself.
            chances = model(**piece, labels=wanted, use_cache=False).logits.double().log_softmax(2)
            own = chances.gather(2, wanted.clamp(min=0)[:, :, None]).squeeze(2)
            own = torch.where(wanted != IGNORED, own, torch.nan)
            rest = (0, labels.shape[1] - width)
            own = nn.functional.pad(own, rest, value=torch.nan)
            values = values.index_put((rows,), own)
            top = chances.max(2)
            best[rows, :width] = torch.stack([top.indices.double(), top.values.exp()], 2).detach()
        return values, best

    def token_values(self, outputs: Scored, batch: Batch) -> list[TokenValues]:
        """Log-probability of every token of a completion, in nats."""
        found = []
        for labels, values in zip(batch["labels"], outputs.tokens, strict=True):
            own = labels != IGNORED
            tokens = self.tokenizer.pieces(labels[own].tolist())
            found.append(TokenValues(tokens, values[own].detach().cpu().numpy()))
        return found
