"""What a recording writes about the run as a whole: run.json, and the facts of its stages."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from torch import nn

from stagelens.contracts import BASE, RecordingError, Task
from stagelens.runs.boundary_facts import Merge
from stagelens.runs.checked_files import CheckedFiles
from stagelens.runs.files import write_json
from stagelens.runs.lineage import NEWEST, common
from stagelens.runs.optimizer_set import AnyOptimizer
from stagelens.runs.run import Stage, open_run
from stagelens.runs.schema import RunFile, StageFile, StageRef, StateRef
from stagelens.runs.steps import FlatStep

from .final_model import FinalModel, superseded
from .size_ahead import SizeAhead, tell_size
from .stage_settings import StageSettings
from .together import Together


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
        together: This process among those that train together.

    Attributes:
        before: What the stage that began last started from; None where that is the base.
        begun: Stages that were begun since that one ended.
        ahead: How large the run becomes, from its first step on.
    """

    def __init__(
        self,
        path: Path,
        task: Task,
        file: RunFile,
        last: Stage | None,
        together: Together | None = None,
    ) -> None:
        self.path, self.task, self.file, self.last = path, task, file, last
        self.before = last
        self.together = together or Together()
        self.begun: list[str] = []
        self._parents: list[str] | None = None
        self._written = file
        self._open: OpenStage | None = None
        self.final: FinalModel | None = None
        self.ahead: SizeAhead | None = None
        self._foretold = False

    def refresh(self) -> None:
        """Take in what the main process has written; it knows that by itself."""

    def merged(self, name: str) -> Merge | None:
        """A merge that the main process has noted; it has to do so itself."""
        return None

    def close(self) -> None:
        """Tell other processes that no stage begins any more."""
        with contextlib.suppress(Exception):  # a training that ended has no store any more
            self.together.say("closed", error="its recorder was closed")

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

    def check_parent(self, parent: str | None) -> None:
        """Refuse a parent that is no finished stage of the run.

        Raises:
            RecordingError: Lists those that are.
        """
        known = [one.name for one in self.file.stages if one.sha256 is not None]
        if parent not in (None, BASE, *known):
            raise RecordingError(
                f"parent={parent!r} is no finished stage of run {self.file.name!r}, which has "
                f"{', '.join(map(repr, known)) or 'none'}; give one of them, or {BASE!r}"
            )

    def begin(self, stage: OpenStage, parent: str | None = None) -> None:
        """Called when a stage's block is entered.

        Args:
            stage: Begins.
            parent: The stage that it starts from; None for the one that ended last.

        Raises:
            RecordingError: Another stage is being recorded, or the name was taken meanwhile.
        """
        self.check_free(stage.name)
        self.check_parent(parent)
        usual = BASE if self.last is None else self.last.name
        self._parents, self.before = None, self.last
        if parent is not None and parent != usual:
            # A branch: nothing was lost between its parent and itself.
            self._parents, self.before, self.begun = [parent], self._stage(parent), []
        self._open = stage
        self.begun.append(stage.name)
        self.final = None
        superseded(self.path)

    def begin_merge(self, name: str, parents: Sequence[str]) -> None:
        """What is announced next is a merge of these; its history is what they have in common.

        Raises:
            RecordingError: A stage is being recorded, or the name is taken.
        """
        self.check_free(name)
        known = open_run(self.path, self.task, leaf=NEWEST).lineage
        shared = common([known.history(each) for each in parents])
        self._parents, self.begun = list(parents), []
        self.before = self._stage(shared[-1]) if shared else None
        self.final = None
        superseded(self.path)

    @property
    def base(self) -> StateRef | None:
        """What the run begins with; None before its first stage."""
        if self.last is None:
            return None
        return open_run(self.path, self.task, leaf=NEWEST).stages[0].facts.start

    def _stage(self, name: str) -> Stage | None:
        """A finished stage with those before it; None for the base."""
        if name == BASE:
            return None
        return open_run(self.path, self.task, leaf=name).last

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

    def foretelling(
        self, model: nn.Module, optimizer: AnyOptimizer, settings: StageSettings
    ) -> Callable[[FlatStep], None] | None:
        """What says, at the first step of the first stage, how large the run becomes."""
        if self.last is not None or self._foretold:
            return None

        def tell(step: FlatStep) -> None:
            self._foretold = True
            # Whatever fails here, the training and its recording go on.
            with suppress(Exception):
                count = self.together.count
                self.ahead = SizeAhead.of(model, optimizer, step, settings, count)
                tell_size(self.path, self.ahead)

        return tell

    def keep_final(self, stage: str, model: nn.Module) -> None:
        """Remember the model that a finished stage left, to tell whether it is changed later."""
        with suppress(RuntimeError, MemoryError):
            self.final = FinalModel(self.path, stage, model)

    def check_final(self) -> None:
        """Warn if the model of the last stage was changed after it."""
        if self.final is not None:
            self.final.check()

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
        reference = StageRef(
            name=facts.name,
            folder=folder,
            sha256=sha256 if done else None,
            parents=self._parents,
        )
        others = [stage for stage in self.file.stages if stage.name != facts.name]
        if done or len(others) == len(self.file.stages):
            self._write(self.file.model_copy(update={"stages": [*others, reference]}))
        if done:  # kept, as opening the run takes longer with every stage
            self.begun = []
            index = 0 if self.before is None else self.before.index + 1
            self.last = Stage(CheckedFiles(self.path), facts, index, self.before, None)

    def _write(self, file: RunFile) -> None:
        write_json(self.path / "run.json", file)
        self.file = self._written = file
