"""Pairs of completions in a batch, as losses of preferences have them.

Rows come twice: first all that are chosen, then what is rejected of each, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagelens.contracts import Example, Task


def pair_rows(batch: Mapping[str, Any]) -> list[int]:
    """The pair of every row."""
    return [*range(len(batch["input_ids"]) // 2)] * 2


def pair_examples(task: Task, batch: Mapping[str, Any]) -> Sequence[Example] | None:
    """Pairs with a ``prompt``, a ``completion`` and a ``rejected`` one; None if not to be shown."""
    rows = completions(task, batch)
    if rows is None:
        return None
    half = len(rows) // 2
    return [
        Example(one.example_id, {**one.input, "rejected": other.input["completion"]})
        for one, other in zip(rows[:half], rows[half:], strict=True)
    ]


def completions(task: Task, batch: Mapping[str, Any]) -> list[Example] | None:
    """The rows of a batch with a ``completion_mask`` as prompts and completions.

    Returns:
        Each with a ``prompt``, which may be empty, and a ``completion``; None where the task cannot
        show them.
    """
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    shown = task.examples({**batch, "labels": labels})
    if shown is None:
        return None
    # A row without a prompt is a text.
    return [
        Example(
            one.example_id,
            {"prompt": one.input.get("prompt", ""), "completion": text}
            if (text := one.input.get("completion", one.input.get("text"))) is not None
            else one.input,
        )
        for one in shown
    ]
