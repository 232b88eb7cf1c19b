"""Which of a target's examples choose, and which judge the choice. Without torch."""

from __future__ import annotations

import numpy as np

from stagelens.analyses.contributions.contribution_table import Question
from stagelens.contracts import StageLensError
from stagelens.runs.schema import digest
from stagelens.runs.sets.clusters import CLUSTER
from stagelens.runs.sets.evaluation_set import EvaluationSet


def halves(examples: EvaluationSet, question: Question) -> tuple[Question, Question]:
    """Two halves of a target's examples: one to rank by, the other to judge what was chosen.

    Copies of one source (column ``cluster``) are in the same half. Which half an example is in
    depends on nothing but the set.

    Args:
        examples: The set.
        question: Which of its examples.

    Raises:
        SetError: The question names what the set does not have.
        StageLensError: One half has no example.
    """
    wanted = set(question.of(examples))
    table = examples.table()
    table = table[table["example_id"].isin(wanted)]
    source = table[CLUSTER if CLUSTER in table else "example_id"].astype(str)
    # By a digest, so that neither order nor time of the sources tells the halves apart.
    keys = sorted(source.unique(), key=lambda name: digest("half", examples.digest, name))
    first = source.isin(keys[: (len(keys) + 1) // 2]).to_numpy()
    ids = table["example_id"].astype(str).to_numpy()
    if not np.any(~first):
        raise StageLensError(
            f"the target has {len(keys)} examples, too few for one half to choose and the other to "
            "judge; give a larger --target, or leave out --prove"
        )
    return Question(ids=tuple(ids[first])), Question(ids=tuple(ids[~first]))
