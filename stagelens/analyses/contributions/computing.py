"""Asking a run what contributed to a behaviour, and keeping the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stagelens.contracts import Progress, ProgressCallback, Refused, no_progress
from stagelens.derivatives.curvature_kinds import USUAL, Curvature
from stagelens.derivatives.trajectory import DerivativeOptions
from stagelens.effects.results import BehaviourFacts
from stagelens.estimators.replay_check import check_given
from stagelens.measuring.models import BATCH_SIZE, answers_as_the_final_model, measure
from stagelens.runs.run import Run, Stage
from stagelens.runs.states import TrainingState

from .batch_terms import batch_terms
from .contribution_table import (
    ContributionFacts,
    Question,
    Stored,
    as_table,
    contributions_path,
    load_contributions,
    save_contributions,
)
from .first_order import contributions
from .training_examples import training_examples

_SWEEP = 0.9
"""The share of the time that the sweep takes, for ``progress``."""


def contribute(
    run: Run,
    set_name: str,
    question: Question,
    behaviour: str | None = None,
    progress: ProgressCallback = no_progress,
    since: str | None = None,
    curvature: Curvature = USUAL,
    horizon: int | None = None,
) -> Stored:
    """What every step and every training example contributed; read from disk where stored.

    What an earlier version stored is computed again where it lacks a part.

    Args:
        run: The run.
        set_name: One of its evaluation sets.
        question: Which of its examples are asked about.
        behaviour: One of the task's; None for its first.
        progress: Called during the sweep and what follows it.
        since: The earliest stage that is wanted; None for the first. The sweep goes through all
            later ones.
        curvature: What stands for second derivatives, see :mod:`stagelens.derivatives.products`.
        horizon: Contributions to the behaviour so many steps later within each stage; None for
            those to the final model's.

    Raises:
        RunError: There is no such stage.
        SetError: The question names an example, a column or a group that the set does not have.
        Refused: The behaviour is unknown or has no value on the examples, or the run has no
            derivatives; see :func:`stagelens.analyses.contributions.first_order.contributions`.
            Or a loss of the user's own that was given is not the recorded one.
    """
    _ = run.last  # refuses a run without a finished stage, by name
    examples = run.evaluation_set(set_name)
    ids = question.of(examples)
    kinds = {kind.name: kind for kind in run.task.behaviour_kinds}
    name = behaviour or next(iter(kinds))
    if name not in kinds:
        raise Refused(f"the task has no behaviour {name!r}; use one of {', '.join(kinds)}")
    first = run.stages[0] if since is None else run.stage(since)
    stored = load_contributions(run, examples, name, ids, first.name, curvature, horizon)
    if stored is not None and stored.complete:
        return stored
    check_given(run)
    swept = run.stages[first.index :]
    found = contributions(
        run,
        name,
        examples.by_id(ids),
        with_examples=True,
        options=DerivativeOptions(curvature=curvature),
        progress=Progress(progress).part(0.0, _SWEEP),
        since=first.name,
        horizon=horizon,
    )
    progress(_SWEEP, "reading the training examples")
    kind = kinds[name]
    rows = _observed(run, set_name, ids, name)
    shares, no_rest = found.examples, {}
    for row in found.steps.itertuples():
        rows.append({"part": "step", "stage": row.stage, "step": row.step,
                     "value": row.contribution})  # fmt: skip
    for stage in swept:
        if shares is None or stage.name in found.steps_only:
            continue
        own = shares[shares["stage"] == stage.name]
        of_examples = own["part"] == "example"
        carried = own.loc[~of_examples, "contribution"].sum()
        rows.append({"part": "carried", "stage": stage.name, "value": float(carried)})
        counted = None
        try:
            counted = batch_terms(run, stage)
        except Refused as error:
            no_rest[stage.name] = str(error)
        rows += training_examples(run, stage, own[of_examples], counted)
    table = as_table(rows)
    answer = Stored(
        ContributionFacts(
            run_digest=run.digest,
            set_digest=examples.digest,
            count=len(ids),
            behaviour=BehaviourFacts.of(kind),
            value=found.value,
            steps={stage.name: stage.steps for stage in swept},
            steps_only=dict(found.steps_only),
            on_samples=tuple(
                stage.name
                for stage in swept
                if (objective := stage.facts.objective) is not None and objective.on_samples
            ),
            curvature=curvature,
            horizon=horizon,
            kind=run.task.input_kind if table["content"].notna().any() else None,
            no_rest=no_rest,
        ),
        table,
    )
    path = contributions_path(run, examples, name, ids, first.name, curvature, horizon)
    save_contributions(path, answer)
    return answer


def _observed(run: Run, set_name: str, ids: Sequence[str], behaviour: str) -> list[dict[str, Any]]:
    """The behaviour before the first stage, and after every checkpoint and stage.

    Stages whose model has other outputs than the final one are left out, as boundaries are.
    """
    examples = run.evaluation_set(set_name)
    asked = examples.by_id(ids)
    batches = [asked[first : first + BATCH_SIZE] for first in range(0, len(asked), BATCH_SIZE)]
    rows = []
    for stage in run.stages:
        if not answers_as_the_final_model(run, stage, examples):
            continue
        model = run.task.build_model(stage.facts.build_config)
        for step, state in _states(stage):
            (one,) = measure(run.task, model, [state.model], batches, len(asked))
            values = one.values[behaviour]
            rows.append(
                {
                    "part": "observed",
                    "stage": stage.name,
                    "step": step,
                    # Where no example has a value, nanmean would warn.
                    "value": np.nanmean(values) if np.isfinite(values).any() else np.nan,
                    "answer": str(one.answers[0]) if len(asked) == 1 else None,
                }
            )
    return rows


def _states(stage: Stage) -> Iterator[tuple[int, TrainingState]]:
    """A stage's states with the steps before them; the start only of the first stage."""
    # Later stages start where the one before ended, which has been measured.
    if stage.index == 0:
        yield 0, stage.start()
    yield from stage.within()
    yield stage.steps, stage.end()
