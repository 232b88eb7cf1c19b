"""Effects of training examples on an evaluation set, computed and stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stagelens.contracts import Progress, ProgressCallback, no_progress
from stagelens.effects.computing import effect_table
from stagelens.effects.results import BehaviourFacts
from stagelens.estimators.stage_trust import REPLAY
from stagelens.estimators.without_rows import without_rows
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.training_rows import training_rows

from .chosen import Chosen, Divisor
from .stored import WithoutData, WithoutDataFacts, counts, load_without_data, without_data_path

_MODEL = 0.9
"""The share of the time that the model takes, for ``progress``; the rest are forward passes."""


def without_data(
    run: Run,
    set_name: str,
    chosen: Chosen,
    divisor: Divisor = "rest",
    estimator: str = REPLAY,
    settings: Mapping[str, Any] | None = None,
    progress: ProgressCallback = no_progress,
) -> WithoutData:
    """What training examples of a stage did to an evaluation set; read from disk where stored.

    Args:
        run: The run.
        set_name: One of its evaluation sets.
        chosen: The training examples.
        divisor: What the loss of what is left of a batch is divided by.
        estimator: ``replay``, or ``coarse-replay`` for the stages after this one.
        settings: Of the estimator, such as ``{"budget": 0.25}``.
        progress: Called for the model and the forward passes.

    Raises:
        RunError: There is no such stage, set or example.
        Refused: Steps cannot be replayed, or the loss compares examples with one another.
    """
    rows, examples = chosen.left_out(divisor), run.evaluation_set(set_name)
    stage = run.stage(chosen.stage)
    listed = training_rows(run, stage)  # first, because what an example is, is part of every key
    given = dict(settings or {})
    stored = load_without_data(run, examples, rows, estimator, given)
    if stored is not None:
        return stored
    examples = run.measurable_set(set_name)
    overall = Progress(progress)
    model = without_rows(run, rows, estimator, given, overall.part(0.0, _MODEL))
    keyed = {**given, **rows.settings_in(run), "stage": rows.stage}
    table, (trust,) = effect_table(
        run, examples, [model], estimator, overall.part(_MODEL, 1.0), keyed
    )
    facts = WithoutDataFacts(
        run_digest=run.digest,
        set_name=examples.name,
        set_digest=examples.digest,
        stage=chosen.stage,
        ids=chosen.ids,
        words=chosen.words,
        divisor=divisor,
        estimator=estimator,
        settings=given,
        behaviours=[BehaviourFacts.of(kind) for kind in run.task.behaviour_kinds],
        trust=trust,
        **asdict(counts(listed, chosen, stage.steps)),
    )
    found = WithoutData(facts, table)
    fact_tables.write(without_data_path(run, examples, rows, estimator, given), table, facts)
    return found
