"""Recording the trainings of ``transformers.Trainer``, each as one stage."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stagelens.contracts import Objective, RecordingError, RecordingWarning, Task

from .computed_losses import ComputedLosses, trainer_that_calls
from .final_model import FinalModel
from .infer_task import task_of_stage
from .loader_rows import LoaderRows, rows_told
from .notes import note_in_run
from .problems import in_words
from .recorder import Recorder
from .stage_recorder import StageRecorder
from .stage_settings import StageSettings
from .trainer_objective import TrainerObjective, objective_of
from .trainer_settings import TrainerSettings
from .training_passes import TrainingPasses

_KNOWN = (
    "What the Trainer gives to the model is recorded, and what it does with the model's own loss; "
    "what a subclass or another callback adds to that, to gradients or to weights is not known"
)


class StageRecorderCallback(TrainerCallback):
    """Records a ``transformers.Trainer`` training as a stage of a run.

    Successive trainings become stages of one run: give each Trainer a callback of its own, with the
    same ``path``. A second training, in the same process or in another, starts from what the first
    left: its model, or that model saved and loaded again.

    It records the keyword arguments of every training pass (what the model really saw, after
    collation), the loss (the model's own, that of ``label_smoothing_factor`` or of
    ``compute_loss_func``, or another objective), what it was divided by before backward, parameter
    groups and schedule, clipping, accumulation, random state, the noise of
    ``neftune_noise_alpha``, and mixed precision where it is bfloat16. Evaluation, logging and
    saving within the training do not matter. Where the Trainer loads its best model at the end
    (``load_best_model_at_end``), the stage ends at the step where that was found, and so
    does its replay. What replay could not reproduce is told by name, when the training begins or at
    the step where it shows. The training goes on: whatever happens in here, it is not stopped.

    A training that is interrupted leaves a stage that is not finished. The next callback on the
    folder goes on as ``Recorder(..., resume=True)`` does: from the newest checkpoint, if
    ``checkpoint_every`` made any; otherwise that stage is set aside. So with ``checkpoint_every``
    equal to the Trainer's ``save_steps``, ``trainer.train(resume_from_checkpoint=...)`` goes on
    where the recording ended, as a stage with another name.

    Args:
        path: The run folder; the first training creates it.
        stage: The stage's name, unique within the run.
        task: What the model takes as input and what it answers; by default read off the model,
            which then must be a sequence classifier or a causal language model of
            ``transformers`` with a tokenizer (``Trainer(processing_class=...)``).
        description: What the stage's data are, in words.
        keep_batches: ``"all"``, ``"none"``, or n to keep those of every n-th step. Replay needs
            all of them.
        as_rows: Keep batches as rows of ``train_dataset``, with a hash each, instead of themselves,
            as far as its rows make them again; what the Trainer adds to them is kept. The data set
            is then needed again, see ``dataset`` of :meth:`stagelens.Recorder.stage`.
        checkpoint_every: Steps between checkpoints within the stage; None for none.
        keep_optimizer: Write the optimiser's state at the stage's end.
        name: The run's name; by default the folder's.
        build_config: For ``task.build_model``, where this stage's model differs from the task's
            own.
        reinitialised: Parameters and buffers (names or prefixes) that were given new initial
            values on purpose before this stage.
        parent: The finished stage whose end this training starts from, where that is not the one
            that ended last; see :meth:`stagelens.Recorder.stage`.
        flush_every: Most steps between two writes to disk.
        on_problem: What to do where the training does something that replay could not reproduce,
            or something fails in here: ``"warn"``, and the stage goes on with its boundaries,
            losses and learning rates only, or is not recorded and the run says so; or ``"raise"``,
            which stops the training.
        objective: What the Trainer minimises, where a subclass computes a loss that cannot be read
            off its settings: a registered name, an :class:`~stagelens.Objective`, or a function
            ``loss(model, inputs)`` of your own, which is given again when the run is opened to be
            replayed.
        averaged: An average of the weights that ends the stage, or what gives it at its end; see
            :meth:`StageRecorder.ends_with`. List this callback before one that loads it into the
            model when the training ends.

    Raises:
        RecordingError: A setting of the recording itself is unusable.

    Example:
        >>> trainer = Trainer(                                          # doctest: +SKIP
        ...     model, args, train_dataset=data, processing_class=tokenizer,
        ...     callbacks=[StageRecorderCallback("runs/chat", stage="sft")],
        ... )
        >>> trainer.train()                                             # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        stage: str,
        *,
        task: Task | None = None,
        description: str = "",
        keep_batches: Literal["all", "none"] | int = "all",
        as_rows: bool = False,
        checkpoint_every: int | None = None,
        keep_optimizer: bool = False,
        name: str | None = None,
        build_config: Mapping[str, Any] | None = None,
        reinitialised: Sequence[str] = (),
        parent: str | None = None,
        flush_every: int = 1024,
        on_problem: Literal["warn", "raise"] = "warn",
        objective: str | Objective | Callable[..., Tensor] | None = None,
        averaged: AveragedModel | Callable[[], AveragedModel] | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self.stage = stage
        self._task = task
        self._name = name
        self._build_config = build_config
        self._settings: dict[str, Any] = {
            "description": description,
            "keep_batches": keep_batches,
            "checkpoint_every": checkpoint_every,
            "keep_optimizer": keep_optimizer,
            "reinitialised": reinitialised,
            "parent": parent,
            "flush_every": flush_every,
            "on_problem": on_problem,
        }
        self._as_rows = as_rows
        self._objective = objective
        self._averaged = averaged
        StageSettings(**self._settings)  # refuses what is unusable before anything is trained
        self._open: _Open | None = None
        self._final: FinalModel | None = None
        self._interrupt: weakref.finalize | None = None
        self._told = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Begin the stage.

        Raises:
            RecordingError: With ``on_problem="raise"``, the training cannot be recorded; says what
                to change.
        """
        self._told = False
        try:
            self._begin(args, state, **kwargs)
        # The folder, the model, the task or the disk: none of them may stop the training.
        except Exception as error:
            self._tell(error, f"stage {self.stage!r} is not recorded")

    def _begin(self, args: TrainingArguments, state: TrainerState, **kwargs: Any) -> None:
        settings = TrainerSettings.read(args, state, kwargs["optimizer"])
        place = str(self.path.resolve())
        if (before := _recording.get(place)) is not None:
            # It was interrupted, and its lock would refuse the new recorder.
            before.interrupt()
        # What fails before pop_all closes everything again, so that the folder is free.
        with ExitStack() as closing:
            trainer = trainer_that_calls(self)
            minimised = objective_of(trainer, self._objective)
            # Of several processes, each has a wrapped model.
            together = trainer is not None and args.world_size > 1
            trained = trainer.model_wrapped if together else kwargs["model"]
            stage, rows = self._enter(
                closing, settings, minimised, state.global_step, trained, **kwargs
            )
            stage.problems.advice = _KNOWN if minimised.objective is None else ""
            if minimised.objective is None:
                passes: _Passes = TrainingPasses(kwargs["model"], stage.tell)
            else:
                counts = minimised.objective.reads_micro_batches
                passes = ComputedLosses(trainer, stage.tell, counts)
            closing.callback(passes.close)
            self._open = _Open(stage, passes, rows, closing.pop_all())
        # The stage is interrupted when nothing holds this callback any more, or the process ends.
        self._interrupt = weakref.finalize(self, _leave, self._open.closing)
        _recording[place] = self

    def _enter(
        self,
        closing: ExitStack,
        settings: TrainerSettings,
        minimised: TrainerObjective,
        steps_before: int,
        trained: Any,
        *,
        model: Any,
        processing_class: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> tuple[StageRecorder, LoaderRows | None]:
        task, build_config, differing = self._task, self._build_config, ""
        if task is None:
            named = None if minimised.objective is None else minimised.objective.name
            task, own, differing = task_of_stage(self.path, model, processing_class, named)
            build_config = build_config or own
        there = (self.path / "run.json").exists()
        recorder = Recorder(self.path, task, self._name, resume=there)
        closing.callback(recorder.close)
        if steps_before and recorder.last is None:
            raise RecordingError(
                f"the Trainer goes on from step {steps_before} (resume_from_checkpoint), but run "
                f"{recorder.file.name!r} holds no stage that ends there; train from the beginning, "
                "with checkpoint_every=save_steps where a recording should survive an interruption"
            )
        if differing:
            recorder.note(
                f"stage {self.stage!r} was trained with a tokenizer that differs from the run's in "
                f"{differing}; texts of evaluation sets are read with the run's"
            )
        rows = rows_told(recorder, self.stage, train_dataloader) if self._as_rows else None
        if rows is not None:
            closing.callback(rows.close)
        stage = recorder.stage(
            self.stage,
            model=trained,
            optimizer=settings.optimizer,
            clip_norm=settings.clip_norm,
            accumulation=settings.accumulation,
            build_config=build_config,
            tokenizer=processing_class,
            objective=minimised.objective,
            references=minimised.references,
            kernels=settings.kernels,
            dataset=None if rows is None else rows.loader,
            **self._settings,
        )
        for problem in (settings.problem, minimised.problem):
            if problem is not None:
                stage.tell(problem)
        return closing.enter_context(stage), rows

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        """Note a micro-batch without an update."""
        self._note()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Note a micro-batch and the update that followed it."""
        self._note()

    def _note(self) -> None:
        if self._open is None:
            late = RecordingError(
                f"stage {self.stage!r} is not being recorded: give the callback to the Trainer "
                "before its training begins, and let only one at a time record into one folder"
            )
            self._tell(late)
            return
        try:
            self._open.note()
        except Exception as error:
            self.interrupt()
            self._tell(error, f"stage {self.stage!r} was interrupted")

    def _tell(self, error: Exception, what: str = "") -> None:
        """Tell, once in a training, what became of the stage and why; or raise."""
        if self._settings["on_problem"] == "raise" or isinstance(error, RecordingWarning):
            raise error
        if self._told:
            return
        self._told = True
        sentence = f"{what}: {in_words(error)}" if what else in_words(error)
        with suppress(Exception):  # the run may be what is wrong
            note_in_run(self.path, self._task, sentence)
        warnings.warn(
            f"{sentence}. The training goes on; to stop here instead, record with "
            'on_problem="raise"',
            RecordingWarning,
            stacklevel=4,
        )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Keep the state that ``load_best_model_at_end`` may go back to."""
        best = args.load_best_model_at_end and state.best_global_step == state.global_step
        if self._open is not None and best:
            metric, value = str(args.metric_for_best_model), float(state.best_metric or 0.0)
            self._open.stage.keep_best(metric, value)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Finish the stage.

        Raises:
            RecordingError: With ``on_problem="raise"``, weights are not as the last update, or the
                best step, left them.
        """
        if self._open is None or self._interrupt is None:
            return
        # The stage ends regularly from here on; the finaliser would mark it as interrupted.
        self._interrupt.detach()
        stage, closing, self._open = self._open.stage, self._open.closing, None
        try:
            with closing:
                if args.load_best_model_at_end and state.best_model_checkpoint is not None:
                    stage.back_to_best()
                elif self._averaged is not None:
                    given = self._averaged
                    # A model can be called too.
                    stage.ends_with(given if isinstance(given, AveragedModel) else given())
        except Exception as error:
            self._tell(error, f"stage {self.stage!r} was not finished")
        self._final = stage.final  # callbacks listed after this one may change it only now

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        """Warn if the model was changed after the training."""
        if self._final is not None:
            self._final.check()

    def on_predict(self, *_: Any, **__: Any) -> None:
        """Warn if the model was changed after the training."""
        self.on_evaluate()

    def interrupt(self) -> None:
        """Interrupt the stage and release the run folder; does nothing where none is open."""
        self._open = None
        if self._interrupt is not None:
            self._interrupt()


_Passes = TrainingPasses | ComputedLosses


@dataclass(frozen=True)
class _Open:
    """A stage that is being recorded, and what closes it."""

    stage: StageRecorder
    passes: _Passes
    rows: LoaderRows | None
    closing: ExitStack

    def note(self) -> None:
        """Note the newest pass, and the update that followed it, if any."""
        rows = None if self.rows is None else self.rows.take()
        if self.stage.problem is None:
            try:
                seen = self.passes.take()
            except RecordingError as error:
                self.stage.tell(error)
            else:
                self.stage.step(seen.inputs, seen.loss, seen.divisor, rows)
                return
        self.stage.step(None, self.passes.drop())


_recording: weakref.WeakValueDictionary[str, StageRecorderCallback] = weakref.WeakValueDictionary()
"""Run folder to the newest callback that recorded into it, in this process; weak, so that an
abandoned training is not kept alive. Not by its ``Path``, which cannot be compared any more while
the interpreter ends."""


def _leave(closing: ExitStack) -> None:
    """Leave a stage's block as an exception would: what was noted is written."""
    closing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
