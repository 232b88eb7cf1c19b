"""A run's task on disk: its registered name, its config, and the assets it is rebuilt from."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from stagelens.contracts import BESIDE, RunError, Task
from stagelens.tasks import is_installed_class

from .checked_files import CheckedFiles
from .files import write_file
from .schema import TaskRef, check_name

_ABSENT = object()


def write_task(root: Path, task: Task) -> TaskRef:
    """Write the task's assets below ``root/task``, for run.json to name them.

    Args:
        root: The run folder.
        task: Its config must be plain JSON.

    Raises:
        RunError: The name of an asset is not usable as a file name.
    """
    files = {}
    for name, content in sorted(task.assets.items()):
        try:  # the name comes from the task's author, and could lead out of the folder
            relative = f"task/{check_name(name)}"
        except ValueError as error:
            raise RunError(f"asset of task {task.name!r}: {error}") from None
        files[name] = write_file(root, relative, partial(Path.write_bytes, data=content))
    own = not is_installed_class(type(task), task.name)
    return TaskRef(name=task.name, config=task.config, files=files, own=own)


def read_assets(files: CheckedFiles, reference: TaskRef) -> dict[str, bytes]:
    """The task's assets, by name.

    Raises:
        RunError: One is missing or was changed after it was written; names the file.
    """
    return {name: files.path(file).read_bytes() for name, file in reference.files.items()}


def identity(reference: TaskRef) -> dict[str, Any]:
    """What distinguishes one task from another: name, config and content of its assets."""
    own: dict[str, Any] = {"name": reference.name, "config": reference.config}
    if reference.files:  # absent otherwise, so that digests of runs without any do not change
        own["files"] = _digests(reference)
    return own


def differing(reference: TaskRef, task: Task) -> list[str]:
    """In what a task is not a run's task: its name, keys of its configuration, its assets."""
    if reference.name != task.name:
        return [f"name ({reference.name!r}, not {task.name!r})"]
    recorded = _digests(reference)
    given = {
        name: hashlib.sha256(data).hexdigest()
        for name, data in task.assets.items()
        if name not in BESIDE
    }
    pairs = ((reference.config, task.config), (recorded, given))
    return [
        name
        for one, other in pairs
        for name in dict.fromkeys([*one, *other])
        if one.get(name, _ABSENT) != other.get(name, _ABSENT)
    ]


def _digests(reference: TaskRef) -> dict[str, str]:
    """sha256 of the assets that numbers may depend on, by name."""
    return {n: file.sha256 for n, file in reference.files.items() if n not in BESIDE}
