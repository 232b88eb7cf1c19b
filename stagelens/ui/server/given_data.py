"""Data sets of runs whose batches are kept as rows of one: asked once, kept while the server runs.

A page takes the folder of a saved data set, which is read without running any code of it, below the
folders that may be opened. What has to be imported, ``STAGE=package.module:name``, only those can
give who start the server: ``stagelens app RUN --dataset ...``. Either is read by the commands that
pages start, never by a page.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

from stagelens.contracts import StageLensError
from stagelens.runs.data_rows import DATASETS

from . import settings

_SAVED, _SPLITS = "state.json", "dataset_dict.json"
"""Files of folders that ``save_to_disk`` wrote: of a data set, and of several splits."""

_given: dict[str, dict[str, str]] = {}
_lock = Lock()


def give(run: Path, stage: str, folder: str) -> None:
    """Keep the folder of a stage's data set for everybody who looks at the run here.

    Args:
        run: The run folder.
        stage: The stage's name.
        folder: As it was typed.

    Raises:
        StageLensError: It may not be opened, or no data set was saved there; says what to do.
    """
    found = settings.allowed(folder, "folder of a data set")
    if (found / _SPLITS).is_file():
        raise StageLensError(f"{folder} holds several splits; give the folder of one of them")
    if not (found / _SAVED).is_file():
        raise StageLensError(f"{folder} is not a folder that dataset.save_to_disk wrote")
    with _lock:
        _given.setdefault(str(run), {})[stage] = str(found)


def of_run(run: Path) -> dict[str, str]:
    """Stage to its data set, as a command takes it: a folder, or ``package.module:name``."""
    with _lock:
        typed = dict(_given.get(str(run), {}))
    started = os.environ.get("STAGELENS_RUN")
    if started is None or Path(started).resolve() != run.resolve():
        return typed
    pairs = (each.partition("=") for each in json.loads(os.environ.get(DATASETS) or "[]"))
    return {stage: target for stage, _, target in pairs} | typed


def environment(folders: Iterable[Path]) -> dict[str, str]:
    """What a command on these folders finds in its environment: no data set of another run."""
    found = [of_run(folder) for folder in folders]
    given = [f"{stage}={target}" for own in found for stage, target in own.items()]
    return {DATASETS: json.dumps(given)}


def forget() -> None:
    """Forget what was typed."""
    with _lock:
        _given.clear()
