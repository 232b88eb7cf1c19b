"""What models say of a stage's training examples: over time, in the end, and without the stage."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import Example, Progress, ProgressCallback, no_progress
from stagelens.effects.results import BehaviourFacts
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.protocol import Counterfactual
from stagelens.estimators.registry import make_estimator
from stagelens.measuring.models import BATCH_SIZE, SHARD, Measured, empty_model, measure
from stagelens.measuring.partial_results import Shards
from stagelens.runs import fact_tables
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest
from stagelens.runs.states import Weights
from stagelens.trust.estimates import stored_estimates

from .looks import inputs_of
from .tables import ANSWERS, AnswerFacts, answers_path, stored_answers

_LOSS = "loss"
"""The behaviour that an example's own loss is; where a task has none of that name, its first."""


def measure_rows(
    run: Run,
    stage: Stage,
    rows: pd.DataFrame,
    shown: bool,
    progress: ProgressCallback = no_progress,
) -> tuple[AnswerFacts, pd.DataFrame] | None:
    """Answers to a stage's training examples, and their own losses; read from disk where stored.

    Inputs are those that the task shows, collated again, one by one as an evaluation set is: of
    texts what the tokenizer decodes. Augmentations and packing are as recorded, dropout is off.

    Args:
        run: The run.
        stage: One of its stages.
        rows: Its examples, as :func:`stagelens.runs.training_rows.training_rows` lists them.
        shown: Whether the task shows them.
        progress: Called while models are measured; what is measured so far outlives the process.

    Returns:
        Facts, and rows of ``tables.ANSWERS``; None where the task cannot show training examples.
    """
    if not shown:
        return None
    best = _best_estimate(run, stage)
    stored = stored_answers(run, stage.name)
    if stored is not None and _as_good(stored[0], best):
        return stored
    told = Progress(progress)
    without = _without(run, stage, best, told.part(0.0, 0.2))
    moments = _moments(run, stage)
    weights = [weights for _, weights in moments]
    if without is not None and without.weights is not None:
        weights.append(without.weights)
    kind = next(
        (k for k in run.task.behaviour_kinds if k.name == _LOSS), run.task.behaviour_kinds[0]
    )
    known = without is not None and without.weights is not None
    trust = without.trust if without is not None and known else None
    facts = AnswerFacts(
        run_digest=run.digest,
        stage=stage.name,
        behaviour=BehaviourFacts.of(kind),
        moments=tuple(moment for moment, _ in moments),
        without=trust,
        settings=best[1] if best is not None and known else {},
        judged=run.task.labels_are_answers,
    )
    said = facts.model_dump(exclude={"without": {"seconds"}})
    shards = Shards(run, digest("training-data", said)[:32])
    model = empty_model(run)
    spans = [(at, min(at + SHARD, len(rows))) for at in range(0, len(rows), SHARD)]
    start_of = _start_of(run, stage)
    before = next((n for n, (moment, _) in enumerate(moments) if moment == start_of), None)

    def measured(start: int, stop: int) -> pd.DataFrame:
        batches = _batches(run, stage, rows.iloc[start:stop])
        found = measure(run.task, model, weights, batches, stop - start)
        ids = rows["example_id"].iloc[start:stop]
        return _table(ids, found, kind.name, len(moments), before)

    for number, (start, stop) in enumerate(spans):
        shards.keep(f"{start}-{stop}", partial(measured, start, stop))
        done = 0.2 + 0.8 * (number + 1) / len(spans)
        progress(done, f"asking {len(weights)} models about {stop:,} of {len(rows):,} examples")
    names = [f"{start}-{stop}" for start, stop in spans]
    table = pd.concat([shards.load(name) for name in names], ignore_index=True)
    fact_tables.write(answers_path(run, stage.name), table, facts)
    shards.clear()
    return facts, table


def _best_estimate(run: Run, stage: Stage) -> tuple[str, dict[str, Any]] | None:
    """Estimator and settings of the best stored table that has a number for the stage."""
    for name in run.set_names:
        for facts in stored_estimates(run, name).values():
            known = {trust.stage: trust.trust for trust in facts.stages}
            if known.get(stage.name, "refused") != "refused":
                return facts.estimator, dict(facts.settings)
    return None


def _as_good(facts: AnswerFacts, best: tuple[str, dict[str, Any]] | None) -> bool:
    if best is None:
        return True
    return facts.without is not None and (facts.without.estimator, dict(facts.settings)) == best


def _without(
    run: Run,
    stage: Stage,
    best: tuple[str, dict[str, Any]] | None,
    progress: ProgressCallback,
) -> Counterfactual | None:
    """The model without the stage: of a stored estimate, or as nobody has to compute it."""
    if best is None:
        # Without the last stage the model is what that started from, whatever the estimator.
        if stage.index < len(run.stages) - 1:
            return None
        best = "task-vector", {}
    estimator = make_estimator(*best)
    return next(iter(counterfactuals(run, estimator, [stage], progress, look=False)))


def _start_of(run: Run, stage: Stage) -> tuple[str, int]:
    """The moment before a stage's first step, as the end of the one before it."""
    if stage.index == 0:
        return stage.name, 0
    before = run.stages[stage.index - 1]
    return before.name, before.steps


def _moments(run: Run, stage: Stage) -> list[tuple[tuple[str, int], Weights]]:
    """When an example's loss is measured, each with the model of then.

    The base, the end of every stage, and the checkpoints within the one whose examples they are.
    The start of a stage stands for the end of the one before, from which a boundary may differ.
    Models of another architecture than the final one cannot be asked the same.
    """
    found: list[tuple[tuple[str, int], Weights]] = []
    final = run.last.facts.build_config
    for each in run.stages:
        if each.facts.build_config != final:
            continue
        if each.index == 0 or each is stage:
            found = [one for one in found if one[0] != _start_of(run, each)]
            found.append((_start_of(run, each), each.start().model))
        if each is stage:
            found += [((each.name, step), state.model) for step, state in each.within()]
        found.append(((each.name, each.steps), each.end().model))
    return found


def _batches(run: Run, stage: Stage, rows: pd.DataFrame) -> Iterator[list[Example]]:
    """The inputs of these rows in their order, batch by batch, read from the recording again."""
    inputs = (example for example in inputs_of(run, stage, rows) if example is not None)
    while batch := list(islice(inputs, BATCH_SIZE)):
        yield batch


def _table(
    ids: pd.Series, found: list[Measured], behaviour: str, moments: int, before: int | None
) -> pd.DataFrame:
    without = found[moments] if len(found) > moments else None
    missing = np.full(len(ids), np.nan)
    columns = {
        "example_id": ids.to_numpy(),
        "answer": found[moments - 1].answers,
        "before": None if before is None else found[before].answers,
        "without": None if without is None else without.answers,
        "value_without": missing if without is None else without.values[behaviour],
    }
    table = pd.DataFrame(columns).astype(ANSWERS)
    values = {f"value_{n}": found[n].values[behaviour] for n in range(moments)}
    return table.assign(**values)
