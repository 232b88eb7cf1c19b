"""Arguments that several commands take, and how they open a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..contracts import TaskError
from ..runs.run import Run, open_run

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="MODULE:CLASS",
        help="The run's task, where it is not installed. It is made from the recorded config.",
    ),
]
ProgressFile = Annotated[Path | None, typer.Option("--progress", hidden=True)]


def opened_with(path: Path, task: str | None) -> Run:
    """The run, with the task that its user names; by default the installed one."""
    if task is None:
        return open_run(path)
    from ..tasks import load_task_class, make_task

    found = load_task_class(task)
    run = open_run(path)
    opened = open_run(path, make_task(found, run.file.task.config, run.task_assets()))
    _check_task(opened, task)
    return opened


def _check_task(run: Run, given: str) -> None:
    """Refuse a class that is not the run's, also where stored results would answer without it."""
    if run.task.name != run.file.task.name:
        raise TaskError(
            f"--task {given} is the task {run.task.name!r}, but the run was recorded with "
            f"{run.file.task.name!r}; give the class that it was recorded with"
        )
    if run.stages:
        from ..runs.states import load_into

        load_into(run.task.build_model(run.last.facts.build_config), run.last.end().model)
