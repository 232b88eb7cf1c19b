"""Recording one stage: its start, every update, its end."""

from __future__ import annotations

import copy
import platform
import time
import warnings
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.compute import devices
from stagelens.contracts import RecordingError, RecordingWarning
from stagelens.replaying.step import StepRules
from stagelens.runs.batches import flatten
from stagelens.runs.schema import Checkpoint, Environment, StageFile, StateRef
from stagelens.runs.states import capture, save_state
from stagelens.runs.step_records import StepRecord
from stagelens.runs.steps import FlatMicroBatch

from .best_model import Best
from .checked_steps import CheckedSteps, NotedStep
from .final_model import FinalModel
from .forward_passes import ForwardPasses
from .run_writer import RunWriter
from .stage_settings import StageSettings
from .stage_start import read_start
from .step_writer import StepWriter
from .watch import Watch


class StageRecorder:
    """Made by :meth:`Recorder.stage`; enter it around the training loop of one stage.

    Attributes:
        name: The stage's name.
        recording: Whether the block was entered and not left yet.
        problem: What replay could not reproduce, once it was found.
        advice: Follows in messages of problems.
    """

    def __init__(
        self,
        run: RunWriter,
        name: str,
        folder: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: StageSettings,
    ) -> None:
        self.name = name
        self.recording = False
        self.problem: str | None = None
        self.advice = ""
        self._run = run
        self._folder = folder
        self._model = model
        self._optimizer = optimizer
        self._settings = settings
        self._names = {id(p): n for n, p in model.named_parameters()}
        self._writer = StepWriter(run.path, folder, settings.flush_every)
        self._micro: list[FlatMicroBatch] = []
        self._micro_losses: list[Tensor | float] = []
        self._first_batches: list[Any] | None = []
        self._passes = ForwardPasses()
        self._best: Best | None = None
        self._at_best = False

    def __enter__(self) -> StageRecorder:
        self._run.begin(self)
        self._started = time.monotonic()
        settings, model, optimizer = self._settings, self._model, self._optimizer
        start = read_start(self._run, self.name, self._folder, model, optimizer, settings)
        self._facts = StageFile(
            name=self.name,
            description=settings.description,
            status="recording",
            optimizer=start.optimizer,
            boundary=start.boundary,
            trainable=start.trainable,
            clip_norm=settings.clip_norm,
            accumulation=settings.accumulation,
            keep_batches=settings.keep_batches,
            build_config=start.build_config,
            environment=_environment(next(model.parameters()).device),
            start=start.reference,
        )
        self._run.announce(self._facts, self._folder)
        self._checked = CheckedSteps(
            self.name,
            self._run.task,
            model,
            optimizer,
            self._names,
            start,
            settings.keeps,
        )
        self._watch = Watch(
            model,
            optimizer,
            self._names,
            settings.clip_norm,
            settings.keeps,
            self._checked,
            self.tell,
        )
        self.recording = True
        return self

    def tell(self, error: RecordingError) -> None:
        """A problem was found: go on with the stage's boundaries only, or stop.

        Raises:
            RecordingError: With ``on_problem="raise"``.
        """
        if self.advice:
            error = RecordingError(f"{error}. {self.advice}")
        if self._settings.on_problem == "raise":
            raise error
        if self.problem is not None:
            return
        self.problem = str(error)
        self._watch.checking = False
        self._announce(problem=self.problem, keep_batches="none")
        warnings.warn(
            f"stage {self.name!r} cannot be replayed: {error}. The training goes on, and the "
            "stage keeps its boundaries, losses and learning rates; to stop here instead, record "
            'with on_problem="raise"',
            RecordingWarning,
            stacklevel=3,
        )

    @property
    def final(self) -> FinalModel | None:
        """The model as the stage left it, unless it was interrupted or another stage began."""
        return self._run.final

    @property
    def steps_on_disk(self) -> int:
        """How many steps the last finished flush reached."""
        return self._writer.steps

    @property
    def steps(self) -> int:
        """How many steps were noted."""
        return self._watch.noted

    def step(self, batch: Any, loss: Tensor | float, divisor: float | None = None) -> None:
        """Note the update that just happened, or a micro-batch on the way to it.

        Call it after ``optimizer.step()``. Where gradients are accumulated, call it at the same
        place in every iteration of the loop: an iteration without an update is a micro-batch.
        Nothing is updated here, and the batch is copied. A problem is a warning, after which the
        stage goes on with its boundaries only, unless it is recorded with ``on_problem="raise"``.

        Args:
            batch: What ``task.loss`` was computed from: tensors, numbers and strings, nested in
                tuples, lists and dictionaries.
            loss: Its loss, divided by the accumulation or not.
            divisor: What the loss was divided by before backward, for loops in which that is not
                always the accumulation; then given for every micro-batch, with the loss undivided.

        Raises:
            RecordingError: The stage is not being recorded; or, with ``on_problem="raise"``,
                replay could not reproduce the step: says what to declare or change.
        """
        if not self.recording:
            raise RecordingError(
                f"stage {self.name!r} is not being recorded; call stage.step inside its with block"
            )
        # No float() of a tensor: it would make every step wait for the accelerator.
        self._micro_losses.append(loss.detach() if isinstance(loss, Tensor) else float(loss))
        if self.problem is None:
            try:
                self._note_and_check(batch, divisor)
            except RecordingError as error:
                self.tell(error)
        if self.problem is not None:
            self._note_loss()

    def _note_and_check(self, batch: Any, divisor: float | None) -> None:
        watch = self._watch
        keep = self._settings.keeps(watch.noted)
        description, tensors = flatten(batch) if keep else (None, [])
        self._micro.append(FlatMicroBatch(description, tensors, watch.take_rng(), divisor))
        # The first step is checked even if its batches are not kept; the loop may change them.
        if self._first_batches is not None and not keep:
            self._first_batches.append(copy.deepcopy(batch))
        if divisor is None and len(self._micro) > self._settings.accumulation:
            raise RecordingError(
                f"{len(self._micro)} batches were noted before update {watch.noted + 1}; call "
                "stage.step(batch, loss) after optimizer.step(), and declare gradient "
                "accumulation with stage(..., accumulation=G). Where a GradScaler skips updates, "
                "train without one"
            )
        # No update since the last note: this was a micro-batch on the way to one.
        if watch.updates == watch.noted:
            return
        first, self._first_batches = self._first_batches, None
        self._passes.check(watch, self._micro, keep)
        record = self._record([micro.divisor for micro in self._micro])
        noted = NotedStep(record, self._micro, self._micro_losses, first)
        try:
            self._checked.noted(noted, self._rules)
        except RecordingError as error:
            raise self._passes.explained(error, watch.noted, len(self._micro)) from None
        if first is not None:
            modes = {"evaluation_mode": watch.evaluation_mode or [], "precision": watch.precision}
            self._announce(**modes)
        self._writer.note(record, self._micro if keep else [], self._micro_losses)
        self._noted()

    def _note_loss(self) -> None:
        """Note what is left of a step once the stage cannot be replayed."""
        self._micro = []
        if self._watch.updates > self._watch.noted:
            losses = self._micro_losses
            self._writer.note(self._record([None] * len(losses)), [], losses)
            self._watch.updates = self._watch.noted + 1  # others may have been missed
            self._noted()

    def _record(self, divisors: list[float | None]) -> StepRecord:
        return StepRecord(
            step=self._watch.noted,
            loss=0.0,  # set when it is flushed
            groups=self._watch.groups,
            missing=self._watch.missing,
            divisors=tuple(divisors),
            batches=None,
        )

    def _noted(self) -> None:
        watch = self._watch
        watch.noted += 1
        watch.forwards = 0
        self._micro, self._micro_losses = [], []
        if self._checkpoint_due(watch.noted):
            self._checkpoint()
        elif self._writer.due:
            self._writer.flush()

    def _rules(self) -> StepRules:
        return StepRules(
            self._settings.accumulation,
            self._settings.clip_norm,
            self._watch.evaluation_mode or [],
            self._facts.trainable,
            self._watch.precision,
        )

    def _announce(self, **update: Any) -> None:
        """Write the stage's facts if something changes."""
        facts = self._facts.model_copy(update=update)
        if facts != self._facts:
            self._facts = facts
            self._run.announce(facts, self._folder)

    def _checkpoint(self) -> Checkpoint:
        """The training state as it is now, on disk, and all steps up to it."""
        if self.problem is None:
            try:
                self._watch.check_now()
            except RecordingError as error:
                self.tell(error)
        self._writer.flush()  # first: resuming needs every step before a checkpoint
        known = self._facts.checkpoints
        # A regular checkpoint and keep_best can come at the same step.
        if known and known[-1].step == self.steps:
            return known[-1]
        prefix = f"{self._folder}/checkpoint-{self.steps:06d}"
        checkpoint = Checkpoint(step=self.steps, state=self._save_state(prefix))
        self._announce(checkpoints=[*known, checkpoint], checked=[*self._checked.done])
        return checkpoint

    def _checkpoint_due(self, step: int) -> bool:
        return (
            self._settings.checkpoint_every is not None
            and step % self._settings.checkpoint_every == 0
        )

    def _save_state(self, prefix: str) -> StateRef:
        state = capture(self._model, self._optimizer, self._names)
        return save_state(self._run.path, prefix, state)

    def keep_best(self, metric: str, value: float) -> None:
        """Keep the current training state as the best so far, in place of the previous best.

        Args:
            metric: What is best about it, as the loop names it.
            value: Its value.

        Raises:
            RecordingError: The model is not as the newest update left it.
        """
        best = self._checkpoint()
        self._best = Best(best, metric, value)
        kept = [c for c in self._facts.checkpoints if c == best or self._checkpoint_due(c.step)]
        self._announce(checkpoints=kept)
        # After the facts: a process killed in between must not leave them naming missing files.
        self._tidy("checkpoint-*")

    def back_to_best(self) -> None:
        """End the stage at its best state, as the loop loaded that model after its last step.

        Later steps do not count: they are taken out of the run when the stage ends.

        Raises:
            RecordingError: No best model was kept, or the model is a different one.
        """
        if self._best is None:
            raise RecordingError(
                "the loop went back to its best model, but no best model was kept; call "
                "stage.keep_best(metric, value) at the step where it is found"
            )
        try:
            self._best.check(self._run.path, self._model)
        except RecordingError as error:
            self.tell(error)
        else:
            self._at_best = True

    def _tidy(self, pattern: str) -> None:
        """Delete files of the stage that its facts do not name any more."""
        named = {file.path for file in self._facts.files()} | {f"{self._folder}/stage.json"}
        for path in (self._run.path / self._folder).glob(pattern):
            if path.relative_to(self._run.path).as_posix() not in named:
                path.unlink()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.recording = False
        self._run.end()
        self._watch.close()
        self._writer.flush()  # first: whatever is wrong, what was noted is kept
        if kind is not None:
            return  # the stage stays unfinished, because its end is not known
        if self.problem is None:
            try:
                self._check_end()
            except RecordingError as error:
                self.tell(error)
        self._announce(checked=[*self._checked.done])
        self._checked.close()
        self._complete(time.monotonic() - self._started)
        # Last: whatever becomes of it, the stage is complete.
        self._run.final = FinalModel(self._run.path, self.name, self._model)

    def _complete(self, seconds: float) -> None:
        if self._best is not None and self._at_best:
            ending = self._best.ending(self._facts.checkpoints, self._writer.parts)
            self._announce(status="complete", seconds=seconds, **ending)
            self._tidy("*")
            return
        self._announce(
            status="complete",
            seconds=seconds,
            end=self._save_state(f"{self._folder}/end"),
            parts=list(self._writer.parts),
            steps=self.steps,
        )

    def _check_end(self) -> None:
        if self._watch.updates > self._watch.noted:
            raise RecordingError(
                "the last optimizer.step() was not noted; call stage.step(batch, loss) after it"
            )
        if self._watch.noted == 0:
            raise RecordingError(
                f"stage {self.name!r} has no step; call stage.step(batch, loss) after every "
                "optimizer.step() of the model and optimiser that the stage was given"
            )
        if not self._at_best:
            self._watch.check_now()
        self._checked.check(self._rules(), updated=not self._at_best)


def _environment(device: torch.device) -> Environment:
    return Environment(
        torch=torch.__version__,
        # The order of additions, and so the last bits, depend on how many threads share them.
        threads=torch.get_num_threads(),
        device=device.type,
        machine=f"{platform.system()} {platform.machine()}",
        arithmetic=devices.arithmetic(device),
    )
