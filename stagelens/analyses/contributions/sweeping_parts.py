"""A sweep for each part of the evaluation examples; see :mod:`.parts_of_the_set`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stagelens.contracts import Example, Progress, ProgressCallback, Refused, no_progress
from stagelens.derivatives.curvature_kinds import USUAL, Curvature
from stagelens.derivatives.trajectory import DerivativeOptions
from stagelens.measuring.models import BATCH_SIZE, measure
from stagelens.runs.run import Run, Stage
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.sets.folds import folds
from stagelens.runs.training_rows import training_rows

from .contribution_table import Question, asked_digest
from .first_order import contributions
from .parts_of_the_set import (
    FEWEST,
    PARTS,
    Parts,
    PartsFacts,
    load_parts,
    parts_path,
    save_parts,
)


def contribute_to_parts(
    run: Run,
    set_name: str,
    question: Question,
    behaviour: str,
    stage_name: str,
    progress: ProgressCallback = no_progress,
    curvature: Curvature = USUAL,
    count: int = PARTS,
) -> Parts:
    """What the training examples of a stage contributed to parts of a mean; kept part by part.

    Args:
        run: The run.
        set_name: One of its evaluation sets.
        question: Which of its examples are asked about, in the mean.
        behaviour: One of the task's.
        stage_name: Whose training examples.
        progress: Called during the sweeps.
        curvature: What stands for second derivatives.
        count: How many parts, if there are as many sources.

    Raises:
        Refused: There are too few evaluation examples, the stage's examples have no contributions,
            or the run has no derivatives.
    """
    examples, stage = run.evaluation_set(set_name), run.stage(stage_name)
    asked = question.of(examples)
    training_rows(run, stage)  # what an example is there, is part of the key
    of_all = (run, examples, behaviour, asked, stage.name, curvature, count)
    stored = load_parts(*of_all)
    if stored is not None:
        return stored
    parts = folds(examples, _with_value(run, examples, asked, behaviour), count)
    if len(parts) < FEWEST:
        raise Refused(
            f"evaluation examples of {len(parts)} sources are too few for an interval over them; "
            f"ask about the mean of examples of at least {FEWEST}"
        )
    told = Progress(progress)
    columns: dict[str, pd.Series] = {}
    for number, ids in enumerate(parts):
        own = told.part(number / len(parts), (number + 1) / len(parts))
        of_one = (run, examples, behaviour, ids, stage.name, curvature, 1)
        one = load_parts(*of_one)
        if one is None:
            values = _swept(run, examples.by_id(ids), behaviour, stage, own, curvature)
            one = Parts(_facts([ids], *of_one), values.to_frame("0"))
            save_parts(parts_path(*of_one), one)
        columns[str(number)] = one.table["0"]
    found = Parts(_facts(parts, *of_all), pd.DataFrame(columns))
    save_parts(parts_path(*of_all), found)
    return found


def _with_value(run: Run, examples: EvaluationSet, ids: Sequence[str], behaviour: str) -> list[str]:
    """The examples that the mean is over: without a label, some behaviours have no value."""
    asked = examples.by_id(ids)
    batches = [asked[first : first + BATCH_SIZE] for first in range(0, len(asked), BATCH_SIZE)]
    model = run.task.build_model(run.last.facts.build_config)
    (measured,) = measure(run.task, model, [run.last.end().model], batches, len(asked))
    if behaviour not in measured.values:
        known = ", ".join(measured.values)
        raise Refused(f"the task has no behaviour {behaviour!r}; use one of {known}")
    known_values = np.isfinite(measured.values[behaviour])
    return [one.example_id for one, known in zip(asked, known_values, strict=True) if known]


def _facts(
    parts: Sequence[Sequence[str]],
    run: Run,
    examples: EvaluationSet,
    behaviour: str,
    ids: Sequence[str],
    stage: str,
    curvature: Curvature,
    most: int,
) -> PartsFacts:
    return PartsFacts(
        run_digest=run.digest,
        set_digest=examples.digest,
        stage=stage,
        behaviour=behaviour,
        counts=tuple(len(own) for own in parts),
        asked=asked_digest(ids),
        curvature=curvature,
        most=most,
    )


def _swept(
    run: Run,
    asked: Sequence[Example],
    behaviour: str,
    stage: Stage,
    progress: ProgressCallback,
    curvature: Curvature,
) -> pd.Series:
    """What each training example of a stage contributed to the mean over some examples."""
    found = contributions(
        *(run, behaviour, asked),
        with_examples=True,
        options=DerivativeOptions(curvature=curvature),
        progress=progress,
        since=stage.name,
    )
    if found.examples is None or stage.name in found.steps_only:
        why = found.steps_only.get(stage.name, "its examples have no part of their own")
        raise Refused(f"examples of stage {stage.name!r} have no contributions: {why}")
    own = found.examples
    own = own[(own["stage"] == stage.name) & (own["part"] == "example")]
    return _by_example(training_rows(run, stage).table, own)


def _by_example(rows: pd.DataFrame, own: pd.DataFrame) -> pd.Series:
    """Contributions of single uses, added up by training example."""
    uses = rows[["example_id", "steps", "positions"]].explode(["steps", "positions"])
    uses = uses.rename(columns={"steps": "step", "positions": "position"})
    uses = uses.astype({"step": "int64", "position": "int64"})
    values = own[["step", "position", "contribution"]]
    values = values.astype({"step": "int64", "position": "int64"})
    joined = uses.merge(values, on=["step", "position"], how="left", validate="1:1")
    return joined.groupby("example_id", sort=False)["contribution"].sum()
