"""Masked language models: how likely words are in their places, given all the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from stagelens.contracts import Behaviour, Example, Predictions, TaskError, TokenValues
from stagelens.contracts.task_defaults import NO_ANSWER

from .cutting import pieces
from .transformer_task import IGNORED, Batch, TransformerTask, filled, model_facts, unpadded


@dataclass(frozen=True)
class Filled:
    """What a masked language model says about a batch of B examples, in R rows of T tokens.

    Attributes:
        tokens: (R, T) float64, log-probability of each masked token, in nats; NaN elsewhere, and
            where it is not known what was masked.
        answers: (B,) what the model puts in place of the masks.
        confidences: (B,) float64, the probability of that, each mask by itself.
    """

    tokens: Tensor
    answers: list[str]
    confidences: Tensor


class MaskedLM(TransformerTask):
    """Texts by a ``transformers`` model that fills in masks (``AutoModelForMaskedLM``).

    A text with masks (``The cat [MASK] on the mat``) is read once, and its label is what belongs
    there: as many tokens as there are masks. Of a text without any, every token is masked in turn,
    so it takes as many forward passes as it has tokens, and no label; its log-likelihood is a
    pseudo-log-likelihood (Salazar et al., "Masked Language Model Scoring", 2020).

    Batches for training are those of ``DataCollatorForLanguageModeling``; which tokens it masks is
    recorded with them.

    Args:
        model: Configuration of the model, ``model.config.to_dict()``; it is kept as plain JSON,
            and the model is made from it alone.
        tokenizer: A fast tokenizer; its files become the task's assets.
        assets: Those files, where there is no tokenizer object.
        max_length: Longer ones are cut to this many tokens; None for what model and tokenizer take.
        attention: The model's ``attn_implementation``; None for transformers' default.
        make_model: Builds a module of your own from ``model``; see :class:`ImageClassification`.
    """

    name: ClassVar[str] = "masked-lm"
    has_token_values: ClassVar[bool] = True
    takes_labels: ClassVar[bool] = False
    behaviour_kinds = (
        Behaviour(
            "log-likelihood",
            "higher",
            "nats",
            "Log-probability of what belongs in place of the masks, summed over its tokens; of a "
            "text without masks, of each token given all others.",
            highest=0.0,
        ),
        Behaviour(
            "log-likelihood per token",
            "higher",
            "nats",
            "Mean log-probability of these tokens.",
            highest=0.0,
        ),
        Behaviour(
            "perplexity",
            "lower",
            "",
            "exp of minus the log-likelihood per token: the number of equally likely tokens that "
            "the model in effect chooses among.",
            lowest=1.0,
        ),
    )
    _auto_class = "AutoModelForMaskedLM"

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, *, max_length: int | None = None) -> Self:
        """The task of a model as it is: configuration and attention are read from it.

        Args:
            model: A ``transformers`` model.
            tokenizer: The model's fast tokenizer.
            max_length: Longer texts are cut to this many tokens.

        Raises:
            TaskError: Model and tokenizer do not fit each other, or the task.
        """
        return cls(tokenizer=tokenizer, max_length=max_length, **model_facts(model))

    def check_label(self, label: Any) -> str | None:
        """What belongs in place of the masks, as the tokenizer spells it.

        Raises:
            ValueError: It has no tokens.
        """
        if label is None:
            return None
        ids = self.tokenizer.encode(str(label), special=False).ids
        if not ids:
            raise ValueError(f"label {label!r} has no tokens; leave it out")
        return self.tokenizer.decode(ids).strip()

    def check_input(self, value: Mapping[str, Any]) -> str | None:
        """Say so if a text is longer than the model takes.

        Raises:
            ValueError: The tokenizer fails on it.
        """
        longest = self.longest
        length = len(self.tokenizer.encode(str(value["text"])).ids)
        return f"cut to {longest} tokens" if longest is not None and length > longest else None

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Texts as rows with masks; ``example`` says of which example a row is.

        ``labels`` hold what belongs in place of the masks, where that is known, and ``masked``
        where they are.

        Raises:
            TaskError: The tokenizer fails on an example, or its label has not one token per mask.
        """
        mask = self.filler("mask")
        rows, wanted, masked, number = [], [], [], []
        for place, example in enumerate(examples):
            try:
                found = self._rows(example, mask)
            except ValueError as error:
                raise TaskError(f"example {example.example_id!r} {error}") from None
            for ids, labels, at in found:
                rows.append(ids)
                wanted.append(labels)
                masked.append([int(each in at) for each in range(len(ids))])
                number.append(place)
        return {
            **self._padded(rows),
            "labels": filled(wanted, IGNORED),
            "masked": filled(masked, 0) != 0,
            "example": torch.tensor(number),
        }

    def _rows(self, example: Example, mask: int) -> list[tuple[list[int], list[int], set[int]]]:
        """Ids, labels and places of masks of an example's rows."""
        encoded = self.tokenizer.encode(str(example.input["text"]))
        encoded = encoded if self.longest is None else encoded.cut(self.longest)
        ids = encoded.ids or [self._start_id]
        places = [place for place, token in enumerate(ids) if token == mask]
        unknown = [IGNORED] * len(ids)
        if places:
            labels = unknown.copy()
            if example.label is not None:
                own = self.tokenizer.encode(example.label, special=False).ids
                if len(own) != len(places):
                    raise ValueError(
                        f"has {len(places)} masks but a label of {len(own)} tokens "
                        f"({example.label!r}); give one mask per token of the label"
                    )
                for place, token in zip(places, own, strict=True):
                    labels[place] = token
            return [(ids, labels, set(places))]
        content = [p for p, token in enumerate(ids) if token not in self.special_ids]
        return [
            (
                [*ids[:place], mask, *ids[place + 1 :]],
                [*unknown[:place], ids[place], *unknown[place + 1 :]],
                {place},
            )
            for place in content
        ] or [(ids, unknown, set())]

    def examples(self, batch: Batch) -> list[Example] | None:
        """Texts with the masks of training, as the tokenizer decodes them."""
        if not self.assets or "labels" not in batch:
            return None
        found = []
        for number, ids in enumerate(unpadded(batch)):
            wanted = batch["labels"][number]
            label = self.tokenizer.decode(wanted[wanted != IGNORED].tolist()).strip()
            shown = [token for token in ids if token not in self.special_ids]
            text = self.tokenizer.decode(shown)
            found.append(Example(str(number), {"text": text}, label or None))
        return found

    def loss_terms(self, batch: Mapping[str, Any]) -> float:
        """The number of tokens predicted; 0 if the batch says what its sum is divided by."""
        return 0.0 if "num_items_in_batch" in batch else float((batch["labels"] != IGNORED).sum())

    def outputs(self, model: nn.Module, batch: Batch) -> Filled:
        """What the model puts in place of masks, a few rows at a time."""
        values = torch.full(batch["labels"].shape, torch.nan, dtype=torch.float64)
        values = values.to(batch["labels"].device)
        best, sure = torch.zeros_like(batch["labels"]), torch.zeros_like(values)
        masked, example = _masked(batch), _example(batch)
        names = ("input_ids", "attention_mask", "token_type_ids", "labels")
        given = {name: batch[name] for name in names if name in batch} | {"masked": masked}
        for rows, piece in pieces(given):
            labels = piece.pop("labels")
            row, place = piece.pop("masked").nonzero(as_tuple=True)
            chances = model(**piece).logits[row, place].double().log_softmax(1)
            wanted = labels[row, place]
            own = chances.gather(1, wanted.clamp(min=0)[:, None]).squeeze(1)
            values[rows[row], place] = torch.where(wanted != IGNORED, own, torch.nan)
            sure[rows[row], place], best[rows[row], place] = chances.max(1)
        answers, confidences = [], []
        for number in range(_count(batch)):
            own = masked & (example == number)[:, None]
            chance = float(sure[own].detach().sum().exp())
            said = self.tokenizer.decode(best[own].tolist()).strip()
            answers.append(said if math.isfinite(chance) else NO_ANSWER)
            confidences.append(chance)
        return Filled(values, answers, torch.tensor(confidences, dtype=torch.float64))

    def behaviours(self, outputs: Filled, batch: Batch) -> dict[str, Tensor]:
        """Log-likelihood (sum, and per token) and perplexity; NaN where there is none."""
        known = ~outputs.tokens.isnan()
        nothing = outputs.tokens.new_zeros(_count(batch))
        rows = _example(batch)
        count = nothing.index_add(0, rows, known.sum(1).double())
        total = nothing.index_add(0, rows, outputs.tokens.nansum(1))
        # What is not known of a mask is not known of the text.
        lacking = nothing.index_add(0, rows, (_masked(batch) & ~known).sum(1).double())
        total = torch.where((count > 0) & (lacking == 0), total, torch.nan)
        mean = total / count
        return {
            "log-likelihood": total,
            "log-likelihood per token": mean,
            "perplexity": (-mean).exp(),
        }

    def predictions(self, outputs: Filled) -> Predictions:
        """What the model puts in place of the masks, or of each token in turn."""
        return Predictions(outputs.answers, outputs.confidences.tolist())

    def token_values(self, outputs: Filled, batch: Batch) -> list[TokenValues]:
        """Log-probability of every token that was masked, in nats; NaN for others."""
        found = []
        restored = torch.where(batch["labels"] != IGNORED, batch["labels"], batch["input_ids"])
        lengths = batch["attention_mask"].sum(1).tolist()
        for number in range(_count(batch)):
            rows = (_example(batch) == number).nonzero().flatten().tolist()
            length, ids = lengths[rows[0]], batch["input_ids"][rows[0]].clone()
            values = torch.full((length,), torch.nan, dtype=torch.float64)
            for row in rows:
                own = _masked(batch)[row]
                ids[own] = restored[row, own]
                values[own[:length]] = outputs.tokens[row, :length][own[:length]].detach().cpu()
            found.append(TokenValues(self.tokenizer.pieces(ids[:length].tolist()), values.numpy()))
        return found


def _count(batch: Batch) -> int:
    """B; every example has a row."""
    return int(_example(batch).max()) + 1


def _masked(batch: Batch) -> Tensor:
    """(R, T) where masks are; of a batch for training, what it is trained to fill in."""
    return batch["masked"] if "masked" in batch else batch["labels"] != IGNORED


def _example(batch: Batch) -> Tensor:
    """(R,) of which example a row is; one each in a batch for training."""
    rows = batch["labels"]
    return batch["example"] if "example" in batch else torch.arange(len(rows), device=rows.device)
