"""Opening a run folder: validated when opened, read when used. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from stagelens.contracts import BASE, Objective, RunError, Task

from .checked_files import CheckedFiles
from .data_rows import StageRows
from .files import read_json
from .given import GivenCode
from .identity import stage_identity
from .lineage import Lineage
from .objectives import check_given
from .remote import copy_of, is_remote
from .row_facts import check_datasets
from .schema import RunFile, StageFile, StageRef, digest
from .sets.evaluation_set import EvaluationSet
from .sets.seen import check_seen
from .stage import Stage as Stage
from .stage_parts import check_parts, told_of, unfinished
from .steps import recorded_digest
from .task_files import identity, read_assets


class Run:
    """One model's training history on disk.

    Where the run has several leaves, this is the history of one of them: everything that knows a
    run works along that path, and results are keyed by it.

    Attributes:
        path: The run folder.
        name: As given at recording.
        lineage: All stages of the run, with those that each started from.
        stages: The finished stages from the base to the leaf, in training order.
        unfinished: Stages whose recording was stopped or is still under way.
        problems: Sentences on what is missing or set aside, or worth knowing of the run.
    """

    def __init__(
        self,
        path: Path,
        file: RunFile,
        task: Task | None,
        objectives: Mapping[str, Any],
        leaf: str | None = None,
        datasets: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.file = file
        self.name = file.name
        self.stages: list[Stage] = []
        self.unfinished: list[Stage] = []
        self.problems: list[str] = list(file.notes)
        self.files = CheckedFiles(path)
        self._task, self._given, self._datasets = task, objectives, datasets or {}
        for asset in file.task.files.values():
            self.files.listed(asset)
        self.lineage = Lineage(path, file)
        for reference in self.lineage.path(leaf):
            self._open_stage(reference)
        for reference in file.set_aside:
            self.problems.append(
                f"stage {reference.name!r} was interrupted and set aside; its steps are still in "
                f"{reference.folder}"
            )
        facts = [stage.facts for stage in (*self.stages, *self.unfinished)]
        check_given(self.name, objectives, facts)
        # Those of other leaves too: one command may look at several.
        check_datasets(self.name, self._datasets, [each.name for each in file.stages])
        self.given = GivenCode(self.files, file.task, task, facts, objectives)

    @property
    def title(self) -> str:
        """Its name; with that of the leaf, where it has several models."""
        return f"{self.name}, leaf {self.leaf}" if self.leaf else self.name

    @property
    def leaf(self) -> str:
        """The stage whose model this is, where the run has several models; else empty."""
        return self.last.name if len(self.lineage.ends) > 1 and self.stages else ""

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
        elif (told := told_of(facts)) is not None:
            self.problems.append(told)
        if facts.status == "complete" and facts.end is None:
            raise RunError(f"{path}: end: missing in a finished stage; restore the original file")
        previous = self.stages[-1] if self.stages else None
        name = facts.name
        rows = StageRows(name, facts.rows, self._datasets.get(name), lambda x: self.task.collate(x))
        given = (previous, self._given.get(name), rows)
        stage = Stage(self.files, facts, len(self.stages), *given)
        for file in facts.files():
            self.files.listed(file)
        check_parts(self.path, facts)
        tip = BASE if previous is None else previous.name
        # One that was finished but not sealed, on another branch, is no part of this history.
        if facts.status == "complete" and self.lineage.before(facts.name) == tip:
            if previous is not None:
                previous.following = stage
            self.stages.append(stage)
        elif facts.status == "recording":
            self.unfinished.append(stage)

    def all_facts(self) -> list[StageFile]:
        """What the stage.json of every finished stage says, also of other branches."""
        return [
            read_json(self.files.inside(f"{one.folder}/stage.json"), StageFile, one.sha256)
            for one in self.file.stages
            if one.sha256 is not None
        ]

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
    leaf: str | None = None,
    datasets: Mapping[str, Any] | None = None,
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
        leaf: The stage whose model's history this is, for a run with branches: any of its stages,
            or :data:`~stagelens.runs.lineage.NEWEST`. None where there is only one leaf.
        datasets: Stage to the data set that it was trained on, where its batches are kept as rows
            of that: a map-style data set, its ``DataLoader``, or the folder where ``datasets``
            saved it. Each batch is checked against its hash when it is read.

    Raises:
        RunError: The folder is missing, damaged or foreign; names the file and the field. Or it has
            several leaves, and none was named.
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
    run = Run(folder, read_json(path, RunFile), task, objectives or {}, leaf, datasets)
    run.given.remember()
    return run
