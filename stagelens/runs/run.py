"""Opening a run folder: validated when opened, read when used. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stagelens.contracts import Objective, Refused, RunError, Task

from .boundary_facts import Environment
from .checked_files import CheckedFiles
from .files import read_json
from .given import GivenCode
from .identity import stage_identity
from .loss_tables import read_history, steps_table
from .objectives import check_given, find_stage_objective, missing_objective
from .remote import copy_of, is_remote
from .schema import (
    OptimizerFacts,
    RunFile,
    StageFile,
    StageRef,
    StateRef,
    digest,
)
from .sets.evaluation_set import EvaluationSet
from .sets.seen import check_seen
from .stage_parts import check_parts, told_of, unfinished
from .steps import RecordedSteps, recorded_digest, steps_of_all
from .task_files import identity, read_assets

if TYPE_CHECKING:
    from .states import TrainingState


class Stage:
    """A stage of a run. ``facts`` is its stage.json; states and steps are read when asked for.

    ``previous`` is the finished stage before it, None for the first. ``given`` is its objective as
    the user gave it, None to find it by its name.
    """

    def __init__(
        self, files: CheckedFiles, facts: StageFile, index: int, previous: Stage | None, given: Any
    ) -> None:
        self._files = files
        self.facts = facts
        self.index = index
        self.previous = previous
        self.name = facts.name
        self._given = given

    def __repr__(self) -> str:
        return f"Stage({self.name!r}, steps={self.steps})"

    @property
    def root(self) -> Path:
        """The run folder."""
        return self._files.root

    @property
    def steps(self) -> int:
        """How many optimiser steps were recorded."""
        return steps_of_all(self.facts.parts_of_each)

    @property
    def finished(self) -> bool:
        """Whether recording reached the stage's end."""
        return self.facts.status == "complete"

    @property
    def replayable(self) -> bool:
        """Whether the batches of all steps were kept."""
        return self.facts.keep_batches == "all" and self.steps > 0

    @property
    def updates(self) -> int:
        """How many optimiser steps the stage had, as recorded or reported by a Trainer; else 0."""
        return self.facts.updates or self.steps

    @property
    def optimizer(self) -> OptimizerFacts:
        """The optimiser as replay rebuilds it.

        Raises:
            Refused: No steps were recorded.
        """
        if self.facts.optimizer is None:
            raise Refused(self.not_recorded)
        return self.facts.optimizer

    @cached_property
    def objective(self) -> Objective:
        """What it minimised: as given to ``open_run``, else found by its registered name.

        Raises:
            Refused: It is not installed, or has to be given again; says how.
        """
        return find_stage_objective(self.name, self.facts.objective, self._given)

    def reference_state(self, name: str) -> TrainingState:
        """A reference model that the run keeps."""
        return self._state(self.facts.reference_states[name])

    @property
    def environment(self) -> Environment:
        """Where the stage was recorded.

        Raises:
            Refused: No steps were recorded.
        """
        if self.facts.environment is None:
            raise Refused(self.not_recorded)
        return self.facts.environment

    @property
    def appeared(self) -> list[str]:
        """What has no value, or fewer rows, before an assembled stage; empty for a recorded one."""
        if self.facts.origin == "recorded":
            return []
        return [*self.facts.boundary.new, *self.facts.boundary.grown]

    @property
    def not_recorded(self) -> str:
        """Why nothing that needs steps can be had of a stage without them, for messages."""
        if self.facts.problem is not None:
            return f"stage {self.name!r} cannot be replayed: {self.facts.problem}"
        return (
            f"no steps were recorded of stage {self.name!r}: this run was assembled from "
            "checkpoints; use --estimator task-vector, or record the stage while it is trained"
        )

    @property
    def no_replay(self) -> str:
        """Why its steps cannot be run again, and what would help; empty where they can be."""
        if self.facts.problem is not None:
            return f"stage {self.name!r} cannot be replayed: {self.facts.problem}"
        if self.facts.origin == "assembled":
            return (
                f"no steps were recorded of stage {self.name!r}, because this run was assembled "
                "from checkpoints; record stages while they are trained to have them replayed"
            )
        if self.replayable:
            return missing_objective(self.name, self.facts.objective, self._given)
        return (
            f"stage {self.name!r} cannot be replayed, because its batches were not all kept; "
            'record it with keep_batches="all"'
        )

    def table(self) -> pd.DataFrame:
        """One row per step: ``step``, ``loss`` and ``lr`` (of the first parameter group).

        Of an assembled stage, the steps that a Trainer reported, with NaN for what it left out.
        """
        if self.facts.history is not None:
            return read_history(self._files, self.facts.history)
        return steps_table(self._files, self.facts.parts_of_each)

    def read_steps(self) -> RecordedSteps:
        """The recorded steps by number, with their batches where they were kept."""
        return RecordedSteps(self._files, self.facts.parts_of_each)

    def start(self) -> TrainingState:
        """The training state after the boundary rule, before the first step."""
        return self._state(self.facts.start)

    def end(self) -> TrainingState:
        """The training state after the last step.

        Raises:
            RunError: The stage was not finished.
        """
        if self.facts.end is None:
            raise RunError(
                f"stage {self.name!r} was not finished, so it has no end state; resume recording "
                "with Recorder(path, resume=True)"
            )
        return self._state(self.facts.end)

    def within(self) -> Iterator[tuple[int, TrainingState]]:
        """The recorded checkpoints before the stage's end: steps so far, and the state then."""
        for checkpoint in self.facts.checkpoints:
            if checkpoint.step < self.steps:
                yield checkpoint.step, self._state(checkpoint.state)

    def _state(self, reference: StateRef) -> TrainingState:
        from .saved_states import load_state  # here, because it imports torch

        return load_state(self._files, reference)


class Run:
    """One model's training history on disk.

    Attributes:
        path: The run folder.
        name: As given at recording.
        stages: The finished stages, in training order.
        unfinished: Stages whose recording was stopped or is still under way.
        problems: Sentences on what is missing or set aside, or worth knowing of the run.
    """

    def __init__(
        self, path: Path, file: RunFile, task: Task | None, objectives: Mapping[str, Any]
    ) -> None:
        self.path = path
        self.file = file
        self.name = file.name
        self.stages: list[Stage] = []
        self.unfinished: list[Stage] = []
        self.problems: list[str] = list(file.notes)
        self.files = CheckedFiles(path)
        self._task, self._given = task, objectives
        for asset in file.task.files.values():
            self.files.listed(asset)
        for reference in file.stages:
            self._open_stage(reference)
        for reference in file.set_aside:
            self.problems.append(
                f"stage {reference.name!r} was interrupted and set aside; its steps are still in "
                f"{reference.folder}"
            )
        facts = [stage.facts for stage in (*self.stages, *self.unfinished)]
        check_given(self.name, objectives, facts)
        self.given = GivenCode(self.files, file.task, task, facts, objectives)

    @cached_property
    def digest(self) -> str:
        """Results are keyed by it: that of the recording, and of code that was given."""
        given = self.given.identity()
        return digest(self.recording, given) if given else self.recording

    @cached_property
    def recording(self) -> str:
        """Over the recorded training of the finished stages."""
        stages = [stage_identity(stage.facts) for stage in self.stages]
        steps = [recorded_digest(self.files, stage.facts.parts_of_each) for stage in self.stages]
        return digest(identity(self.file.task), list(zip(stages, steps, strict=True)))

    def __repr__(self) -> str:
        return f"Run({self.name!r}, stages={[stage.name for stage in self.stages]})"

    def _open_stage(self, reference: StageRef) -> None:
        path = self.files.inside(f"{reference.folder}/stage.json")
        facts = read_json(path, StageFile, reference.sha256)
        if facts.name != reference.name:
            raise RunError(
                f"{path}: name: {facts.name!r}, but run.json calls this stage {reference.name!r}; "
                "restore the original file"
            )
        if facts.status == "recording":
            facts, said = unfinished(self.files, reference.folder, facts)
            self.problems.append(said)
        elif (said := told_of(facts)) is not None:
            self.problems.append(said)
        if facts.status == "complete" and facts.end is None:
            raise RunError(f"{path}: end: missing in a finished stage; restore the original file")
        previous = self.stages[-1] if self.stages else None
        stage = Stage(self.files, facts, len(self.stages), previous, self._given.get(facts.name))
        for file in facts.files():
            self.files.listed(file)
        check_parts(self.path, facts)
        if facts.status == "complete":
            self.stages.append(stage)
        else:
            self.unfinished.append(stage)

    @cached_property
    def task(self) -> Task:
        """The run's task: the one given to ``open_run``, else found by its registered name.

        Raises:
            TaskError: It is not installed; says how to give it.
        """
        if self._task is not None:
            return self._task
        from stagelens.tasks import find_task  # here, because tasks may import torch

        return find_task(self.file.task.name, self.file.task.config, self.task_assets())

    def task_assets(self) -> dict[str, bytes]:
        """The small files that the task is rebuilt from, by name; read and checked now.

        Raises:
            RunError: One was changed after it was written.
        """
        return read_assets(self.files, self.file.task)

    def stage(self, name: str) -> Stage:
        """A finished stage by name.

        Raises:
            RunError: There is none of that name; lists those that exist.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise RunError(
            f"run {self.name!r} has no finished stage {name!r}; it has "
            + (", ".join(repr(stage.name) for stage in self.stages) or "none")
        )

    def steps_after(self, stage: Stage) -> int:
        """How many steps a replay without ``stage`` has."""
        return sum(later.steps for later in self.stages[stage.index + 1 :])

    @property
    def last(self) -> Stage:
        """The last finished stage; its end is the final model.

        Raises:
            RunError: No stage is finished.
        """
        if not self.stages:
            raise RunError(
                f"run {self.name!r} has no finished stage yet, so there is no final model; "
                "finish recording a stage first"
            )
        return self.stages[-1]

    @property
    def set_names(self) -> list[str]:
        """Names of the evaluation sets, sorted."""
        folder = self.path / "sets"
        if not folder.is_dir():
            return []
        return sorted(p.parent.name for p in folder.glob("*/set.json"))

    def measurable_set(self, name: str) -> EvaluationSet:
        """An evaluation set that models of the run can be measured on.

        Raises:
            SetError: The run's task does not take such inputs.
            RunError: There is none of that name, or the task makes other inputs of it.
        """
        examples = self.evaluation_set(name)
        examples.check_fits(self.task)
        check_seen(examples, self.task)
        return examples

    def evaluation_set(self, name: str | None = None) -> EvaluationSet:
        """An evaluation set by name; for None the only one, else ``test``.

        Raises:
            RunError: There is none of that name; lists those that exist.
        """
        names = self.set_names
        if name is None:
            name = names[0] if len(names) == 1 else "test"
        if name not in names:
            listed = ", ".join(names) or "none yet"
            raise RunError(
                f"run {self.name!r} has no evaluation set {name!r} (it has: {listed}); add one "
                f"with: stagelens add-set {self.path} FILE --name {name}"
            )
        return EvaluationSet.open(self.path, name)


def open_run(
    path: str | Path,
    task: Task | None = None,
    objectives: Mapping[str, Objective | Callable[..., Any]] | None = None,
) -> Run:
    """Open a run folder.

    Only the JSON files are read, and the sizes of the files that they name; every other file is
    checked against its sha256 when it is first used. Weights are safetensors: nothing is ever
    unpickled, and no code is imported because the folder names it.

    Args:
        path: The run folder, or its address on a file system that ``fsspec`` knows
            (``s3://bucket/run``), to be read through a copy in the cache.
        task: The task, if it is not installed or needs code of your own (a ``build_model``).
        objectives: Stage to its objective, where that is a function of your own or is not
            installed.

    Raises:
        RunError: The folder is missing, damaged or foreign; names the file and the field.
    """
    folder = copy_of(str(path)) if is_remote(path) else Path(path).expanduser()
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder; give the path of a run folder")
    if not (folder / "run.json").is_file():
        raise RunError(
            f"{folder} is not a run folder (it has no run.json); record one with "
            "stagelens.Recorder, or make the demo with: stagelens demo digits --out DIR"
        )
    path = CheckedFiles(folder).inside("run.json")
    run = Run(folder, read_json(path, RunFile), task, objectives or {})
    run.given.remember()
    return run
