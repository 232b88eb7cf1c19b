"""Which training examples are meant: by a filter, by a file of ids, by a slice. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import ConfigDict, Field

from stagelens.contracts import ProgressCallback, RunError, StageLensError, no_progress
from stagelens.estimators.without_rows import LeftOutRows
from stagelens.runs.files import check_changeable, read_json, write_json
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import Name, Versioned, check_name, digest
from stagelens.runs.training_rows import (
    TrainingRows,
    example_key,
    load_training_rows,
    training_rows,
)
from stagelens.runs.where import UnknownColumn, asked_columns, where

from .known_columns import values_of, with_known

Divisor = Literal["rest", "kept"]

DIVISORS = {
    "rest": "mean over the rest",
    "kept": "sum over the rest, divided as before",
}
"""What the loss of what is left of a batch is divided by, in words."""

DRAWN = (
    "These rows are left out of the batches that were drawn, and no others come in their place: it "
    "is not a new training without them."
)
"""What is said wherever such a number is shown."""

_LONGEST = 120
"""Characters that words of a choice may have."""
_ASKED = ("example_id", "label", "step", "position", "uses")
_DIGEST = "content"
"""Tells inputs apart, and says nothing of them."""

AT_RANDOM = "drawn at random among"
"""How the words of examples begin that others are held against."""


@dataclass(frozen=True)
class Chosen:
    """Training examples of a stage.

    Attributes:
        stage: Its name.
        ids: Of the examples, in the order in which they were first seen.
        words: Which they are, to follow a number of examples: ``with source=forum``, ``that hurt
            example clean-044 most``; empty where they are named one by one.
    """

    stage: str
    ids: tuple[str, ...]
    words: str = ""

    def left_out(self, divisor: Divisor) -> LeftOutRows:
        """As what is left out."""
        return LeftOutRows(self.stage, self.ids, divisor)


def one_line(words: str) -> str:
    """Words that may hold values of data, printable and short, to be kept with a result."""
    line = " ".join("".join(each if each.isprintable() else " " for each in words).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def listed(run: Run, stage: Stage, progress: ProgressCallback = no_progress) -> TrainingRows:
    """A stage's training examples, with what is stored of them beside.

    Args:
        run: The run.
        stage: One of its stages.
        progress: Called for every step that is read, where they were not listed before.
    """
    return with_known(run, training_rows(run, stage, progress))


def load_listed(run: Run, stage: Stage) -> TrainingRows | None:
    """The same from disk, without torch; None where they were not listed."""
    rows = load_training_rows(run, stage)
    return None if rows is None else with_known(run, rows)


def columns_of(rows: TrainingRows) -> tuple[str, ...]:
    """What a filter may ask for."""
    return (*_ASKED, *rows.facts.columns)


def by_filter(rows: TrainingRows, text: str) -> Chosen:
    """The examples that a filter chooses, see :mod:`stagelens.runs.where`.

    Raises:
        StageLensError: It cannot be read, asks for an unknown column, or chooses none.
    """
    stage = rows.facts.stage
    try:
        fits = where(rows.table, text, columns_of(rows), (_DIGEST,))
    except UnknownColumn as error:
        raise StageLensError(
            f"{error}; stagelens training-data RUN --stage {stage} stores what each says, where "
            "the task shows texts, whose labels are doubtful, and where else it occurs"
        ) from None
    ids = tuple(rows.table["example_id"][fits])
    if not ids:
        values = {name: values_of(rows.table[name]) for name in asked_columns(text)}
        told = "; ".join(f"{name} has {said}" for name, said in values.items() if said)
        raise StageLensError(
            f"no training example of stage {stage!r} fits {text!r}; "
            + (told or f"stagelens training-rows lists what there is in {', '.join(values)}")
        )
    return Chosen(stage, ids, f"with {text}")


def by_ids(rows: TrainingRows, ids: Sequence[str], words: str = "") -> Chosen:
    """Examples by their ids.

    Raises:
        StageLensError: There are none, or the stage has no such example.
    """
    if not ids:
        raise StageLensError("no ids of training examples were given; give at least one")
    rows.places(ids)  # the list's own words for an id that it does not have
    wanted = set(ids)
    return Chosen(
        rows.facts.stage, tuple(each for each in rows.table["example_id"] if each in wanted), words
    )


def by_values(
    rows: TrainingRows, chosen: Chosen, column: str, given: pd.DataFrame | None = None
) -> list[Chosen]:
    """The groups of a choice that have one value of a column each; the first seen comes first.

    Args:
        rows: The stage's examples.
        chosen: Some of them, or all.
        column: Of ``given``, else of ``rows``. Examples without a value are in no group.
        given: A table with ``example_id`` that may have the column.

    Raises:
        StageLensError: There is no such column, or no example has a value in it.
    """
    known = [*columns_of(rows), *(() if given is None else given.columns)]
    if column == "example_id" or column not in known:
        others = dict.fromkeys(name for name in known if name != "example_id")
        raise StageLensError(
            f"the training examples of {rows.facts.stage} have no column {column!r}; they have "
            f"{', '.join(others)}"
        )
    table = given if given is not None and column in given else rows.table
    values = table.set_index("example_id")[column].reindex(chosen.ids).dropna().astype(str)
    if values.empty:
        raise StageLensError(f"none of these training examples has a value in column {column!r}")
    return [
        Chosen(chosen.stage, tuple(own.index), one_line(f"with {column} {value}"))
        for value, own in values.groupby(values, sort=False)
    ]


def read_table(path: Path) -> pd.DataFrame | None:
    """What a .csv or .parquet file of ids holds, its first row of each id; None of other files.

    Raises:
        StageLensError: It cannot be read, or has no column ``example_id``.
    """
    if path.suffix not in (".csv", ".parquet"):
        return None
    ids, table = read_ids(path), _table_of(path)
    table = table[table["example_id"].notna()].assign(example_id=ids)
    return table.drop_duplicates("example_id")


def _table_of(path: Path) -> pd.DataFrame:
    """A .csv or .parquet file; of a .csv, NA and None are values like any other."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])


def read_ids(path: Path) -> list[str]:
    """Ids in a file: one a line, or the column ``example_id`` of a .csv or .parquet file.

    Raises:
        StageLensError: It cannot be read, or has no such column.
    """
    try:
        if path.suffix in (".csv", ".parquet"):
            table = _table_of(path)
            if "example_id" not in table:
                raise StageLensError(
                    f"{path} has no column example_id; it has {', '.join(map(str, table))}"
                )
            return [str(each) for each in table["example_id"].dropna()]
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise StageLensError(
            f"{path} cannot be read as ids of training examples ({error}); write one a line, or "
            "a .csv or .parquet file with a column example_id"
        ) from None
    return [line.strip() for line in lines if line.strip()]


class TrainingSlice(Versioned):
    """Training examples of a stage under a name.

    Attributes:
        name: As people call it.
        run_digest: The recording.
        stage: Whose examples.
        example_ids: Of the examples.
        words: Which they were when it was saved.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    run_digest: str
    stage: str
    example_ids: tuple[str, ...] = Field(min_length=1)
    words: str = ""


def save_slice(run: Run, name: str, chosen: Chosen) -> TrainingSlice:
    """Keep examples under a name; one of that name is replaced.

    Raises:
        StageLensError: The name cannot be used, or the run cannot be changed.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise StageLensError(str(error)) from None
    check_changeable("Slices of training examples")
    kept = TrainingSlice(
        name=name,
        run_digest=run.digest,
        stage=chosen.stage,
        example_ids=chosen.ids,
        words=chosen.words,
    )
    write_json(_slice_path(run, chosen.stage, name), kept)
    return kept


def _slice_path(run: Run, stage: str, name: str) -> Path:
    parts = (run.digest, stage, name, *example_key(run, stage))
    return run.files.inside(f"slices/training/{digest(*parts)[:32]}.json")


def by_slice(run: Run, stage: Stage, rows: TrainingRows, name: str) -> Chosen:
    """The examples of a slice.

    Raises:
        StageLensError: The stage has none of that name; says how to save one.
    """
    try:
        kept = read_json(_slice_path(run, stage.name, name), TrainingSlice)
    except RunError:
        raise StageLensError(
            f"stage {stage.name!r} has no slice {name!r} of training examples; save one: "
            f"stagelens training-rows RUN --stage {stage.name} --where FILTER --save {name!r}"
        ) from None
    return by_ids(rows, kept.example_ids, f"of slice {name}")
