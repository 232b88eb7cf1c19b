"""Recording in the processes beside the main one: each writes the micro-batches that it saw."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from stagelens.contracts import RecordingError, Task
from stagelens.replaying.training_loss import loss_of_stage
from stagelens.runs.boundary_facts import Merge
from stagelens.runs.checked_files import CheckedFiles
from stagelens.runs.files import read_json
from stagelens.runs.lineage import NEWEST
from stagelens.runs.optimizer_set import AnyOptimizer
from stagelens.runs.run import Stage, open_run
from stagelens.runs.schema import Checkpoint, StageFile
from stagelens.runs.stage_parts import folder_of

from .parallel_models import check_shared, unwrapped_model
from .run_writer import OpenStage, RunWriter
from .stage_files import StageFiles
from .stage_objective import resolved
from .stage_recorder import StageRecorder
from .stage_settings import StageSettings
from .stage_start import followed_start
from .stage_together import PATIENCE
from .step_writer import StepWriter
from .together import Together
from .update_count import UpdateCount


def stage_in(
    run: RunWriter,
    name: str,
    folder: str,
    given: nn.Module,
    optimizer: AnyOptimizer,
    settings: StageSettings,
) -> StageRecorder:
    """What records a stage in this process.

    Args:
        run: Its run.
        name: The stage's name.
        folder: The stage's folder, as far as this process knows.
        given: The model as the loop has it.
        optimizer: Trains it.
        settings: As declared.
    """
    model = unwrapped_model(given)[0]
    made = StageRecorder if run.together.main else FollowedStage
    stage = made(run, name, folder, model, optimizer, settings)
    if run.together.count > 1 or settings.kind == "fsdp2":
        try:
            check_shared(given, settings.kind, run.together.count)
        except RecordingError as error:
            stage.tell(error)
    return stage


class FollowedRun(RunWriter):
    """The run folder of a process that is not the main one, which alone writes to it."""

    @classmethod
    def of(cls, path: Path, task: Task, together: Together) -> FollowedRun:
        """The run of the main process's recorder.

        Raises:
            RecordingError: The main process made none, or was refused.
        """
        told = together.wait("recorder", seconds=PATIENCE)
        if told is None:
            raise RecordingError(
                f"the main process made no recorder for {path} within {PATIENCE:.0f} seconds; make "
                "it in every process, with the same arguments"
            )
        if (why := told.get("error")) is not None:
            raise RecordingError(f"the main process: {why}")
        run = open_run(path, task, leaf=NEWEST)
        return cls(path, task, run.file, next(reversed(run.stages), None), together)

    def refresh(self) -> None:
        """Take in what the main process has written since, once it has written it."""
        if self._open is not None:
            self.together.wait(f"stage/{self._open.name}/done", seconds=PATIENCE)
        run = open_run(self.path, self.task, leaf=NEWEST)
        self.file, self.last = run.file, next(reversed(run.stages), None)

    def merged(self, name: str) -> Merge | None:
        """A merge that the main process has noted."""
        found = self._stage(name)
        return None if found is None else found.facts.merge

    def close(self) -> None:
        """Others are not concerned."""

    def check_free(self, name: str) -> None:
        """The main process refuses what cannot begin."""

    def check_parent(self, parent: str | None) -> None:
        """The main process refuses those that are none."""

    def begin(self, stage: OpenStage, parent: str | None = None) -> None:
        """Called when a stage's block is entered."""
        self._open = stage
        self.before = self.last if parent is None else self._stage(parent)

    def end(self, stage: OpenStage) -> None:
        """Called when a stage's block is left; the main process may still be writing its end."""

    @contextlib.contextmanager
    def new_folder(self, folder: str) -> Iterator[None]:
        """The main process makes it."""
        yield

    def write_notes(self) -> None:
        """The main process does."""

    def announce(self, facts: StageFile, folder: str) -> None:
        """The main process does."""


class FollowedStage(StageRecorder):
    """A stage in a process that is not the main one.

    The main process tells where it has begun, and is told at its end what this one wrote.
    """

    def _begin(self) -> None:
        run, settings = self._run, self._settings
        self._together.entered()
        if self._states.sharded:
            self._states.take("the stage's start", True)
        folder = self._together.where()
        run.refresh()
        run.begin(self, settings.parent)
        facts = read_json(run.path / folder / "stage.json", StageFile)
        self._folder = folder
        own = folder_of(folder, self._together.number)
        (run.path / own).mkdir(exist_ok=True)
        self._writer = StepWriter(run.path, own, settings.flush_every, schedule=False)
        self._files = StageFiles(run, folder, facts)
        self._rows.follow(facts.rows)
        self._watch = UpdateCount(self._optimizer)
        self.recording = True
        self.problems.problem = self.problem or facts.problem
        if self.problem is None:
            try:
                self._follow(facts)
            except Exception as error:
                self.tell(error)

    def _follow(self, facts: StageFile) -> None:
        run = self._run
        training = (self._model, self._optimizer, self._names)
        start = followed_start(run, facts, *training, self._states.sharded)
        given = resolved(self._settings.objective) if facts.objective is not None else None
        stage = Stage(CheckedFiles(run.path), facts, 0, run.before, given)
        self._watch_closely(start, loss_of_stage(run.task, stage, start.built))

    def _checkpoint(self) -> Checkpoint | None:
        self._writer.flush()  # a stage can be resumed where all processes have written their steps
        self._give()
        return None

    def _give(self) -> None:
        """Give this process's parts of a sharded model, where the main one writes its state."""
        if self._states.sharded:
            with contextlib.suppress(RecordingError):  # the main process says so too
                self._state()

    def back_to_best(self) -> None:
        """The main process compares, and takes later steps out of the run."""
        self._ending.at_best = True

    def _end(self) -> None:
        if self.problem is None:
            try:
                self._check_end()
            except Exception as error:
                self.tell(error)
        self._together.ended(self._writer.parts, self.problem)
        self._give()
