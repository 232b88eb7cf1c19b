"""Which of a target's examples choose, and which judge the choice. Without torch."""

from __future__ import annotations

from stagelens.analyses.contributions.contribution_table import Question
from stagelens.contracts import StageLensError
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.sets.folds import folds


def halves(examples: EvaluationSet, question: Question) -> tuple[Question, Question]:
    """Two halves of a target's examples: one to rank by, the other to judge what was chosen.

    Examples of one source are in the same half.

    Args:
        examples: The set.
        question: Which of its examples.

    Raises:
        SetError: The question names what the set does not have.
        StageLensError: One half has no example.
    """
    parts = folds(examples, question.of(examples), 2)
    if len(parts) < 2:
        raise StageLensError(
            f"the target has {len(parts)} source of examples, too few for one half to choose and "
            "the other to judge; give a larger --target, or leave out --prove"
        )
    first, second = parts
    return Question(ids=first), Question(ids=second)
