"""What a recording writes about the run as a whole: run.json, and the facts of its stages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from stagelens.contracts import BASE, RecordingError, Task
from stagelens.runs.checked_files import CheckedFiles
from stagelens.runs.files import write_json
from stagelens.runs.run import Stage
from stagelens.runs.schema import RunFile, StageFile, StageRef

from .final_model import FinalModel, superseded


class OpenStage(Protocol):
    """A stage whose block may have been entered."""

    name: str
    recording: bool


class RunWriter:
    """The run folder of one recorder, and the contents of its run.json.

    Args:
        path: The run folder.
        task: The run's task.
        file: The contents of run.json.
        last: The last finished stage; None before the first.

    Attributes:
        begun: Stages that were begun since that one ended.
    """

    def __init__(self, path: Path, task: Task, file: RunFile, last: Stage | None) -> None:
        self.path, self.task, self.file, self.last = path, task, file, last
        self.begun: list[str] = []
        self._written = file
        self._open: OpenStage | None = None
        self.final: FinalModel | None = None

    def check_free(self, name: str) -> None:
        """Refuse a stage that cannot begin now.

        Raises:
            RecordingError: Another stage is being recorded, or the name is taken.
        """
        if self._open is not None and self._open.recording:
            raise RecordingError(
                f"stage {self._open.name!r} is still being recorded; leave its with block "
                "before the next stage"
            )
        # BASE names the boundary before the first stage, so no stage can be called that.
        if name == BASE or any(s.name == name for s in (*self.file.stages, *self.file.set_aside)):
            raise RecordingError(f"the name {name!r} is taken in this run; choose another")

    def begin(self, stage: OpenStage) -> None:
        """Called when a stage's block is entered.

        Raises:
            RecordingError: Another stage is being recorded, or the name was taken meanwhile.
        """
        self.check_free(stage.name)
        self._open = stage
        self.begun.append(stage.name)
        self.final = None
        superseded(self.path)

    def note(self, sentence: str) -> None:
        """A sentence for run.json, which is written when a stage is announced."""
        if sentence not in self.file.notes:
            notes = [*self.file.notes, sentence]
            self.file = self.file.model_copy(update={"notes": notes})

    @contextmanager
    def new_folder(self, folder: str) -> Iterator[None]:
        """A folder of the run that is deleted again if the block fails: nothing names its files."""
        path = self.path / folder
        there = path.exists()
        try:
            yield
        except BaseException:
            if not there:
                shutil.rmtree(path, ignore_errors=True)
            raise

    def write_notes(self) -> None:
        """Write notes that no announcement has written yet.

        Raises:
            OSError: They cannot be written.
        """
        if self.file != self._written:
            self._write(self.file)

    def end(self, stage: OpenStage) -> None:
        """Called when a stage's block is left."""
        if self._open is stage:  # not one that was refused within another
            self._open = None

    def announce(self, facts: StageFile, folder: str) -> None:
        """Write a stage's facts, and list the stage in run.json; its sha256 once it is finished."""
        # stage.json first, so that run.json never lists a stage without one.
        sha256 = write_json(self.path / folder / "stage.json", facts)
        done = facts.status == "complete"
        # No digest before the end: stage.json is rewritten while its stage is recorded.
        reference = StageRef(name=facts.name, folder=folder, sha256=sha256 if done else None)
        others = [stage for stage in self.file.stages if stage.name != facts.name]
        if done or len(others) == len(self.file.stages):
            self._write(self.file.model_copy(update={"stages": [*others, reference]}))
        if done:  # kept, as opening the run takes longer with every stage
            self.begun = []
            index = 0 if self.last is None else self.last.index + 1
            self.last = Stage(CheckedFiles(self.path), facts, index, self.last, None)

    def _write(self, file: RunFile) -> None:
        write_json(self.path / "run.json", file)
        self.file = self._written = file
