"""Recording one stage: its start, every update, its end."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from stagelens.contracts import RecordingError
from stagelens.replaying.step import StepRules
from stagelens.replaying.training_loss import TrainingLoss
from stagelens.runs.optimizer_set import AnyOptimizer
from stagelens.runs.schema import Checkpoint
from stagelens.runs.states import TrainingState

from .best_model import Best, check_best
from .final_model import FinalModel
from .forward_passes import ForwardPasses
from .micro_batches import MicroBatches
from .no_checks import Checks, checks_for
from .noted_step import NotedStep
from .problems import Problems, in_words
from .row_batches import RowBatches, Rows
from .run_writer import RunWriter
from .stage_end import Ending, check_end, check_first_step, complete
from .stage_files import StageFiles
from .stage_objective import read_objective
from .stage_settings import StageSettings
from .stage_start import StageStart, read_start
from .stage_states import StageStates
from .stage_together import StageTogether
from .step_writer import StepWriter, record_of
from .update_count import UpdateCount
from .watch import Watch
from .weight_average import weight_average


class StageRecorder:
    """Made by :meth:`Recorder.stage`; enter it around the training loop of one stage.

    With ``on_problem="warn"`` nothing that goes wrong in here reaches the training loop: it is told
    in a warning, and the stage goes on with its boundaries only, or is not recorded.

    Attributes:
        name: The stage's name.
        recording: Whether the stage is being recorded: its block was entered and not left yet.
        problems: What is wrong with it.
    """

    def __init__(
        self,
        run: RunWriter,
        name: str,
        folder: str,
        model: nn.Module,
        optimizer: AnyOptimizer,
        settings: StageSettings,
    ) -> None:
        self.name = name
        self.recording = False
        self.problems = Problems(name, settings.on_problem == "raise")
        self._run = run
        self._folder = folder
        self._model, self._optimizer = model, optimizer
        self._settings = settings
        self._names = {id(p): n for n, p in model.named_parameters()}
        self._together = StageTogether(run.together, name, settings.kind, model)
        given = (model, optimizer, self._names, self._together.meetings)
        self._states = StageStates(run.path / folder, *given)
        ahead = run.foretelling(model, optimizer, settings)
        self._writer = StepWriter(run.path, folder, settings.flush_every, foretell=ahead)
        self._files: StageFiles | None = None
        self._checked: Checks | None = None
        self._watch: Watch | UpdateCount = UpdateCount(None)
        self._rows = RowBatches(name, settings.data, run, self._announce)
        self._micro = MicroBatches(settings.accumulation, self._rows)
        self._passes = ForwardPasses()
        self._ending = Ending()

    def __enter__(self) -> StageRecorder:
        self._started = time.monotonic()
        try:
            self._begin()
        # Not only what we refuse: the task, the disk or the memory may fail too.
        except Exception as error:
            self._lose(error, "is not recorded")
        return self

    def _begin(self) -> None:
        run, folder, settings, model = self._run, self._folder, self._settings, self._model
        given = (model, self._optimizer, settings, self.tell, self._states)
        run.begin(self, settings.parent)
        self._together.entered()
        with run.new_folder(folder):
            start = read_start(run, self.name, folder, *given)
            minimised = read_objective(run, folder, model, start, settings, self.tell)
            said = minimised.facts | self._together.facts() | self._rows.facts
            facts = start.facts(self.name, settings, self.problem, said)
            self._files = StageFiles(run, folder, facts)
        self._watch = UpdateCount(self._optimizer)
        self.recording = True
        self._together.begun(folder)
        if self.problem is None and minimised.loss is not None:
            try:
                self._watch_closely(start, minimised.loss)
            except Exception as error:
                self.tell(error)

    def _watch_closely(self, start: StageStart, loss: TrainingLoss) -> None:
        given = (self._model, self._optimizer, self._names)
        keeps, counting, shared = self._settings.keeps, self._watch, self._together.shared
        self._checked = checks_for(self.name, loss, *given, start, keeps, shared)
        clip = self._settings.clip_norm
        self._watch = Watch(*given, clip, keeps, self._checked, self.tell, shared)
        counting.close()

    @property
    def problem(self) -> str | None:
        """What replay could not reproduce, once it was found."""
        return self.problems.problem

    def tell(self, error: Exception) -> None:
        """A problem was found: go on with the stage's boundaries only, or stop.

        Raises:
            Exception: With ``on_problem="raise"``.
        """
        if not self.problems.costs_replay(error):
            return
        self._together.problem(str(self.problem))
        if isinstance(self._watch, Watch):
            self._watch.checking = False
        if self._checked is not None:
            self._checked.close()
        # Otherwise it is written with what comes next.
        with contextlib.suppress(Exception):
            self._announce(problem=self.problem, keep_batches="none")
        self.problems.warn()

    def _lose(self, error: Exception, what: str) -> None:
        """The stage has no boundaries: say so in the run, and leave the training alone."""
        self.recording = False
        self._run.end(self)
        self._together.lost(in_words(error))
        if not self.problems.costs_stage(error, what):
            return
        self._run.note(str(self.problems.lost))
        with contextlib.suppress(Exception):
            self._run.write_notes()
        self.problems.warn()

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

    def _agreed(self) -> list[int]:
        return [*self._checked.done] if self._checked else []

    def step(
        self, batch: Any, loss: Tensor | float, divisor: float | None = None, rows: Rows = None
    ) -> None:
        """Note the update that just happened, or a micro-batch on the way to it.

        Call it after ``optimizer.step()``; where gradients are accumulated, at the same place in
        every iteration: one without an update is a micro-batch. The batch is copied. A problem is a
        warning, after which the stage goes on with its boundaries only, or an error.

        Args:
            batch: What ``task.loss`` was computed from: tensors, numbers and strings, nested in
                tuples, lists and dictionaries.
            loss: Its loss, divided by the accumulation or not.
            divisor: What the loss was divided by before backward, for loops in which that is not
                always the accumulation; then given for every micro-batch, with the loss undivided.
            rows: The batch's row numbers, in order, in the ``dataset`` that the stage was given.

        Raises:
            RecordingError: With ``on_problem="raise"``, the stage is not being recorded, or replay
                could not reproduce the step: says what to declare or change.
        """
        if not self.recording:
            self._outside()
            return
        try:
            self._micro.add_loss(loss)
            if self.problem is None:
                self._note_and_check(batch, divisor, rows)
        except Exception as error:
            self.tell(error)
        if self.problem is not None:
            self._note_loss()

    def _outside(self) -> None:
        outside = RecordingError(
            f"stage {self.name!r} is not being recorded; call stage.step inside its with block"
        )
        if self.problems.costs_stage(outside, "takes no more steps"):
            self.problems.warn()

    def _note_and_check(self, batch: Any, divisor: float | None, rows: Rows) -> None:
        watch, micro, checked = self._watch, self._micro, self._checked
        assert isinstance(watch, Watch) and checked and self._files  # there is no problem yet
        keep = self._settings.keeps(watch.noted)
        micro.add(batch, watch.take_rng(), divisor, keep, watch.noted + 1, rows)
        # No update since the last note: this was a micro-batch on the way to one.
        if watch.updates == watch.noted:
            return
        first = micro.take_first()
        self._passes.check(watch, micro.flat, keep)
        record = record_of(self._watch, [one.divisor for one in micro.flat])
        try:
            checked.noted(NotedStep(record, micro.flat, micro.losses, first), self._rules)
        except RecordingError as error:
            found = self._passes.explained(error, watch.noted, len(micro.flat))
            raise watch.explained(found) from None
        if first is not None or watch.strays.zeroed != self._files.facts.zeroed:
            self._announce(**watch.facts)
        self._writer.note(record, micro.flat if keep else [], micro.losses)
        self._noted()

    def _note_loss(self) -> None:
        """Note what is left of a step once the stage cannot be replayed."""
        losses = self._micro.only_losses()
        if self._watch.updates <= self._watch.noted:
            return
        self._watch.updates = self._watch.noted + 1  # others may have been missed
        try:
            self._writer.note(record_of(self._watch, [None] * len(losses)), [], losses)
            self._noted()
        except Exception:  # it was told that the stage keeps little; now it keeps less
            self._writer.stop()

    def _noted(self) -> None:
        self._watch.noted += 1
        self._watch.forwards = 0
        self._micro.clear()
        if self._settings.checkpoint_due(self._watch.noted):
            self._checkpoint()
        elif self._writer.due:
            if self.problem is None:
                self._together.hear(self.tell)
            self._writer.begin_flush()

    def _rules(self) -> StepRules:
        assert isinstance(self._watch, Watch) and self._files is not None
        # Where its first step has not been written yet.
        return replace(StepRules.of(self._files.facts).of_one, **self._watch.facts)

    def _announce(self, **update: Any) -> None:
        if self._files is not None:
            self._files.announce(**update)

    def _checkpoint(self) -> Checkpoint | None:
        """The training state now, on disk, and all steps up to it; None if it cannot be written."""
        assert self._files is not None
        with self._states.due(f"step {self.steps}"):
            if self.problem is None and isinstance(self._watch, Watch):
                try:
                    self._watch.check_now()
                except RecordingError as error:
                    self.tell(error)
            self._writer.flush()  # first: resuming needs every step before a checkpoint
            if self._writer.stopped:
                return None
            return self._files.checkpoint(
                self.steps, self._state, self._watch.calls, self._agreed()
            )

    def _state(self) -> TrainingState:
        known = self._files is not None and self._files.facts.optimizer is not None
        return self._states.take(f"step {self.steps}", known, self._ending.averaged)

    def keep_best(self, metric: str, value: float) -> None:
        """Keep the current training state as the best so far, in place of the previous best.

        Args:
            metric: What is best about it, as the loop names it.
            value: Its value.

        Raises:
            RecordingError: With ``on_problem="raise"``, the newest update did not leave it so.
        """
        if not self.recording or self._files is None:
            return
        try:
            if (best := self._checkpoint()) is not None:
                self._ending.best = Best(self._run.path, best, metric, value)
                self._files.drop_checkpoints(best, self._settings.checkpoint_due)
        except Exception as error:
            self.tell(error)

    def back_to_best(self) -> None:
        """End the stage at its best state, as the loop loaded that model after its last step.

        Later steps do not count: they are taken out of the run when the stage ends.

        Raises:
            RecordingError: With ``on_problem="raise"``, no best model was kept, or the model is a
                different one.
        """
        if not self.recording:
            return
        try:
            check_best(self._ending.best, self._model)
            self._ending.at_best = True
        except Exception as error:
            self.tell(error)

    def ends_with(self, averaged: AveragedModel, first: int = 1, every: int = 1) -> None:
        """End the stage with an average of its weights, from which the next one starts.

        Call it after the last step, before the average is loaded into the model that was trained.

        Args:
            averaged: Made for the stage; ``update_parameters`` was called after its updates.
            first: Step, from 1, after which the first weights were taken in.
            every: Steps from one to the next.

        Raises:
            RecordingError: With ``on_problem="raise"``, replay could not average so.
        """
        if not self.recording:
            return
        self._ending.averaged = None  # what was said last counts
        try:
            rule = weight_average(averaged, self.steps, first, every)
            if self.problem is None:
                self._check_end()
            self._announce(average=rule)
        except Exception as error:
            self.tell(error)
        self._ending.averaged, self._ending.steps = averaged.module, self.steps

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.recording:  # there was nothing to record into
            return
        self.recording = False
        self._run.end(self)
        try:
            self._watch.close()
            self._writer.flush()  # first: whatever is wrong, what was noted is kept
        except Exception as problem:
            self.tell(problem)
        if kind is not None:  # the stage stays unfinished, because its end is not known
            self._together.left(self._writer.parts)
            return
        try:
            self._end()
        except Exception as problem:
            self._lose(problem, "was not finished")

    def _end(self) -> None:
        assert self._files is not None
        average = self._files.facts.average
        if self.problem is None:
            try:
                self._check_end()
            except Exception as error:
                average = None
                self.tell(error)
        parallel = self._together.gather(self._writer.parts, self.tell)
        if parallel is not None and self._checked is not None and self.problem is None:
            own = {"parallel": parallel, "parts": self._writer.parts}
            stage = (self._run.path, self._files.facts, own, self._settings.data)
            check_first_step(self._checked, *stage, self.tell)
        agreed, why = self._agreed(), None
        if self._checked is not None:
            self._checked.close()
            why = None if agreed or self.problem else self._checked.why
        told = {"checked": agreed, "unchecked": why, "average": average, "parallel": parallel}
        given = (self._files, self._writer, self._ending, self._states, self._watch)
        complete(*given, self._settings.keep_optimizer, self._started, told)
        self._together.done()
        # Last: whatever becomes of it, the stage is complete.
        self._run.keep_final(self.name, self._ending.averaged or self._model)

    def _check_end(self) -> None:
        watch, checked = self._watch, self._checked
        assert isinstance(watch, Watch) and checked is not None
        check_end(self.name, watch, checked, self._rules(), self._ending)
