"""Recording the trainings of PyTorch Lightning, each as one stage."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from stagelens.contracts import RecordingError, RecordingWarning, Task

from .loader_rows import LoaderRows, rows_told
from .notes import note_in_run
from .problems import in_words
from .recorder import Recorder
from .stage_recorder import StageRecorder
from .stage_settings import StageSettings

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:  # the older of its two names
    try:
        from pytorch_lightning import Callback
    except ModuleNotFoundError as error:
        raise RecordingError(
            "PyTorch Lightning is not installed; install it: pip install stagelens[lightning]"
        ) from error


class LightningStageRecorder(Callback):  # type: ignore[misc, unused-ignore]
    """Records a ``fit`` of PyTorch Lightning as a stage of a run.

    Successive trainings become stages of one run: give each Trainer a callback of its own, with the
    same ``path``. Updates may be automatic, or by ``manual_backward`` and the optimisers' ``step``;
    clipping by norm, accumulation and schedules are read off the Trainer. ``training_step`` has to
    minimise ``task.loss(model, batch)``, and to call the model itself, once per batch.

    Args:
        path: The run folder; the first training creates it.
        stage: The stage's name, unique within the run.
        task: What the model takes as input and what it answers; ``task.build_model`` makes the
            module that ``model`` names.
        model: Which attribute of the LightningModule is the model; ``""`` for the LightningModule
            itself.
        description: What the stage's data are, in words.
        keep_batches: ``"all"``, ``"none"``, or n to keep those of every n-th step. Replay needs
            all of them.
        as_rows: Keep batches as rows of the training's data set, with a hash each, instead of
            themselves, as far as its rows make them again. The data set is then needed again, see
            ``dataset`` of :meth:`stagelens.Recorder.stage`.
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
        on_problem: What to do where the training does something that replay could not reproduce:
            ``"warn"``, and the training goes on; or ``"raise"``, which stops it.

    Example:
        >>> recorder = LightningStageRecorder(                           # doctest: +SKIP
        ...     "runs/digits", stage="pretrain", task=task
        ... )
        >>> lightning.Trainer(callbacks=[recorder]).fit(module, loader)  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        stage: str,
        *,
        task: Task,
        model: str = "model",
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
    ) -> None:
        self.path = Path(path).expanduser()
        self.stage = stage
        self._task, self._model, self._name = task, model, name
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
        StageSettings(**self._settings)  # refuses what is unusable before anything is trained
        self._build_config = build_config
        self._open: StageRecorder | None = None
        self._rows: LoaderRows | None = None
        self._closing = ExitStack()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the stage."""
        try:
            with ExitStack() as closing:
                self._open = self._begin(closing, trainer, pl_module)
                self._closing = closing.pop_all()
        # The folder, the model, the task or the disk: none of them may stop the training.
        except Exception as error:
            self._tell(error, f"stage {self.stage!r} is not recorded")

    def _begin(self, closing: ExitStack, trainer: Any, pl_module: Any) -> StageRecorder:
        there = (self.path / "run.json").exists()
        recorder = Recorder(self.path, self._task, self._name, resume=there)
        closing.callback(recorder.close)
        self._rows = None
        if self._as_rows:
            self._rows = rows_told(recorder, self.stage, trainer.train_dataloader)
        if self._rows is not None:
            closing.callback(self._rows.close)
        stage = recorder.stage(
            self.stage,
            model=self._trained(pl_module),
            optimizer=trainer.optimizers,
            clip_norm=trainer.gradient_clip_val or None,
            accumulation=trainer.accumulate_grad_batches,
            build_config=self._build_config,
            dataset=None if self._rows is None else self._rows.loader,
            **self._settings,
        )
        if (problem := _unlike(trainer)) is not None:
            stage.tell(problem)
        entered = closing.enter_context(stage)
        # Where steps are not watched, a class that runs its closure otherwise is left as it is.
        for optimizer in trainer.optimizers if entered.problem is None else ():
            closing.callback(_with_closures_first(optimizer))
        return entered

    def _trained(self, pl_module: nn.Module) -> nn.Module:
        found = getattr(pl_module, self._model, None) if self._model else pl_module
        if not isinstance(found, nn.Module):
            raise RecordingError(
                f"the LightningModule has no module called {self._model!r}; name the one that is "
                'trained, LightningStageRecorder(..., model=NAME), or model="" for all of it'
            )
        return found

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note a batch, and the update that followed it, if any."""
        if self._open is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        try:
            rows = None if self._rows is None else self._rows.take()
            self._open.step(batch, float("nan") if loss is None else loss, rows=rows)
        except Exception as error:
            self._leave(error)
            self._tell(error, f"stage {self.stage!r} was interrupted")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the stage."""
        if self._open is not None:
            try:
                self._leave(None)
            except Exception as error:
                self._tell(error, f"stage {self.stage!r} was not finished")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Keep what was recorded of a training that fails or is stopped."""
        if self._open is not None:
            with suppress(Exception):
                self._leave(exception)

    def _leave(self, error: BaseException | None) -> None:
        """Leave the stage's block, as its loop ended."""
        self._open, closing = None, self._closing
        closing.__exit__(None if error is None else type(error), error, None)

    def _tell(self, error: Exception, what: str) -> None:
        if self._settings["on_problem"] == "raise":
            raise error
        sentence = f"{what}: {in_words(error)}"
        with suppress(Exception):  # the run may be what is wrong
            note_in_run(self.path, self._task, sentence)
        warnings.warn(
            f"{sentence}. The training goes on; to stop here instead, record with "
            'on_problem="raise"',
            RecordingWarning,
            stacklevel=4,
        )


def _unlike(trainer: Any) -> RecordingError | None:
    """What a Trainer does that replay does not."""
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
        return RecordingError(
            "the Trainer clips gradients by value, which replay does not; use "
            'Trainer(gradient_clip_algorithm="norm")'
        )
    if trainer.world_size > 1:
        return RecordingError(
            f"the training runs in {trainer.world_size} processes, each of which sees a part of "
            "the batches; record one that runs in a single process, Trainer(devices=1)"
        )
    if any(type(each).__name__ == "GradientAccumulationScheduler" for each in trainer.callbacks):
        return RecordingError(
            "the Trainer accumulates other numbers of batches in other epochs, which replay does "
            "not; use Trainer(accumulate_grad_batches=N)"
        )
    return None


def _with_closures_first(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Make an optimiser run a closure before its step, instead of within it; returns the undoing.

    Lightning gives every step a closure, which as a rule computes the gradients, and which every
    optimiser calls before anything else. So
    the updates stay what they are, but what watches a step finds the gradients in place.
    """
    before = optimizer.__dict__.get("step")  # schedulers put one there too
    plain = optimizer.step

    @wraps(plain)  # with the mark by which a scheduler knows it
    def step(closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plain()
        return loss

    optimizer.step = step  # type: ignore[method-assign]
    return partial(_restore, optimizer, before)


def _restore(optimizer: torch.optim.Optimizer, step: Any) -> None:
    if step is None:
        optimizer.__dict__.pop("step", None)
    else:
        optimizer.step = step  # type: ignore[method-assign]
