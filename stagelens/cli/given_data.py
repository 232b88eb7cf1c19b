"""Data sets that a command is given, for stages whose batches are kept as rows of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from stagelens.contracts import RunError, imported
from stagelens.runs.data_rows import DATASETS

from .ending import set_until_end


def _use_datasets(given: list[str] | None) -> list[str] | None:
    if given:
        set_until_end(DATASETS, json.dumps(given))
    return given


DatasetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset",
        metavar="STAGE=MODULE:NAME",
        callback=_use_datasets,
        help="The data set that a stage was trained on, where its batches are kept as rows of one: "
        "the data set, its DataLoader, a function that returns either, or the folder of a saved "
        "data set; may be given several times.",
    ),
]


def given_datasets() -> dict[str, Any]:
    """Stage to the data set that the user gave for it.

    Raises:
        RunError: One cannot be imported, or is no folder.
    """
    return dict(map(_given, json.loads(os.environ.get(DATASETS, "[]"))))


def _given(one: str) -> tuple[str, Any]:
    stage, _, target = one.partition("=")
    if target and Path(target).expanduser().is_dir():
        return stage, Path(target).expanduser()
    found = imported(
        target,
        lambda why: RunError(
            f"--dataset {one} is no folder, and cannot be imported ({why}); give it as "
            "STAGE=package.module:name, with its package on the Python path, or as STAGE=FOLDER"
        ),
    )
    made = callable(found) and not hasattr(found, "__getitem__") and not hasattr(found, "dataset")
    return stage, found() if made else found
