"""What is stored of a stage's training examples, beside the list of them.

``looks`` are what they are shown as, ``answers`` what models say of them, ``columns`` what a file
says of them. ``duplicates``, one file for the whole run, is where else they occur. Each is computed
by itself, so that a killed job goes on with the next one. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import RunError
from stagelens.effects.results import BehaviourFacts
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs import fact_tables
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest
from stagelens.runs.training_rows import TrainingRowsFacts, example_key, training_rows_path

_REVISION = 1
"""Part of every key; raised when what is kept changes."""

_GROUP = 2_000
"""Rows per row group: the contents of a page of examples are read without those of all others."""

LOOKS = {"example_id": "string", "length": "Int64", "shown": "object"}
"""``length`` counts the characters of texts; ``shown`` is a PNG of at most 64 pixels a side, or
texts as JSON. Both are missing where the task cannot show its training data."""

ANSWERS = {
    "example_id": "string",
    "answer": "string",
    "before": "string",
    "without": "string",
    "value_without": "float64",
}
"""The answers of the final model, of the one before the stage, and of the one without it. A column
``value_0``, ``value_1``, ... per entry of ``AnswerFacts.moments`` holds the example's own loss."""

DUPLICATES = {
    "stage": "string",
    "example_id": "string",
    "where": "string",
    "place": "string",
    "other_id": "string",
    "other_label": "string",
    "similarity": "float64",
}
"""An example of a stage, and the like of it: in a ``place``, the name of a stage or of a set, as
``where`` says. ``similarity`` is 1 for the same input, else the Jaccard index of both texts,
or the correlation of both images."""

_LISTED = ("example_id", "label", "content", "step", "position", "uses")
"""What is read of the list of training examples; their single uses are not."""

Where = Literal["stage", "set"]


class LookFacts(BaseModel):
    """What a table of looks says of itself.

    Attributes:
        run_digest: Of the run.
        stage: Whose examples.
        kind: What they are shown as; None where the task cannot show any.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    stage: str
    kind: Literal["image", "text"] | None


class AnswerFacts(BaseModel):
    """What a table of answers says of itself.

    Attributes:
        run_digest: Of the run.
        stage: Whose examples.
        behaviour: What ``value_...`` are: the loss of each example by itself, in evaluation mode.
        moments: Stage, and how many steps of it were done, for each of ``value_0`` on.
        without: What is known of the model without the stage; None where there is none.
        settings: Of the estimator of that model.
        judged: Whether an answer that is not the label is wrong: not so of numbers.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    stage: str
    behaviour: BehaviourFacts
    moments: tuple[tuple[str, int], ...]
    without: StageTrust | None = None
    settings: dict[str, Any] = {}
    judged: bool = True


class DuplicateFacts(BaseModel):
    """What a table of duplicates says of itself.

    Attributes:
        run_digest: Of the run.
        sets: Name to digest of the evaluation sets that were searched.
        left_out: Stages that were not searched, and why.
        threshold: Jaccard index of texts, or correlation of images, from which they count as near
            duplicates; None where only equal inputs were looked for.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    sets: dict[str, str]
    left_out: dict[str, str] = {}
    threshold: float | None = None


class ColumnFacts(BaseModel):
    """What a table of columns says of itself.

    Attributes:
        run_digest: Of the run.
        stage: Whose examples.
        source: Name of the file.
        unmatched: How many rows of the file are no example of the stage.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    stage: str
    source: str
    unmatched: int


def _path(run: Run, stage: str, kind: str) -> Path:
    stages = [stage] if stage else [each.name for each in run.stages]
    documents = [each for name in stages for each in example_key(run, name)][:1]
    key = digest(_REVISION, run.digest, stage, kind, *documents)[:32]
    return run.files.inside(f"results/training-data/{key}.parquet")


def looks_path(run: Run, stage: str) -> Path:
    """Where it is stored, or would be, what a stage's examples look like."""
    return _path(run, stage, "looks")


def answers_path(run: Run, stage: str) -> Path:
    """Where the answers to a stage's examples are stored, or would be."""
    return _path(run, stage, "answers")


def columns_path(run: Run, stage: str) -> Path:
    """Where the further columns of a stage's examples are stored, or would be."""
    return _path(run, stage, "columns")


def duplicates_path(run: Run) -> Path:
    """Where the duplicates of all stages are stored, or would be."""
    return _path(run, "", "duplicates of texts and images")


def save_looks(run: Run, looks: pd.DataFrame, facts: LookFacts) -> None:
    """Store what a stage's examples look like. Atomic."""
    fact_tables.write(looks_path(run, facts.stage), looks, facts, row_group_size=_GROUP)


@dataclass(frozen=True)
class TrainingData:
    """The training examples of a stage, without what they are shown as.

    Attributes:
        facts: Of their looks.
        frame: A row per example: ``example_id``, ``label``, ``content``, ``step``, ``position`` and
            ``uses`` as :mod:`stagelens.runs.training_rows` has them, ``length``, :data:`ANSWERS`
            and the further columns where there are such, and ``other_labels``: those that the
            same input has in this stage.
        answers: Facts of the answers; None where there are none yet.
        duplicates: Rows of :data:`DUPLICATES` of this stage; None where nobody looked.
        duplicate_facts: Of these.
        columns: Names of the further columns, of the recorded data set or of a file.
        column_facts: Of those of a file; None without one.
    """

    facts: LookFacts
    frame: pd.DataFrame
    answers: AnswerFacts | None
    duplicates: pd.DataFrame | None
    duplicate_facts: DuplicateFacts | None
    columns: tuple[str, ...] = ()
    column_facts: ColumnFacts | None = None

    @property
    def labelled(self) -> bool:
        """Whether any example has a label."""
        return bool(self.frame["label"].notna().any())

    @property
    def moment_names(self) -> dict[str, str]:
        """Columns of an example's own loss, to their names for people."""
        if self.answers is None:
            return {}
        loss, found = self.answers.behaviour.name, {"value_without": "without the stage"}
        for number, (stage, step) in enumerate(self.answers.moments):
            found[f"value_{number}"] = (
                f"after step {step} of {stage}" if step else f"before {stage}"
            )
        return {name: f"{loss} {when}" for name, when in found.items()}

    def over_time(self, example_id: str) -> pd.DataFrame:
        """``stage``, ``step`` and ``value``: an example's own loss after each of these moments."""
        moments = () if self.answers is None else self.answers.moments
        row = self.frame.loc[self.frame["example_id"] == example_id].iloc[0]
        values = [float(row[f"value_{number}"]) for number in range(len(moments))]
        return pd.DataFrame(
            {
                "stage": [stage for stage, _ in moments],
                "step": [step for _, step in moments],
                "value": values,
            }
        )


def stored_looks(run: Run, stage: str) -> tuple[LookFacts, pd.DataFrame] | None:
    """What a stage's examples look like; None where nothing is stored that can be used."""
    found = fact_tables.read(looks_path(run, stage), LookFacts, LOOKS)
    own = found is not None and (found[0].run_digest, found[0].stage) == (run.digest, stage)
    return found if own else None


def stored_answers(run: Run, stage: str) -> tuple[AnswerFacts, pd.DataFrame] | None:
    """The answers to a stage's examples; None where none are stored that can be used."""
    found = fact_tables.read(answers_path(run, stage), AnswerFacts, ANSWERS)
    own = found is not None and (found[0].run_digest, found[0].stage) == (run.digest, stage)
    return found if own else None


def stored_duplicates(run: Run) -> tuple[DuplicateFacts, pd.DataFrame] | None:
    """The duplicates of all stages; None where none are stored that are of the sets as they are."""
    found = fact_tables.read(duplicates_path(run), DuplicateFacts, DUPLICATES)
    if found is None or found[0].run_digest != run.digest:
        return None
    return found if found[0].sets == set_digests(run) else None


def set_digests(run: Run) -> dict[str, str]:
    """Name to digest of the run's evaluation sets."""
    return {name: run.evaluation_set(name).digest for name in run.set_names}


def load(run: Run, stage: str) -> TrainingData | None:
    """What is stored of a stage's training examples; None where these are not.

    Args:
        run: The run.
        stage: Name of one of its stages.
    """
    path, listed = looks_path(run, stage), training_rows_path(run, run.stage(stage))
    facts = fact_tables.facts_of(path, LookFacts)
    rows = fact_tables.facts_of(listed, TrainingRowsFacts)
    if facts is None or rows is None or (facts.run_digest, facts.stage) != (run.digest, stage):
        return None
    frame = pq.read_table(listed, columns=[*_LISTED, *rows.columns]).to_pandas()
    looks = pq.read_table(path, columns=["example_id", "length"]).to_pandas()
    frame = frame.merge(looks.astype(_only(LOOKS, looks)), on="example_id", validate="1:1")
    frame["other_labels"] = _other_labels(frame)
    answers, marks = stored_answers(run, stage), stored_duplicates(run)
    given = fact_tables.read(columns_path(run, stage), ColumnFacts, ("example_id",))
    if answers is not None:
        frame = frame.merge(answers[1], on="example_id", how="left", validate="1:1")
    if given is not None and given[0].run_digest != run.digest:
        given = None
    names = [*rows.columns]
    if given is not None:
        # What is known of an example keeps its own name.
        own = given[1].rename(columns=lambda name: _free(name, frame.columns))
        names += [name for name in own.columns if name != "example_id"]
        frame = frame.merge(own, on="example_id", how="left", validate="1:1")
    duplicates = None if marks is None else marks[1][marks[1]["stage"] == stage]
    return TrainingData(
        facts,
        frame,
        None if answers is None else answers[0],
        None if duplicates is None else duplicates.reset_index(drop=True),
        None if marks is None else marks[0],
        tuple(names),
        None if given is None else given[0],
    )


def _only(kinds: Mapping[str, str], frame: pd.DataFrame) -> dict[str, str]:
    return {name: kind for name, kind in kinds.items() if name in frame}


def _free(name: str, taken: Sequence[str] | pd.Index) -> str:
    return name if name == "example_id" or name not in taken else f"{name} (given)"


def _other_labels(frame: pd.DataFrame) -> pd.Series:
    """Labels that the same input has in other rows, with commas between; missing without any."""
    found = pd.Series(pd.NA, frame.index, dtype="string")
    twice = frame[frame["content"].duplicated(keep=False)]
    # An input without a label has none of its own, and may still have others.
    for _, own in twice["label"].fillna("none").groupby(twice["content"]):
        for row in own.index:
            found[row] = ", ".join(sorted(own.drop(row)))
    return found


def contents(run: Run, stage: str, example_ids: Sequence[str]) -> dict[str, bytes | None]:
    """What the examples of these ids are shown as; reads only their row groups.

    Raises:
        RunError: They are not stored.
    """
    path = looks_path(run, stage)
    wanted = set(example_ids)
    if not fact_tables.is_intact(path):
        raise RunError(
            f"the training examples of stage {stage!r} are not stored; start stagelens "
            f"training-data {run.path} --stage {stage}"
        )
    found: dict[str, bytes | None] = {}
    with pq.ParquetFile(path) as file:
        for group in range(file.metadata.num_row_groups):
            ids = file.read_row_group(group, columns=["example_id"])["example_id"].to_pylist()
            here = wanted.intersection(ids)
            if not here:
                continue
            held = file.read_row_group(group, columns=["shown"])["shown"]
            found |= {name: held[place].as_py() for place, name in enumerate(ids) if name in here}
            if len(found) == len(wanted):
                break
    return found


def stage_of(run: Run, name: str) -> Stage:
    """A stage whose training examples can be read.

    Raises:
        RunError: There is none of that name, or its batches are not at hand; says what to do.
    """
    stage = run.stage(name)
    if stage.facts.origin == "assembled" or stage.facts.merge is not None:
        raise RunError(
            f"no training examples are known of stage {name!r}: this run was assembled from "
            "checkpoints; record the stage while it is trained"
        )
    if stage.facts.problem is None and not stage.replayable:
        raise RunError(
            stage.no_data_set
            or f"the batches of stage {name!r} were not all kept, so its training examples are not "
            'known; record it with keep_batches="all"'
        )
    if not stage.replayable:
        raise RunError(
            f"the training examples of stage {name!r} are not known: {stage.facts.problem}"
        )
    return stage
