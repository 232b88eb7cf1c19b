"""What the losses of a stage's micro-batches count, beside the contributions of their examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stagelens.replaying.adding_up import check_stage_adds_up
from stagelens.replaying.batch_parts import Terms, denominators, terms_of
from stagelens.replaying.step import StepRules
from stagelens.runs.run import Run, Stage


@dataclass(frozen=True)
class BatchTerms:
    """One micro-batch of a step.

    Attributes:
        terms: What its loss counts.
        share: 1 over what the loss is divided by.
        denominator: Equal where losses of the step are divided by one number of terms; see
            :func:`stagelens.replaying.batch_parts.denominators`.
    """

    terms: Terms
    share: float
    denominator: int


def batch_terms(run: Run, stage: Stage) -> list[list[BatchTerms]]:
    """Every step's micro-batches, in order.

    Raises:
        Refused: The loss is no sum over examples with the terms that its task tells, so that there
            is no mean over the rest of a batch.
    """
    check_stage_adds_up(run.task, stage)
    rules = StepRules.of(stage.facts)
    found = []
    for record in stage.read_steps():
        micros = record.batches or []
        terms = [terms_of(stage, run.task, micro) for micro in micros]
        totals, examples = [each.total for each in terms], [len(each.of_examples) for each in terms]
        shares = [1 / rules.divisor(micro) for micro in micros]
        numbers = denominators(micros, totals, examples)
        found.append(list(map(BatchTerms, terms, shares, numbers)))
    return found


def places_of(step: Sequence[BatchTerms]) -> tuple[np.ndarray, np.ndarray]:
    """Per position of a step, which micro-batch it is in, and how many terms its example has."""
    each = [batch.terms.of_examples for batch in step]
    micros = np.repeat(np.arange(len(each)), [len(own) for own in each])
    return micros, np.concatenate(each) if each else np.zeros(0)
