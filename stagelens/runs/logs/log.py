"""Scores of one model as a tool logged them: ids and contents, and numbers as they are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from stagelens.contracts import SetError
from stagelens.runs.sets.evaluation_set import few

Better = Literal["higher", "lower"]

ROW = ("example_id", "sample", "prompt", "content", "reference", "choices", "answer")
"""Columns of a log's rows; all but the first two are None where the log does not say."""


@dataclass(frozen=True)
class LogScorer:
    """What a log knows of a scorer.

    Attributes:
        name: As tables show it after ``score:``.
        better: Which numbers are better; None where the log does not say.
        lowest, highest: Possible numbers; None where that is not known.
        unit: Printed after numbers.
        version: Of the task or scorer; empty where it has none.
        settings: What else its numbers depend on, plain JSON.
    """

    name: str
    better: Better | None = None
    lowest: float | None = None
    highest: float | None = None
    unit: str = ""
    version: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies it."""
        names = ("name", "better", "lowest", "highest", "unit", "version")
        return {name: getattr(self, name) for name in names} | {"settings": dict(self.settings)}


@dataclass(frozen=True)
class Log:
    """What a tool logged of one model.

    Attributes:
        path: The file.
        tool: For instance ``lm-eval``; empty for a plain table.
        tool_version: As the log has it.
        task: What the tool calls the examples; empty where it has no name for them.
        model: How the tool opened the model, for instance a folder; empty where it does not say.
        rows: One per example and sample, with the columns :data:`ROW`: ids as text, ``sample``
            counted from 0, ``prompt`` as the model read it as far as the log knows, ``content`` its
            sha256, ``choices`` a tuple of texts.
        scorers: The scorers.
        values: Name of a scorer to its (N,) float64 scores, NaN where there is none.
        notes: What was left out, for people.
    """

    path: Path
    tool: str
    tool_version: str
    task: str
    model: str
    rows: pd.DataFrame
    scorers: Sequence[LogScorer]
    values: Mapping[str, np.ndarray]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Wanted:
    """What to take from a log.

    Attributes:
        scores: Names of scorers, metrics or columns; all that are there if empty.
        id_field: Where ids are: a column, a field of lm-eval's documents, or of the metadata of
            Inspect's samples; None for the log's own.
        filter_name: Of lm-eval's filters; None for all.
    """

    scores: Sequence[str] = ()
    id_field: str | None = None
    filter_name: str | None = None


def content_of(prompt: str) -> str:
    """sha256 of a prompt's UTF-8; what is compared where scores are matched with examples."""
    # Texts may hold lone surrogates, which have no encoding.
    return hashlib.sha256(prompt.encode(errors="backslashreplace")).hexdigest()


def checked_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of a log as a table, with the columns :data:`ROW`.

    Raises:
        SetError: There are none, or an example and sample appears twice.
    """
    if not rows:
        raise SetError(f"{path} holds no scored examples; give a log with samples in it")
    # As objects: pandas would make NaN of what is None.
    cells = [[row.get(name) for name in ROW] for row in rows]
    table = pd.DataFrame(cells, columns=list(ROW), dtype=object)
    table = table.astype({"example_id": "str", "sample": "int64"})
    known = table["content"].isna() & table["prompt"].notna()
    table.loc[known, "content"] = [content_of(each) for each in table.loc[known, "prompt"]]
    twice = table[table.duplicated(["example_id", "sample"])]
    if len(twice):
        raise SetError(
            f"{path}: {few(twice['example_id'].unique().tolist())} appears twice; ids must be "
            "unique (a column sample counts several answers to one prompt)"
        )
    return table


def number(value: Any) -> float | None:
    """A score as a number, as it is: truth values count 0 and 1; None for anything else."""
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return float(value)
    return None


def value_of(path: Path, name: str, example: str, value: Any) -> float:
    """A score of a table's cell, which may be text; NaN where it is empty.

    Raises:
        SetError: It is no number; names the example.
    """
    if value is None or value == "":
        return math.nan
    found = number(value)
    if found is None and isinstance(value, str):
        told = value.strip().lower()
        try:
            found = {"true": 1.0, "false": 0.0}.get(told) if told.isalpha() else float(told)
        except ValueError:
            found = None
        if told in ("nan", "na", "null", "none"):
            return math.nan
    if found is None:
        raise SetError(
            f"{path}: {name} of example {example!r} is {value!r}, which is no number; correct it, "
            "or leave it empty"
        )
    return found


def one_of(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of some names that a table has as a column."""
    return next((name for name in names if name in columns), None)
