"""What models are asked: prompts, what answers are held against, and answers to choose from."""

from __future__ import annotations

import json

from stagelens.contracts import REFERENCE_COLUMN, SetError
from stagelens.measuring.choices import Question
from stagelens.runs.sets.evaluation_set import EvaluationSet

CHOICES = "choices"
"""Column with a JSON list of answers to choose from."""


def prompts_of(examples: EvaluationSet) -> dict[str, str]:
    """Id to what a model goes on from: the prompt, or a text by itself."""
    return {
        each.example_id: str(each.input.get("prompt") or each.input.get("text") or "")
        for each in examples.examples()
    }


def references_of(examples: EvaluationSet, column: str = REFERENCE_COLUMN) -> dict[str, str | None]:
    """Id to what an answer is held against.

    Args:
        examples: The set.
        column: That says so; of ``reference``, the completion says so too where there is no column.

    Raises:
        SetError: There is no such column.
    """
    found = {}
    for each in examples.examples():
        if column != REFERENCE_COLUMN and column not in each.columns:
            raise SetError(
                f"set {examples.name!r} has no column {column!r} to hold answers against; it has "
                f"{', '.join(each.columns) or 'none'}"
            )
        own = each.columns.get(column, each.input.get("completion"))
        found[each.example_id] = None if own is None or own != own else str(own)
    return found


def questions_of(examples: EvaluationSet) -> list[Question]:
    """Prompts with their choices, of which the reference is one.

    Raises:
        SetError: A prompt has no list of choices, or its reference is none of them.
    """
    prompts, references = prompts_of(examples), references_of(examples)
    found = []
    for each in examples.examples():
        name, given = each.example_id, each.columns.get(CHOICES)
        try:
            choices = tuple(json.loads(given)) if isinstance(given, str) else ()
        except ValueError:
            choices = ()
        if len(choices) < 2 or not all(isinstance(one, str) for one in choices):
            raise SetError(
                f"example {name!r} of set {examples.name!r} has no choices; multiple choice takes "
                f"a column {CHOICES!r} with a JSON list of texts, as they follow the prompt"
            )
        if references[name] not in choices:
            raise SetError(
                f"example {name!r} of set {examples.name!r} has the reference "
                f"{references[name]!r}, which is none of its choices; give one of them, as it is"
            )
        right = choices.index(str(references[name]))
        found.append(Question(name, prompts[name], choices, right))
    return found
