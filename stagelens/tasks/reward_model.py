"""Reward models: a number for a completion, compared with that of a rejected one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stagelens.contracts import Behaviour, Example, Predictions, TaskError
from stagelens.contracts.task_defaults import NO_ANSWER, answers_of

from .regression import OneNumber
from .text_task import in_pieces
from .tokenizer import Encoded, TextError
from .transformer_task import Batch, checked_texts, unpadded

REJECTED = "rejected_"
"""Prefix of what a batch of examples holds about rejected completions."""


@dataclass(frozen=True)
class Rewards:
    """What a reward model says about a batch of B examples.

    Attributes:
        own: (B,) float64, of the completion or the text.
        rejected: (B,) float64, of the rejected completion; NaN where there is none.
    """

    own: Tensor
    rejected: Tensor


class RewardModel(OneNumber):
    """Rewards of completions, as ``AutoModelForSequenceClassification`` with one output gives them.

    An example's input has a ``completion`` with or without a ``prompt``, and with or without a
    ``rejected`` completion of the same prompt; or it has a ``text``. Prompt and completion are
    joined as text. Of a pair, the right answer is ``completion``.

    A batch for training holds the B completions and below them the B rejected ones, (2B, T), as
    the ``RewardTrainer`` of TRL makes it; its loss is the mean of -log sigmoid(reward of the
    completion - reward of the rejected one - margin), with ``margin`` (B,) where the batch has it.

    Args:
        model: Configuration of the model, ``model.config.to_dict()``; it is kept as plain JSON,
            and the model is made from it alone.
        tokenizer: A fast tokenizer; its files become the task's assets.
        assets: Those files, where there is no tokenizer object.
        max_length: Longer texts are cut to so many tokens; None for what model and tokenizer take.
        attention: The model's ``attn_implementation``; None for transformers' default.
        make_model: Builds a module of your own from ``model``; see :class:`ImageClassification`.
        closed: Whether the end-of-text token follows a completion that does not end with it, as
            TRL's ``RewardTrainer`` has it.

    Example:
        >>> task = RewardModel.from_model(model, tokenizer)      # doctest: +SKIP
        >>> batch = task.pairs(["Two and two make"], [" four"], [" five"])
        >>> loss = task.loss(model, batch)
    """

    name: ClassVar[str] = "reward-model"
    input_fields: ClassVar[tuple[str, ...]] = ("text", "prompt", "completion", "rejected")
    takes_labels: ClassVar[bool] = False
    behaviour_kinds = (
        Behaviour(
            "reward",
            "higher",
            "",
            "The number that the model gives to the completion, or to the text.",
        ),
        Behaviour(
            "preference",
            "higher",
            "nats",
            "Reward of the completion minus that of the rejected one: the log-odds that the model "
            "prefers it.",
        ),
        Behaviour(
            "loss",
            "lower",
            "nats",
            "-log of the probability with which the model prefers the completion to the rejected "
            "one.",
            lowest=0.0,
        ),
    )

    def __init__(
        self,
        model: Mapping[str, Any],
        tokenizer: Any = None,
        assets: Mapping[str, bytes] | None = None,
        max_length: int | None = None,
        attention: str | None = None,
        make_model: Callable[[Mapping[str, Any]], nn.Module] | None = None,
        closed: bool = True,
    ) -> None:
        self.closed = closed
        super().__init__(model, tokenizer, assets, max_length, attention, make_model)

    @property
    def config(self) -> dict[str, Any]:
        """See :class:`~stagelens.contracts.Task`."""
        return {**super().config, "closed": self.closed}

    def check_label(self, label: Any) -> str | None:
        """``completion``, the answer that is right for a pair.

        Raises:
            ValueError: It is anything else.
        """
        if label not in (None, "completion"):
            raise ValueError(
                f"label {label!r} is not completion; of a pair, put what is right into the "
                "completion and what is wrong into the rejected one"
            )
        return label

    def implied_label(self, value: Mapping[str, Any]) -> str | None:
        """``completion`` for a pair; nothing is right or wrong about a single text."""
        return "completion" if value.get("rejected") else None

    def check_input(self, value: Mapping[str, Any]) -> str | None:
        """Say so if an input is longer than the model takes.

        Raises:
            ValueError: It has neither a text nor a completion, or both.
        """
        own, rejected = self._texts(value)
        if not self.assets or (longest := self.longest) is None:
            return None
        lengths = [len(self.tokenizer.encode(text).ids) for text in (own, rejected) if text]
        return f"cut to {longest} tokens" if max(lengths, default=0) > longest else None

    def _texts(self, value: Mapping[str, Any]) -> tuple[str, str | None]:
        """An example's input as the text that is rewarded, and that of the rejected completion."""
        text, prompt, completion, rejected = (value.get(name) for name in self.input_fields)
        if (text is None) == (not completion):
            raise ValueError("needs a text or a completion, not both")
        if text is not None:
            return str(text), None
        other = self._joined(prompt, rejected) if rejected else None
        return self._joined(prompt, str(completion)), other

    def _joined(self, prompt: str | None, completion: str) -> str:
        end = self.tokenizer.facts.get("eos_token", "") if self.assets and self.closed else ""
        return f"{prompt or ''}{completion}{'' if completion.endswith(end) else end}"

    def pairs(
        self,
        prompts: Sequence[str] | None,
        completions: Sequence[str],
        rejected: Sequence[str],
    ) -> Batch:
        """Pairs as a batch for training, (2B, T): the completions, then the rejected ones.

        Args:
            prompts: One per pair; None for no prompts.
            completions: B that are preferred.
            rejected: B others.

        Raises:
            TaskError: There are none, not as many of each, or the tokenizer fails on one.
        """
        checked_texts("completions", completions)
        given = [""] * len(completions) if prompts is None else prompts
        if not len(given) == len(completions) == len(rejected):
            raise TaskError(
                f"{len(given)} prompts, {len(completions)} completions and {len(rejected)} "
                "rejected ones; give as many of each"
            )
        both = [*zip(given, completions, strict=True), *zip(given, rejected, strict=True)]
        texts = [self._joined(prompt, text) for prompt, text in both]
        return self.framed([self.encoded(number, text) for number, text in enumerate(texts)])

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as one batch; ``rejected_...`` are the rejected completions of some of them.

        Raises:
            TaskError: An example has neither a text nor a completion, or both.
        """
        own: list[Encoded] = []
        other: dict[int, Encoded] = {}
        for number, example in enumerate(examples):
            try:
                text, rejected = self._texts(example.input)
                own.append(self.encoded(number, text))
                if rejected is not None:
                    other[number] = self.encoded(number, rejected)
            except TextError as error:
                raise error.of(examples) from None
            except ValueError as error:
                raise TaskError(f"example {example.example_id!r} {error}") from None
        batch = self.framed(own)
        if other:
            framed = self.framed(list(other.values()))
            batch |= {f"{REJECTED}{name}": tensor for name, tensor in framed.items()}
            batch["rejected_rows"] = torch.tensor(list(other))
        return batch

    def examples(self, batch: Batch) -> list[Example] | None:
        """The pairs of a training batch: completions, and the rejected ones from below them."""
        if "labels" in batch:
            return super().examples(batch)
        if not self.assets:
            return None
        texts = [self.tokenizer.decode(ids, special=False) for ids in unpadded(batch)]
        half = len(texts) // 2
        pairs = zip(texts[:half], texts[half:], strict=True)
        return [
            Example(str(number), {"completion": own, "rejected": other})
            for number, (own, other) in enumerate(pairs)
        ]

    def row_examples(self, batch: Batch) -> list[int] | None:
        """A pair has two rows: its completion, and the rejected one below all completions."""
        return None if "labels" in batch else [*range(len(batch["input_ids"]) // 2)] * 2

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """The mean loss of the pairs; of a batch with ``labels``, the model's own loss."""
        if "labels" in batch:
            return super().loss(model, batch)
        given = {name: value for name, value in batch.items() if name != "margin"}
        own, rejected = model(**given).logits.squeeze(-1).chunk(2)
        return -nn.functional.logsigmoid(own - rejected - batch.get("margin", 0)).mean()

    def loss_terms(self, batch: Mapping[str, Any]) -> float | None:
        """One per pair."""
        return None if "labels" in batch else len(batch["input_ids"]) / 2

    def outputs(self, model: nn.Module, batch: Batch) -> Rewards:
        """One pass over completions, and one over rejected ones, a few rows at a time."""
        plain = {name: each for name, each in batch.items() if not name.startswith(REJECTED)}
        own = in_pieces(model, plain).flatten().double()
        rejected = torch.full_like(own, torch.nan)
        if (rows := batch.get("rejected_rows")) is not None:
            other = {
                name.removeprefix(REJECTED): each
                for name, each in batch.items()
                if name.startswith(REJECTED) and name != "rejected_rows"
            }
            rejected = rejected.index_put((rows,), in_pieces(model, other).flatten().double())
        return Rewards(own, rejected)

    def behaviours(self, outputs: Rewards, batch: Batch) -> dict[str, Tensor]:
        """The reward; preference and loss are NaN where there is no rejected completion."""
        preference = outputs.own - outputs.rejected
        return {
            "reward": outputs.own,
            "preference": preference,
            "loss": nn.functional.softplus(-preference),
        }

    def predictions(self, outputs: Rewards) -> Predictions:
        """Which of two completions the model prefers; the reward of a single text."""
        single = answers_of(outputs.own, ()).answers
        preference = (outputs.own - outputs.rejected).tolist()
        answers, confidences = [], []
        for alone, value in zip(single, preference, strict=True):
            known = math.isfinite(value)
            pair = "completion" if value > 0 else "rejected"
            answers.append(pair if known else NO_ANSWER if alone == NO_ANSWER else alone)
            confidences.append(1 / (1 + math.exp(-abs(value))) if known else math.nan)
        return Predictions(answers, confidences)
