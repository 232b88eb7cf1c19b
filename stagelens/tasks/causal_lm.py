"""Causal language models: how likely a completion is after a prompt, or a text by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from stagelens.contracts import Behaviour, Example, Predictions, TaskError, TokenValues

from .likelihoods import PADDING, below, likelihoods
from .packed_documents import documents_in, shown
from .shared_prefixes import LEAST_SHARE, alike_to
from .tokenizer import TextError
from .transformer_task import (
    IGNORED,
    Batch,
    TransformerTask,
    characters,
    checked_texts,
    model_facts,
)


@dataclass(frozen=True)
class Scored:
    """What a language model says about a batch of B examples.

    Attributes:
        tokens: (B, T) float64, log-probability of each token given those before it, in nats; NaN
            for tokens of the prompt, for padding, and for a first token.
        rejected: (B,) float64, log-likelihood of the rejected completion; NaN where there is none.
        answers: (B,) the most probable next token after the prompt, or after the text.
        confidences: (B,) float64, its probability.
    """

    tokens: Tensor
    rejected: Tensor
    answers: list[str]
    confidences: Tensor


@dataclass(frozen=True)
class _Row:
    """One sequence of tokens, of which the first ``prompt`` are given and not scored."""

    ids: list[int]
    prompt: int
    cut: bool = False


class CausalLM(TransformerTask):
    """Texts, or prompts and completions, by a ``transformers`` model (``AutoModelForCausalLM``).

    An example's input has a ``completion`` with or without a ``prompt``, and with or without a
    ``rejected`` completion of the same prompt; or it has a ``text``. Prompt and completion are
    tokenised separately and then joined, so where one ends and the other begins does not depend
    on how they would merge: a completion after a space begins with that space. What the tokenizer
    adds before a text (a beginning-of-text token) comes before the prompt; what it adds after a
    text follows a ``text`` only. An empty prompt is a beginning-of-text token.

    Whatever is longer than the model takes is cut: a text at its end, a prompt at its beginning.

    Args:
        model: Configuration of the model, ``model.config.to_dict()``; it is kept as plain JSON,
            and the model is made from it alone.
        tokenizer: A fast tokenizer; its files become the task's assets.
        assets: Those files, where there is no tokenizer object.
        max_length: Longer ones are cut to this many tokens; None for what model and tokenizer take.
        attention: The model's ``attn_implementation``; None for transformers' default.
        make_model: Builds a module of your own from ``model``; see :class:`ImageClassification`.
        ends_documents: Whether the end-of-text token ends a training document within a row that
            says nothing else of where its documents begin. It is not guessed, because in many chats
            every turn ends with that token.

    Example:
        >>> task = CausalLM.from_model(model, tokenizer)      # doctest: +SKIP
        >>> batch = task.batch(prompts=["Two and two make"], completions=[" four"])
        >>> loss = task.loss(model, batch)
    """

    name: ClassVar[str] = "causal-lm"
    input_fields: ClassVar[tuple[str, ...]] = ("text", "prompt", "completion", "rejected")
    takes_labels: ClassVar[bool] = False
    has_token_values: ClassVar[bool] = True
    behaviour_kinds = (
        Behaviour(
            "log-likelihood",
            "higher",
            "nats",
            "Log-probability of the completion after its prompt, or of the text: summed over its "
            "tokens.",
            highest=0.0,
        ),
        Behaviour(
            "log-likelihood per token",
            "higher",
            "nats",
            "Mean log-probability of the tokens of the completion, or of the text.",
            highest=0.0,
        ),
        Behaviour(
            "preference",
            "higher",
            "nats",
            "Log-likelihood of the completion minus that of the rejected one, after one prompt.",
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
    _auto_class = "AutoModelForCausalLM"

    def __init__(self, *given: Any, ends_documents: bool = False, **options: Any) -> None:
        super().__init__(*given, **options)
        self.ends_documents = ends_documents

    @property
    def config(self) -> dict[str, Any]:
        """See :class:`~stagelens.contracts.Task`."""
        own = super().config
        return {**own, "ends_documents": True} if self.ends_documents else own

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, *, max_length: int | None = None, **options: Any
    ) -> Self:
        """The task of a model as it is: configuration and attention are read from it.

        Args:
            model: A ``transformers`` model.
            tokenizer: The model's fast tokenizer.
            max_length: Longer texts are cut to this many tokens.
            options: Further arguments of the task.

        Raises:
            TaskError: Model and tokenizer do not fit each other, or the task.
        """
        made = cls(tokenizer=tokenizer, max_length=max_length, **model_facts(model), **options)
        made.keep_generation(model)
        return made

    def check_input(self, value: Mapping[str, Any]) -> str | None:
        """Say so if an input is longer than the model takes.

        Raises:
            ValueError: It has neither a text nor a completion, or both.
        """
        if not self.assets:
            return None
        main, rejected = self._rows(value)
        cut = main.cut or (rejected is not None and rejected.cut)
        return f"cut to {self.longest} tokens" if cut else None

    def batch(
        self,
        texts: Sequence[str] | None = None,
        *,
        prompts: Sequence[str] | None = None,
        completions: Sequence[str] | None = None,
    ) -> Batch:
        """Texts, or prompts with completions, as a batch for training.

        The loss is over the tokens of texts and completions, not over those of prompts.

        Args:
            texts: Whole texts; either these or completions.
            prompts: One per completion; None for no prompts.
            completions: What the model learns to answer.

        Raises:
            TaskError: Neither or both are given, not one prompt per completion, a completion
                without a token, or one on which the tokenizer fails.
        """
        if (texts is None) == (completions is None):
            raise TaskError("a batch needs either texts or completions, not both; give one of them")
        if completions is None:
            return self._labelled(_each(self._text, zip(checked_texts("texts", texts or ()))))
        checked_texts("completions", completions)
        given = [""] * len(completions) if prompts is None else prompts
        if len(given) != len(completions):
            raise TaskError(
                f"{len(given)} prompts but {len(completions)} completions; give one prompt per "
                "completion, or none at all"
            )
        return self._labelled(_each(self._completed, zip(given, completions, strict=True)))

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as one batch; ``rejected_...`` are the rejected completions of some of them.

        Raises:
            TaskError: An example has neither a text nor a completion, or both.
        """
        rows = []
        for example in examples:
            try:
                rows.append(self._rows(example.input))
            except ValueError as error:
                raise TaskError(f"example {example.example_id!r} {error}") from None
        batch = self._labelled([main for main, _ in rows])
        other = {number: rejected for number, (_, rejected) in enumerate(rows) if rejected}
        if other:
            labelled = self._labelled(list(other.values()))
            batch |= {f"rejected_{name}": tensor for name, tensor in labelled.items()}
            batch["rejected_rows"] = torch.tensor(list(other))
        return batch

    def examples(self, batch: Batch, by_end: bool = False) -> list[Example] | None:
        """Texts, or prompts and completions, as the tokenizer decodes them; see ``documents``."""
        if not self.assets or "labels" not in batch:
            return None
        decode = partial(self.tokenizer.decode, special=False)
        return shown(batch, self.documents(batch, by_end), decode)

    def documents(self, batch: Batch, by_end: bool = False) -> Tensor | None:
        """Those of rows that several are packed into; see :func:`.packed_documents.documents_in`.

        Args:
            batch: As ``loss`` takes it.
            by_end: As if the task had ``ends_documents``.
        """
        if not (by_end or self.ends_documents):
            return documents_in(batch)
        own = self.tokenizer.special_id("eos_token") if self.assets else None
        named = self.model.get("eos_token_id") if own is None else own
        return documents_in(batch, [named] if isinstance(named, int) else named or ())

    def _rows(self, value: Mapping[str, Any]) -> tuple[_Row, _Row | None]:
        """An example's input as the row that is scored, and that of the rejected completion."""
        text, prompt, completion, rejected = (value.get(name) for name in self.input_fields)
        if (text is None) == (not completion):
            raise ValueError("needs a text or a completion, not both")
        if text is not None:
            return self._text(text), None
        other = self._completed(prompt or "", rejected) if rejected else None
        return self._completed(prompt or "", str(completion)), other

    def _text(self, text: str) -> _Row:
        encoded = self.tokenizer.encode(text)
        if not encoded.ids:
            # A forward pass needs at least one token.
            return _Row([self._start_id], 0)
        kept = encoded if self.longest is None else encoded.cut(self.longest)
        return _Row(kept.ids, 0, kept is not encoded)

    def _completed(self, prompt: str, completion: str) -> _Row:
        framed = self.tokenizer.encode(completion)
        begin = framed.ids[: framed.put_before]
        body = self.tokenizer.encode(prompt, special=False).ids
        answer = self.tokenizer.encode(completion, special=False).ids
        if not answer:
            raise ValueError(f"has a completion without tokens ({completion!r}); leave it out")
        if not begin and not body:
            # The completion's first token has to be predicted from something.
            begin = [self._start_id]
        room = len(body) + len(answer)
        if self.longest is not None:
            # At least one token to predict, and one before it.
            begin = begin[: self.longest - 1]
            room = min(room, self.longest - len(begin))
        cut = room < len(body) + len(answer)
        if cut:
            # Without a beginning, one token of the prompt has to stay before the completion.
            answer = answer[: room if begin else room - 1]
            body = body[len(body) - (room - len(answer)) :]
        return _Row([*begin, *body, *answer], len(begin) + len(body), cut)

    def prompt_tokens(self, prompt: str, room: int = 0) -> tuple[list[int], bool]:
        """A prompt as the tokens that an answer goes on from, and whether its beginning was cut.

        Args:
            prompt: A beginning-of-text token that a chat template put before it is not doubled.
            room: Tokens to leave for the answer.

        Raises:
            TaskError: No room is left for a prompt.
            ValueError: The tokenizer fails on it.
        """
        framed = self.tokenizer.encode(prompt)
        begin = framed.ids[: framed.put_before]
        body = self.tokenizer.encode(prompt, special=False).ids
        body = body[len(begin) :] if begin and body[: len(begin)] == begin else body
        begin = begin if begin or body else [self._start_id]
        if self.longest is None or len(begin) + len(body) + room <= self.longest:
            return [*begin, *body], False
        left = self.longest - room - len(begin)
        if left < 1:
            raise TaskError(
                f"answers of {room} tokens leave no room for a prompt in a model that takes "
                f"{self.longest}; ask for shorter ones"
            )
        return [*begin, *body[len(body) - left :]], True

    def _labelled(self, rows: Sequence[_Row]) -> Batch:
        """Rows as a batch whose labels are the tokens after each row's prompt."""
        batch = self._padded([row.ids for row in rows])
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        for number, row in enumerate(rows):
            labels[number, : row.prompt] = IGNORED
        return {**batch, "labels": labels}

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """The loss that the model computes on texts and completions: ``model(**batch).loss``."""
        own = {name: t for name, t in batch.items() if not name.startswith("rejected_")}
        return super().loss(model, own)

    def loss_terms(self, batch: Mapping[str, Any]) -> float:
        """The number of tokens predicted; 0 if the batch says what its sum is divided by."""
        if "num_items_in_batch" in batch:
            return 0.0
        # transformers shifts the labels: nothing predicts the first token of a row.
        return float((batch["labels"][:, 1:] != IGNORED).sum())

    def evaluation_order(self, examples: Sequence[Example]) -> list[int]:
        """Examples whose prompts begin alike side by side if that is much, else the longest first.

        Where prompts are shared, each is read once for all of its examples, see
        :mod:`.shared_prefixes`.
        """
        prompts = [str(example.input.get("prompt") or "") for example in examples]
        alike = sorted(range(len(prompts)), key=prompts.__getitem__)
        shared = sum(alike_to(prompts[one], prompts[two]) for one, two in pairwise(alike))
        whole = sum(characters(example.input) for example in examples)
        return alike if shared >= LEAST_SHARE * whole else super().evaluation_order(examples)

    def outputs(self, model: nn.Module, batch: Batch) -> Scored:
        """One pass over texts, completions and rejected ones, a few rows at a time."""
        count, width = batch["labels"].shape
        own = {name: batch[name] for name in PADDING}
        if "rejected_rows" in batch:
            # Both completions of a prompt together: what they share is read once.
            own = {name: below(own[name], batch[f"rejected_{name}"], PADDING[name]) for name in own}
        # An unknown vocabulary is taken for a large one. Nothing is generated here, so keys and
        # values that are kept would only take memory.
        vocabulary = int(self.model.get("vocab_size", 1 << 17))
        options = {"use_cache": False} if "use_cache" in self.model else {}
        values, ids, confidences = likelihoods(model, own, vocabulary, options)
        tokens, rejected = values[:count, :width], torch.full_like(confidences[:count], torch.nan)
        if "rejected_rows" in batch:
            rejected[batch["rejected_rows"]] = values[count:].nansum(1)
        answers = [self._shown(number) for number in ids[:count].tolist()]
        return Scored(tokens, rejected, answers, confidences[:count])

    def _shown(self, token: int) -> str:
        """One token as a short answer: its text, or its escaped form if that is blank."""
        text = self.tokenizer.decode([token]).strip()
        return text or repr(self.tokenizer.decode([token])).strip("'")

    def behaviours(self, outputs: Scored, batch: Batch) -> dict[str, Tensor]:
        """Log-likelihood (sum, and per token), preference and perplexity; NaN where there is none.

        With l_t = log p(token t | tokens before it) over the T tokens of the completion, or of the
        text except a first token that nothing precedes: sum l_t, mean l_t, sum l_t - sum
        of the rejected completion's, and exp(-mean l_t).
        """
        count = (~outputs.tokens.isnan()).sum(1)
        # The nansum of no value at all would be 0, not NaN.
        total = torch.where(count > 0, outputs.tokens.nansum(1), torch.nan)
        mean = total / count
        return {
            "log-likelihood": total,
            "log-likelihood per token": mean,
            "preference": total - outputs.rejected,
            "perplexity": (-mean).exp(),
        }

    def predictions(self, outputs: Scored) -> Predictions:
        """The most probable next token after each prompt, or after each whole text."""
        return Predictions(outputs.answers, outputs.confidences.tolist())

    def token_values(self, outputs: Scored, batch: Batch) -> list[TokenValues]:
        """Log-probability of every token of completions and texts, in nats; NaN for a prompt's."""
        lengths = batch["attention_mask"].sum(1).tolist()
        return [
            TokenValues(self.tokenizer.pieces(ids[:length]), values[:length].cpu().numpy())
            for ids, values, length in zip(
                batch["input_ids"].tolist(), outputs.tokens, lengths, strict=True
            )
        ]


def _each(row: Callable[..., _Row], texts: Iterable[tuple[str, ...]]) -> list[_Row]:
    rows = []
    for number, given in enumerate(texts):
        try:
            rows.append(row(*given))
        except ValueError as error:
            raise TextError(number, error) from None
    return rows
