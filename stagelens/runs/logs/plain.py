"""Plain tables of scores: an id, a score, and what the example says, in CSV, JSON or parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stagelens.contracts import SetError
from stagelens.runs.sets.tables import read_table

from .log import Log, LogScorer, Wanted, checked_rows, one_of, value_of

IDS = ("id", "example_id")
PROMPTS = ("prompt", "text", "input")
CONTENT = "sha256"
REFERENCES = ("reference", "target")
ANSWERS = ("answer", "prediction", "response")
SAMPLES = ("sample", "epoch")
SCORE = "score"


def read(path: Path, wanted: Wanted) -> Log:
    """A table with ids and scores.

    Raises:
        SetError: It cannot be read, lacks a column, or a score is no number.
    """
    columns = read_table(path)
    names = list(columns)
    ids = wanted.id_field or one_of(names, IDS)
    if ids is None or ids not in columns:
        raise SetError(
            f"{path} has no column {ids or ' or '.join(IDS)!r} of ids; it has {', '.join(names)}: "
            "name the one with ids by --id"
        )
    scores = list(wanted.scores) or [SCORE]
    if unknown := [name for name in scores if name not in columns]:
        raise SetError(
            f"{path} has no column {unknown[0]!r} of scores; it has {', '.join(names)}: name "
            "those with scores by --score"
        )
    taken = {
        "prompt": one_of(names, PROMPTS),
        "content": one_of(names, [CONTENT]),
        "reference": one_of(names, REFERENCES),
        "answer": one_of(names, ANSWERS),
        "sample": one_of(names, SAMPLES),
    }
    own = {role: list(columns[name]) for role, name in taken.items() if name is not None}
    rows: list[dict[str, Any]] = []
    for at, example in enumerate(columns[ids]):
        if example is None or str(example) == "":
            raise SetError(f"{path}: row {at + 1} has no id; give every row one")
        row: dict[str, Any] = {role: _text(values[at]) for role, values in own.items()}
        row |= {"example_id": str(example), "sample": _sample(path, str(example), row)}
        rows.append(row)
    table = checked_rows(path, rows)
    texts = table["example_id"]
    values = {
        name: np.array(
            [
                value_of(path, name, example, value)
                for example, value in zip(texts, columns[name], strict=True)
            ]
        )
        for name in scores
    }
    # A column that is just called score is named after the file.
    named = {name: path.stem if name == SCORE else name for name in scores}
    scorers = [LogScorer(named[name]) for name in scores]
    return Log(path, "", "", "", "", table, scorers, {named[n]: v for n, v in values.items()})


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _sample(path: Path, example: str, row: dict[str, Any]) -> int:
    given = row.get("sample")
    try:
        return 0 if given is None else int(float(given))
    except ValueError:
        raise SetError(f"{path}: sample of {example!r} is {given!r}, which is no number") from None
