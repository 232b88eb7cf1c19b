"""Checking by replays whether first order says anything of a stage's examples."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stagelens.contracts import Example, Progress, ProgressCallback, RunError, no_progress
from stagelens.estimators.replay_check import check_given
from stagelens.measuring.models import BATCH_SIZE, measure
from stagelens.replaying.left_out import RowsOfStage, check_without_rows, replay_without_rows
from stagelens.runs import fact_tables
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest
from stagelens.runs.states import Weights
from stagelens.runs.training_rows import training_rows

from .smoothness import (
    COLUMNS,
    SHARE,
    WEIGHTS,
    Smoothness,
    SmoothnessFacts,
    load_smoothness,
    smoothness_path,
)


def check_smoothness(
    run: Run,
    stage: Stage,
    set_name: str,
    horizon: int | None = None,
    progress: ProgressCallback = no_progress,
) -> Smoothness:
    """How smoothly behaviours change with the weight of a random subset; read where stored.

    All behaviours are measured on all examples of the set. The model with the whole weight is the
    recorded one; with a horizon, recorded steps lead to the middle of the stage first, from where
    all weights are replayed.

    Args:
        run: The run.
        stage: Whose examples are weighed.
        set_name: The evaluation set that behaviours are measured on.
        horizon: How many steps of the stage later; None, or the stage's length or more, for the
            final model.
        progress: Called for every step.

    Raises:
        RunError: The stage has a single training example.
        Refused: The stage, or a later one, cannot be replayed; or its examples cannot be weighed.
            Or a loss of the user's own that was given is not the recorded one.
    """
    examples = run.evaluation_set(set_name)
    if horizon is not None and horizon >= stage.steps:
        horizon = None
    stored = load_smoothness(run, stage.name, examples, horizon)
    if stored is not None:
        return stored
    check_given(run)
    if horizon is None:
        check_without_rows(run, stage)
    overall = Progress(progress)
    places, weighed, of = weighed_examples(run, stage, overall.part(0.0, 0.05))
    began = time.perf_counter()
    models = _models(run, stage, places, horizon, overall.part(0.05, 0.95))
    seconds = time.perf_counter() - began
    asked = examples.examples(0, len(examples))
    after = stage.steps + sum(other.steps for other in run.stages[stage.index + 1 :])
    facts = SmoothnessFacts(
        run_digest=run.digest,
        set_digest=examples.digest,
        stage=stage.name,
        weighed=weighed,
        of=of,
        steps=after if horizon is None else horizon,
        horizon=horizon,
        seconds=seconds,
    )
    last = run.last if horizon is None else stage
    found = Smoothness(facts, _table(run, last, models, asked))
    fact_tables.write(smoothness_path(run, stage.name, examples, horizon), found.table, facts)
    return found


def weighed_examples(
    run: Run, stage: Stage, progress: ProgressCallback = no_progress
) -> tuple[dict[int, set[int]], int, int]:
    """Where the random tenth of a stage's examples was used, how many they are, and of how many.

    Raises:
        RunError: The stage has a single training example.
    """
    rows = training_rows(run, stage, progress)
    ids = [str(name) for name in rows.table["example_id"]]
    if len(ids) < 2:
        raise RunError(f"stage {stage.name!r} has one training example, so there is no subset")
    # By digest: which they are depends on nothing but the stage.
    drawn = sorted(ids, key=lambda name: digest("smoothness", run.digest, stage.name, name))
    chosen = drawn[: max(1, round(SHARE * len(ids)))]
    return rows.places(chosen), len(chosen), len(ids)


def _models(
    run: Run,
    stage: Stage,
    places: dict[int, set[int]],
    horizon: int | None,
    progress: Progress,
) -> list[Weights]:
    """The model with each of :data:`WEIGHTS`."""
    rows, count = RowsOfStage(run.task, stage, "kept"), len(WEIGHTS)
    if horizon is None:
        later = [
            replay_without_rows(
                *(run, stage, places, "kept"),
                progress.part((k - 1) / (count - 1), k / (count - 1)),
                rows=rows,
                weight=weight,
            )
            for k, weight in enumerate(WEIGHTS)
            if k
        ]
        return [run.last.end().model, *(one.state.model for one in later)]
    first = (stage.steps - horizon) // 2
    state = stage.start()
    if first:
        state = rows.replay({}, progress.part(0.0, 0.4), between=(0, first)).state
    between = (first, first + horizon)
    return [
        rows.replay(
            *(places, progress.part(0.4 + 0.6 * k / count, 0.4 + 0.6 * (k + 1) / count), state),
            weight=w,
            between=between,
        ).state.model
        for k, w in enumerate(WEIGHTS)
    ]


def _table(
    run: Run, stage: Stage, models: Sequence[Weights], asked: Sequence[Example]
) -> pd.DataFrame:
    model = run.task.build_model(stage.facts.build_config)
    batches = [
        list(asked[first : first + BATCH_SIZE]) for first in range(0, len(asked), BATCH_SIZE)
    ]
    measured = [next(iter(measure(run.task, model, [one], batches, len(asked)))) for one in models]
    ids = [example.example_id for example in asked]
    blocks = []
    for kind in run.task.behaviour_kinds:
        values = [np.asarray(one.values[kind.name], float) for one in measured]
        if np.isnan(values[0]).all():
            continue
        blocks.append(
            pd.DataFrame(
                {
                    "example_id": ids,
                    "behaviour": kind.name,
                    **dict(zip(("whole", "less", "least", "without"), values, strict=True)),
                }
            )
        )
    return pd.concat(blocks, ignore_index=True)[list(COLUMNS)].astype(COLUMNS)
