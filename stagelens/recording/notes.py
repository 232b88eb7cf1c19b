"""Sentences about trainings that were not recorded."""

from __future__ import annotations

from pathlib import Path

from stagelens.contracts import Task
from stagelens.runs.lineage import NEWEST
from stagelens.runs.run import open_run

from .recorder import Recorder
from .together import alone, this_is_main


def note_in_run(path: Path, task: Task | None, sentence: str) -> None:
    """Keep a sentence about a training that was not recorded, if there is a run.

    Args:
        path: The run folder.
        task: The run's, or None if it is found by its name.
        sentence: What people should know.

    Raises:
        StageLensError: The run is damaged, has another task, or is being recorded.
    """
    if (path / "run.json").exists() and this_is_main():
        with alone():
            recorder = Recorder(path, task or open_run(path, leaf=NEWEST).task, resume=True)
        recorder.note(sentence)
        recorder.close()
