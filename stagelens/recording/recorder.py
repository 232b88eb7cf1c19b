"""Recording a run: one :class:`Recorder` per run folder, one ``with`` block per stage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stagelens.contracts import BASE, Objective, RecordingError, ReferenceModel, Task
from stagelens.replaying.optimizers import optimizer_facts
from stagelens.runs.boundary_facts import Merge
from stagelens.runs.data_rows import DataRows
from stagelens.runs.files import write_json
from stagelens.runs.lineage import NEWEST
from stagelens.runs.optimizer_set import as_one
from stagelens.runs.run import Run, Stage, open_run
from stagelens.runs.schema import RunFile, check_name
from stagelens.runs.sets.writer import SetReport, write_set
from stagelens.runs.states import load_into, load_optimizer
from stagelens.runs.task_files import differing, write_task

from .accelerated import unwrapped
from .carried_state import state_to_restore
from .folder_lock import FolderLock
from .following import FollowedRun, stage_in
from .merging import note_merge
from .parallel_models import unwrapped_model
from .resuming import end_at_checkpoint, reached, sealed
from .run_writer import RunWriter
from .size_ahead import SizeAhead
from .stage_recorder import StageRecorder
from .stage_settings import StageSettings
from .stage_together import PATIENCE
from .together import Together


class Recorder:
    """Records a run, stage by stage, into a folder.

    Args:
        path: The run folder; it must not hold anything yet, unless ``resume``.
        task: What the model takes as input and what it answers; replay trains on its ``loss``.
        name: The run's name; by default the folder's.
        resume: Continue a run that already exists. A stage that was interrupted ends at its
            newest checkpoint, or is set aside where it has none; nothing of it is deleted.

    Attributes:
        path: The run folder.
        task: As given.

    Raises:
        RecordingError: The folder is in use, not empty, or holds a run of another task.

    Example:
        >>> recorder = Recorder("runs/digits", task=task)           # doctest: +SKIP
        >>> with recorder.stage("pretrain", model=model, optimizer=optimizer) as stage:
        ...     for batch in loader:
        ...         loss = task.loss(model, batch)
        ...         optimizer.zero_grad(); loss.backward(); optimizer.step()
        ...         stage.step(batch, loss)
    """

    def __init__(
        self, path: str | Path, task: Task, name: str | None = None, *, resume: bool = False
    ) -> None:
        self.path = Path(path).expanduser()
        self.task = task
        self._lock: FolderLock | None = None
        together = Together.at(self.path)
        if not together.main:
            self._writer: RunWriter = FollowedRun.of(self.path, task, together)
            return
        try:
            self._open(name, resume, together)
        except BaseException as error:
            together.say("recorder", error=str(error))
            raise
        together.say("recorder")

    def _open(self, name: str | None, resume: bool, together: Together) -> None:
        there = (self.path / "run.json").exists()
        if there and not resume:
            raise RecordingError(
                f"{self.path} already holds a run; choose another folder, or add stages to it "
                "with Recorder(path, task, resume=True)"
            )
        # Hidden files are our own: the lock, and what a killed process was about to write.
        if not there and self.path.exists() and any(self.path.glob("[!.]*")):
            raise RecordingError(f"{self.path} is not empty and not a run; choose another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        # Before run.json is read: another recorder could be about to change it.
        self._lock = FolderLock(self.path)
        try:
            file = self._resumed(name) if there else self._begun(name)
            write_json(self.path / "run.json", file)
            last = next(reversed(self.run().stages), None) if there else None
            self._writer = RunWriter(self.path, self.task, file, last, together)
        # The caller gets no recorder that it could close.
        except BaseException:
            self.close()
            raise

    @property
    def file(self) -> RunFile:
        """What run.json says now."""
        return self._writer.file

    @property
    def size_ahead(self) -> SizeAhead | None:
        """What the run will take on disk, from the first step of its first stage on."""
        return self._writer.ahead

    def note(self, sentence: str) -> None:
        """Keep a sentence that people should know about the run; kept once a stage begins."""
        self._writer.note(sentence)

    @property
    def last(self) -> Stage | None:
        """The last finished stage; None before the first."""
        self._writer.refresh()
        return self._writer.last

    def close(self) -> None:
        """Release the folder, so that another recorder can continue it; happens at exit too.

        Warns if the model of the last stage was changed after the stage.
        """
        if (writer := self.__dict__.get("_writer")) is not None:  # none if it was refused
            writer.check_final()
            # Of a disk that is full or not there any more, a warning told already.
            with contextlib.suppress(OSError):
                writer.write_notes()
        if self._lock is not None:
            self._lock.close()
        if writer is not None:
            writer.close()

    def _begun(self, name: str | None) -> RunFile:
        try:
            own_name = check_name(name if name is not None else self.path.resolve().name)
        except ValueError as error:
            raise RecordingError(f"the run's name: {error}; pass name=...") from None
        return RunFile(name=own_name, task=write_task(self.path, self.task))

    def _resumed(self, name: str | None) -> RunFile:
        run = open_run(self.path, self.task, leaf=NEWEST)
        file = run.file
        if name is not None and name != file.name:
            raise RecordingError(
                f"{self.path} holds run {file.name!r}, not {name!r}; use that name"
            )
        if other := differing(file.task, self.task):
            raise RecordingError(
                f"{self.path} was recorded with another task, which differs in "
                f"{', '.join(other[:4])}; resume with the task that it was "
                "recorded with, open_run(...).task"
            )
        stages, set_aside = [], list(file.set_aside)
        for reference in file.stages:
            stage = next((s for s in run.unfinished if s.name == reference.name), None)
            if stage is None:
                stages.append(sealed(self.path, reference))
            # Only the last one: a stage after it did not start from this checkpoint.
            elif reference is file.stages[-1] and (newest := reached(stage)) is not None:
                stages.append(end_at_checkpoint(self.path, reference, stage, newest))
            else:
                set_aside.append(reference)
        return file.model_copy(update={"stages": stages, "set_aside": set_aside})

    def run(self) -> Run:
        """The run as it is on disk now: the history of the stage that ended last."""
        return open_run(self.path, self.task, leaf=NEWEST)

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        *,
        stage: str | None = None,
    ) -> str:
        """Load the end of a stage, to branch off there or to continue after an interruption.

        Args:
            model: Takes parameters and buffers.
            optimizer: Takes the optimiser's state too, to carry it over; made for ``model``, and
                of the same kind as the stage's. Learning rates are not part of its state.
            stage: A finished stage, or ``base`` for what the run begins with; None for the stage
                that ended last.

        Returns:
            A sentence that says which state was loaded.

        Raises:
            RecordingError: No stage is finished (begin again from the base), the optimiser is of
                another model, or its state was not kept.
            RunError: The model or the optimiser is of another kind than was recorded, or there is
                no such stage.
        """
        ended = self.last
        if ended is None:
            raise RecordingError(
                f"run {self.file.name!r} has no finished stage to continue from; start the first "
                "one again"
            )
        if stage == BASE:
            said, state = "what the run begins with", self.run().stages[0].start()
        else:
            if stage is not None:
                ended = open_run(self.path, self.task, leaf=stage).last
            said, state = f"the end of stage {ended.name!r} ({ended.steps} steps)", ended.end()
            if optimizer is not None:
                state = state_to_restore(self.path, self.file, ended)
        load_into(model, state.model)
        if optimizer is not None:
            names = {id(parameter): name for name, parameter in model.named_parameters()}
            own = as_one(optimizer)
            optimizer_facts(own, names)  # refuses an optimiser of another model
            load_optimizer(own, names, state.optimizer)
        return f"restored {said}"

    def stage(
        self,
        name: str,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        description: str = "",
        clip_norm: float | None = None,
        accumulation: int = 1,
        checkpoint_every: int | None = None,
        keep_batches: Literal["all", "none"] | int = "all",
        flush_every: int = 1024,
        build_config: Mapping[str, Any] | None = None,
        reinitialised: Sequence[str] = (),
        tokenizer: Any = None,
        on_problem: Literal["warn", "raise"] = "warn",
        objective: str | Objective | Callable[..., Tensor] | None = None,
        references: Mapping[str, nn.Module | ReferenceModel] | None = None,
        kernels: Sequence[str] = (),
        parent: str | None = None,
        keep_optimizer: bool = False,
        dataset: Any = None,
    ) -> StageRecorder:
        """A stage to record, as a context manager around its training loop.

        Args:
            name: Unique within the run.
            model: Trained in place; its state when the block is entered is the stage's start.
            optimizer: New, or the one of the stage before (its state is then carried over). A list
                where several train the model, each its own parameters, ``[muon, adamw]``; an update
                is when all of them have stepped. One that ``accelerate`` prepared says its
                accumulation itself.
            description: What the stage's data are, in words.
            clip_norm: The ``max_norm`` of the loop's ``clip_grad_norm_``, where it clips.
            accumulation: How many micro-batches' losses, each divided by this, make one update.
                Call ``stage.step`` after every backward pass, also those without an update.
            checkpoint_every: Steps between checkpoints within the stage; None for none.
            keep_batches: ``"all"``, ``"none"``, or n to keep those of every n-th step. Replay
                needs all of them.
            flush_every: Most steps between two writes to disk; what was not written is lost when
                the process is killed. It is also written every ten seconds, and every 64 MB.
            build_config: For ``task.build_model``, where this stage's model differs from the
                task's own (a head that appears later, say). Tasks on ``transformers`` models read
                it from a ``PeftModel`` themselves.
            reinitialised: Parameters and buffers (names or prefixes) that were given new initial
                values on purpose before this stage.
            tokenizer: The stage's, of ``transformers``; how it differs from the run's is kept with
                the stage.
            on_problem: What to do where the loop does something that replay could not reproduce.
                ``"warn"`` warns (:class:`~stagelens.contracts.RecordingWarning`), and the stage
                goes on with its boundaries, losses and learning rates only. So it does where our
                part fails, or the disk or the memory is full; a stage that has no boundaries either
                is not recorded, and the run says so. ``"raise"`` stops the training with an error.
            objective: What the loop minimises, where it is not ``task.loss``: a registered name, an
                :class:`~stagelens.Objective`, or a function ``loss(model, batch)`` of your own,
                which is given again when the run is opened to be replayed.
            references: The reference models of the objective, by name. The recorder finds the state
                of the run that each holds, as a rule the start of this stage, which is also what is
                assumed of those left out.
            kernels: Fused code that computes passes in place of the model's own, by name (a fused
                cross-entropy, say): it differs from what replay computes in the last bits. How far
                is measured, and numbers are estimated then, not exact. ``torch.compile`` is
                recognised where ``model`` is what it returned.
            parent: The finished stage whose end this one starts from, where that is not the one
                that ended last: it begins a branch (load that end with :meth:`restore`). ``base``
                for what the run begins with.
            keep_optimizer: Write the optimiser's state at the stage's end, twice as large as the
                weights with Adam. Without it, the next stage's start has it where that carries it
                on; until then it cannot be restored in another process.
            dataset: The stage's map-style data set, or its ``DataLoader``: batches whose row
                numbers :meth:`StageRecorder.step` is told are kept as these and a hash, and made
                again by ``collate_fn`` (of a bare data set of ``Example`` by the task's
                ``collate``, of others by torch's default one). Where that makes another batch than
                was used, as random augmentation does, the batches themselves are kept, which is
                told.

        Raises:
            RecordingError: The name is taken or unusable, or a setting is: nothing is trained yet.
            RunError: The data set has no rows that can be asked for by number.
        """
        self._writer.check_free(name)
        self._writer.check_parent(parent)
        folder = self._folder(name)
        optimizer, accumulation = unwrapped(optimizer, accumulation)
        given, (model, kind, compiled) = model, unwrapped_model(model)
        settings = StageSettings(
            description=description,
            clip_norm=clip_norm,
            accumulation=accumulation,
            checkpoint_every=checkpoint_every,
            # Every step of every 1 is all of them, and only "all" counts as replayable.
            keep_batches="all" if keep_batches == 1 else keep_batches,
            flush_every=flush_every,
            build_config=dict(build_config) if build_config is not None else None,
            reinitialised=tuple(reinitialised),
            tokenizer=tokenizer,
            on_problem=on_problem,
            objective=objective,
            references=dict(references or {}),
            kernels=(*kernels, "torch.compile") if compiled else tuple(kernels),
            parent=parent,
            keep_optimizer=keep_optimizer,
            kind=kind,
            data=None if dataset is None else DataRows(dataset, self.task.collate),
        )
        return stage_in(self._writer, name, folder, given, as_one(optimizer), settings)

    def _folder(self, name: str) -> str:
        """A new stage's."""
        try:
            check_name(name)
        except ValueError as error:
            raise RecordingError(f"the stage's name: {error}") from None
        # Set-aside stages keep their folders, so their numbers stay taken.
        number = len(self.file.stages) + len(self.file.set_aside)
        return f"stages/{number:02d}-{name.replace(' ', '_')}"

    def merge(self, name: str, *, model: nn.Module, parents: Sequence[str]) -> Merge:
        """Note a model that was merged from the ends of several stages, such as a soup.

        Its weights are found by least squares (see :mod:`stagelens.runs.merges`). A stage that is
        recorded next starts from it.

        Args:
            name: Unique within the run.
            model: What came out.
            parents: The finished stages that were merged, or ``base``.

        Raises:
            RecordingError: The name is taken, or a parent is no finished stage.
            RunError: A parent is of another architecture.
        """
        with self._writer.together.after_main(f"merge/{name}", PATIENCE):
            known = self._writer.merged(name)
            return known or note_merge(self._writer, name, self._folder(name), model, parents)

    def add_set(
        self,
        name: str,
        *,
        images: Any = None,
        texts: Sequence[str] | None = None,
        inputs: Mapping[str, Sequence[str | None]] | None = None,
        labels: Sequence[Any] | None = None,
        ids: Sequence[str] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        description: str = "",
        channels: Literal["first", "last"] | None = None,
    ) -> SetReport:
        """Add an evaluation set; see :func:`stagelens.runs.sets.writer.write_set`.

        Warns if the model of the last stage was changed after the stage.
        """
        self._writer.check_final()
        with self._writer.together.after_main(f"set/{name}", PATIENCE):
            return write_set(
                self.path,
                self.task,
                name,
                images=images,
                texts=texts,
                inputs=inputs,
                labels=labels,
                ids=ids,
                columns=columns,
                description=description,
                channels=channels,
            )
