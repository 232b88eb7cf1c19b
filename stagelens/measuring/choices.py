"""Multiple choice: which of several answers a language model finds most likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import nn

from stagelens.contracts import Example, Task, TaskError
from stagelens.contracts.scorer import Scorer
from stagelens.runs.states import Weights

from .models import BATCH_SIZE, measure

Norm = Literal["none", "tokens", "bytes"]
"""What the log-likelihood of a choice is divided by: nothing, its tokens, or the bytes of its text,
which do not depend on a tokenizer (``acc_norm`` of evaluation harnesses)."""


@dataclass(frozen=True)
class Question:
    """A prompt with answers to choose from.

    Attributes:
        example_id: Of the prompt.
        prompt: What stands before every choice.
        choices: At least two, as they follow the prompt: with the space that they begin with.
        right: Which of them is right, from 0.
    """

    example_id: str
    prompt: str
    choices: tuple[str, ...]
    right: int


def multiple_choice(norm: Norm = "none") -> Scorer:
    """Whether the choice that a model finds most likely is the reference; see :func:`chosen`.

    Raises:
        TaskError: There is no such norm.
    """
    if norm not in get_args(Norm):
        raise TaskError(f"norm={norm!r}; give one of {', '.join(get_args(Norm))}")
    return Scorer(
        "multiple-choice",
        lambda prompt, answer, reference: None if reference is None else answer == reference,
        description="1 where the right answer is the most likely one of those to choose from, "
        "0 where another is.",
        settings={"norm": norm},
    )


def chosen(
    task: Task,
    model: nn.Module,
    weights: Sequence[Weights],
    questions: Sequence[Question],
    norm: Norm = "none",
) -> list[np.ndarray]:
    """What several models choose; prompts are read once for all of their choices.

    Args:
        task: A language model's.
        model: A module of the architecture; its weights are overwritten.
        weights: One entry per model.
        questions: N.
        norm: What log-likelihoods are divided by; of equally likely choices the first is taken.

    Returns:
        For each model (N,) numbers of choices, -1 where a likelihood is not known.

    Raises:
        TaskError: A question has fewer than two choices, or no such right one, or the task knows no
            likelihood of a completion.
    """
    for each in questions:
        if len(each.choices) < 2 or not 0 <= each.right < len(each.choices):
            raise TaskError(
                f"example {each.example_id!r} has {len(each.choices)} choices, of which number "
                f"{each.right} should be right; give at least two, and count from 0"
            )
    name = "log-likelihood per token" if norm == "tokens" else "log-likelihood"
    if name not in {kind.name for kind in task.behaviour_kinds} or "completion" not in (
        task.input_fields
    ):
        raise TaskError(
            f"the task {task.name} knows no likelihood of a completion, by which choices are "
            "compared; multiple choice is for causal-lm and seq2seq"
        )
    examples = [
        Example(f"{each.example_id}/{number}", {"prompt": each.prompt, "completion": choice})
        for each in questions
        for number, choice in enumerate(each.choices)
    ]
    batches = [examples[n : n + BATCH_SIZE] for n in range(0, len(examples), BATCH_SIZE)]
    sizes = [1] * len(examples)
    if norm == "bytes":
        sizes = [len(choice.encode()) for each in questions for choice in each.choices]
    ends = np.cumsum([len(each.choices) for each in questions])[:-1]
    found = []
    for one in measure(task, model, weights, batches, len(examples)):
        each_likely = np.split(one.values[name] / np.array(sizes), ends)
        known = [bool(np.isfinite(own).all()) for own in each_likely]
        pairs = zip(each_likely, known, strict=True)
        found.append(np.array([int(own.argmax()) if sure else -1 for own, sure in pairs]))
    return found


def scores(questions: Sequence[Question], choices: np.ndarray) -> np.ndarray:
    """(N,) 1 where the right one was chosen, 0 where not, NaN where it is not known."""
    right = np.array([each.right for each in questions])
    return np.where(choices < 0, np.nan, (choices == right).astype(float))
