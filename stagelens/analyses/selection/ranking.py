"""Ranking a stage's training examples by how much each helps a target within some steps.

An example is in few batches, and what it contributes there depends on the moment. So the examples
of a few other steps are weighed at every step too, as if they were in its batch: on Fashion-MNIST
with 30 % of labels redrawn (SGD), seven values of an example in place of one let the worse half
hold 92 % of the wrong labels in place of 80 %, at the cost of their forward passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from stagelens.analyses.contributions.contribution_table import Question, asked_digest
from stagelens.analyses.contributions.first_order import behaviour_sum, no_value
from stagelens.contracts import (
    Behaviour,
    Example,
    Progress,
    ProgressCallback,
    Refused,
    Task,
    no_progress,
)
from stagelens.derivatives.adjoint import StepContribution, sweep_within
from stagelens.derivatives.curvature_kinds import USUAL, Curvature
from stagelens.derivatives.trajectory import DerivativeOptions, LinearStage
from stagelens.effects.results import BehaviourFacts
from stagelens.runs import fact_tables
from stagelens.runs.run import Run, Stage
from stagelens.runs.sets.folds import folds
from stagelens.runs.training_rows import TrainingRows, rows_used, training_rows

from .ranked import HALVES, RANKED, Ranking, RankingFacts, load_ranking, ranking_path

OTHERS = 6
"""Other steps whose examples are weighed at every step."""


def target_behaviour(run: Run, name: str | None) -> Behaviour:
    """What is to become better: the named behaviour, or the task's loss, else its first one.

    Raises:
        Refused: The task has no such behaviour.
    """
    kinds = {kind.name: kind for kind in run.task.behaviour_kinds}
    if name is None:
        # A margin grows without bound where it is large already; a loss asks for what is wrong.
        return kinds.get("loss", next(iter(kinds.values())))
    if name not in kinds:
        raise Refused(f"the task has no behaviour {name!r}; use one of {', '.join(kinds)}")
    return kinds[name]


def rank(
    run: Run,
    stage: Stage,
    set_name: str,
    question: Question,
    horizon: int,
    behaviour: str | None = None,
    progress: ProgressCallback = no_progress,
    curvature: Curvature = USUAL,
) -> Ranking:
    """The training examples of a stage, by what one use of each contributes to a target.

    It is the mean over the steps that used it and over others. Contributions are those of
    :func:`stagelens.derivatives.adjoint.sweep_within`: to the target ``horizon`` steps later, to
    first order, by the exact dynamics of the optimiser.

    Args:
        run: The run.
        stage: Whose examples.
        set_name: The evaluation set that the target is of.
        question: Which of its examples.
        horizon: How many steps later the target is asked; from the stage's length on, at its end.
        behaviour: What is to become better; see :func:`target_behaviour`.
        progress: Called for every step.
        curvature: What stands for second derivatives, see :mod:`stagelens.derivatives.products`.

    Raises:
        SetError: The question names what the set does not have.
        Refused: The behaviour is unknown, or the examples of the stage have no contributions.
    """
    examples = run.evaluation_set(set_name)
    ids = question.of(examples)
    kind = target_behaviour(run, behaviour)
    horizon = min(max(horizon, 1), max(stage.steps, 1))
    overall = Progress(progress)
    # First, because what an example is, is part of the key.
    rows = training_rows(run, stage, overall.part(0.0, 0.05))
    wanted = (run, stage, examples, ids, kind.name, horizon, curvature)
    stored = load_ranking(*wanted)
    if stored is not None:
        return stored
    parts = [_Part(run, kind, examples.by_id(own)) for own in folds(examples, ids, 2)]
    options, swept = DerivativeOptions(curvature=curvature), overall.part(0.05, 1.0)
    found = sweep_within(run, stage, parts, horizon, OTHERS, options, swept)
    counts = [part.count for part in parts]
    if not any(counts):
        raise no_value(kind.name, examples.by_id(ids))
    facts = RankingFacts(
        run_digest=run.digest,
        set_digest=examples.digest,
        stage=stage.name,
        count=len(ids),
        behaviour=BehaviourFacts.of(kind),
        horizon=horizon,
        steps=stage.steps,
        curvature=curvature,
        asked=asked_digest(ids),
    )
    values = np.stack([mean_by_use(rows, own) for own in found]) * kind.sign
    ranking = Ranking(facts, _table(rows, values, counts, _numbers(run.task, stage, rows)))
    fact_tables.write(ranking_path(*wanted), ranking.table, facts)
    return ranking


class _Part:
    """A part of the target: the gradient of its mean, and how many examples that is of."""

    def __init__(self, run: Run, kind: Behaviour, examples: Sequence[Example]) -> None:
        self.run, self.kind, self.examples = run, kind, examples
        self.count = 0

    def __call__(self, own: LinearStage, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        asked = (self.run, own, self.kind.name, self.examples, values)
        _, slopes, self.count = behaviour_sum(*asked)
        return {name: total / max(self.count, 1) for name, total in slopes.items()}


def mean_by_use(rows: TrainingRows, found: Sequence[StepContribution]) -> np.ndarray:
    """Per training example the mean of its contributions; (N,) in list order.

    Where it was used, and where it was weighed as if it were. A sum would rank examples by how
    often the batches happened to have them.

    Args:
        rows: The stage's training examples.
        found: Its steps, each with the contributions of its examples.
    """
    by_step: dict[int, list[np.ndarray]] = {}
    for one in found:
        for step, values in {**one.others, one.step: one.examples}.items():
            if values is not None:
                by_step.setdefault(step, []).append(values)
    # (number of values, size of the batch) per step, whose mean over the first is all it takes.
    of_step = {step: np.mean(values, axis=0) for step, values in by_step.items()}
    counts = {step: len(values) for step, values in by_step.items()}
    means = np.full(len(rows), np.nan)
    uses = zip(rows.table["steps"], rows.table["positions"], strict=True)
    for number, (steps, positions) in enumerate(uses):
        places = [(int(s), int(p)) for s, p in zip(steps, positions, strict=True) if s in of_step]
        if places:
            weights = [counts[step] for step, _ in places]
            means[number] = np.average([of_step[s][p] for s, p in places], weights=weights)
    return means


def _numbers(task: Task, stage: Stage, rows: TrainingRows) -> list[str | None]:
    """Each example's rows of the recorded data set, with blanks between; None without one."""
    steps = stage.read_steps()
    by_step = [
        [row for micro in steps[step].batches or [] for row in rows_used(stage, task, micro) or ()]
        for step in range(len(steps))
    ]
    found: list[str | None] = []
    for used, positions in zip(rows.table["steps"], rows.table["positions"], strict=True):
        places = zip(used, positions, strict=True)
        own = {by_step[int(s)][int(p)] for s, p in places if p < len(by_step[int(s)])}
        found.append(" ".join(map(str, sorted(own))) or None)
    return found


def _table(
    rows: TrainingRows, values: np.ndarray, counts: Sequence[int], numbers: Sequence[str | None]
) -> pd.DataFrame:
    """The ranking of (H, N) values, one row of them per part of the target and its size."""
    table = rows.table
    known = len(values) == len(HALVES) and all(counts)
    halves = values if known else np.full((len(HALVES), len(rows)), np.nan)
    ranked = pd.DataFrame(
        {
            "example_id": table["example_id"],
            "label": table["label"],
            "uses": table["uses"],
            "rows": pd.array(numbers, dtype="string"),
            "value": np.average(values, axis=0, weights=counts),
            **dict(zip(HALVES, halves, strict=True)),
        },
        columns=list(RANKED),
    ).astype(RANKED)
    # Stable, so that equals stay in the order in which they were first seen.
    return ranked.sort_values("value", ascending=False, kind="stable", ignore_index=True)
