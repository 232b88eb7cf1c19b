"""Recording one stage: its start, every update, its end."""

from __future__ import annotations

import copy
import platform
import time
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..contracts import RecordingError
from ..runs.batches import flatten, unflatten
from ..runs.schema import Boundary, Checkpoint, Environment, PartRef, StageFile, StateRef
from ..runs.states import TrainingState, capture, model_tensors, same_tensor, save_state
from ..runs.steps import (
    FlatMicroBatch,
    FlatStep,
    MicroBatch,
    StepRecord,
    StepsDigest,
    write_part,
)
from ..training.optimizers import optimizer_facts
from ..training.replay import StepRules
from .boundary import find_boundary, first_boundary
from .first_step import check_first_step
from .watch import Watch

if TYPE_CHECKING:
    from .recorder import Recorder

_FLUSH_SECONDS = 10.0
_FLUSH_BYTES = 64 * 2**20


class StageRecorder:
    """Made by :meth:`Recorder.stage`; enter it around the training loop of one stage.

    Attributes:
        name: The stage's name.
        recording: Whether the block was entered and not left yet.
        steps_on_disk: How many steps the last finished flush reached.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        name: str,
        folder: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        description: str,
        clip_norm: float | None,
        accumulation: int,
        checkpoint_every: int | None,
        keep_batches: Literal["all", "none"] | int,
        flush_every: int,
        build_config: dict[str, Any] | None,
        reinitialised: tuple[str, ...],
    ) -> None:
        self.name = name
        self.recording = False
        self.steps_on_disk = 0
        self._recorder = recorder
        self._folder = folder
        self._model = model
        self._optimizer = optimizer
        self._description = description
        self._clip_norm = clip_norm
        self._accumulation = accumulation
        self._checkpoint_every = checkpoint_every
        self._keep_batches = keep_batches
        self._flush_every = flush_every
        self._build_config = build_config
        self._reinitialised = reinitialised
        self._names = {id(p): n for n, p in model.named_parameters()}
        self._pending: list[FlatStep] = []
        self._losses: list[list[Tensor | float]] = []
        self._pending_bytes = 0
        self._micro: list[FlatMicroBatch] = []
        self._micro_losses: list[Tensor | float] = []
        self._first_batches: list[Any] = []
        self._forwards_per_batch = 0
        self._parts: list[PartRef] = []
        self._digest = StepsDigest()
        self._checkpoints: list[Checkpoint] = []

    def __enter__(self) -> StageRecorder:
        self._recorder.begin(self)
        self._started = self._flushed = time.monotonic()
        optimizer = optimizer_facts(self._optimizer, self._names)
        trainable = [n for n, p in self._model.named_parameters() if p.requires_grad]
        optimised = {name for group in optimizer.groups for name in group.parameters}
        if not optimised & set(trainable):
            raise RecordingError(
                "the optimiser has no parameter that requires a gradient; pass the parameters "
                "that this stage trains"
            )
        self._built: nn.Module | None = self._build()
        self._start: TrainingState | None = capture(self._model, self._optimizer, self._names)
        boundary, reference = self._write_start(
            self._start, [n for n in self._names.values() if n not in trainable]
        )
        self._facts = StageFile(
            name=self.name,
            description=self._description,
            status="recording",
            optimizer=optimizer,
            boundary=boundary,
            trainable=trainable,
            clip_norm=self._clip_norm,
            accumulation=self._accumulation,
            keep_batches=self._keep_batches,
            build_config=self._build_config,
            environment=_environment(next(self._model.parameters()).device),
            start=reference,
        )
        self._recorder.announce(self._facts, self._folder)
        self._watch = Watch(
            self._model,
            self._optimizer,
            self._names,
            self._clip_norm,
            partial(_keeps, self._keep_batches),
        )
        self.recording = True
        return self

    def _build(self) -> nn.Module:
        """The task's own module, which has to be of the architecture that is trained."""
        with torch.random.fork_rng(devices=[]):
            built = self._recorder.task.build_model(self._build_config)
        own = {n: tuple(t.shape) for n, t in model_tensors(self._model).items()}
        task = {n: tuple(t.shape) for n, t in model_tensors(built).items()}
        for name in (*own, *task):
            if own.get(name) != task.get(name):
                raise RecordingError(
                    f"the model that is trained is not the one that the task builds: {name} is "
                    f"{own.get(name, 'absent')} here and {task.get(name, 'absent')} there; let "
                    "task.build_model make this architecture, or pass build_config for this stage"
                )
        return built

    def _write_start(self, start: TrainingState, frozen: list[str]) -> tuple[Boundary, StateRef]:
        root, prefix = self._recorder.path, f"{self._folder}/start"
        run = self._recorder.run()
        if not run.stages:
            return first_boundary(start, frozen), save_state(root, prefix, start)
        before = run.last.end()
        boundary = find_boundary(
            before,
            start,
            stage=self.name,
            reinitialised=self._reinitialised,
            frozen=frozen,
        )
        unchanged = before.model.keys() == start.model.keys() and all(
            same_tensor(before.model[name], tensor) for name, tensor in start.model.items()
        )
        end = run.last.facts.end
        there = end.model if unchanged and end is not None else None
        return boundary, save_state(root, prefix, start, model=there)

    def step(self, batch: Any, loss: Tensor | float) -> None:
        """Note the update that just happened, or a micro-batch on the way to it.

        Call it after ``optimizer.step()``. Where gradients are accumulated, call it at the same
        place in every iteration of the loop: an iteration without an update is a micro-batch.
        Nothing is updated here, and the batch is copied.

        Args:
            batch: What ``task.loss`` was computed from: tensors, numbers and strings, nested in
                tuples, lists and dictionaries.
            loss: Its loss, divided by the accumulation or not.

        Raises:
            RecordingError: Replay could not reproduce the step; says what to declare or change.
        """
        if not self.recording:
            raise RecordingError(
                f"stage {self.name!r} is not being recorded; call stage.step inside its with block"
            )
        watch = self._watch
        first = watch.noted == 0
        keep = _keeps(self._keep_batches, watch.noted)
        description, tensors = flatten(batch) if keep else (None, [])
        self._micro.append(FlatMicroBatch(description, tensors, watch.take_rng()))
        self._micro_losses.append(loss.detach() if isinstance(loss, Tensor) else float(loss))
        if first:
            kept = unflatten(description, tensors) if keep else copy.deepcopy(batch)
            self._first_batches.append(kept)
        if len(self._micro) > self._accumulation:
            raise RecordingError(
                f"{len(self._micro)} batches were noted before update {watch.noted + 1}; call "
                "stage.step(batch, loss) after optimizer.step(), and declare gradient "
                "accumulation with stage(..., accumulation=G)"
            )
        if watch.updates == watch.noted:
            return
        if first:
            self._check_first_step()
        self._check_forwards()
        self._note(keep)
        watch.noted += 1
        watch.forwards = 0
        self._micro, self._micro_losses = [], []
        if self._checkpoint_every and watch.noted % self._checkpoint_every == 0:
            self._checkpoint()
        elif (
            len(self._pending) >= self._flush_every
            or self._pending_bytes >= _FLUSH_BYTES
            or time.monotonic() - self._flushed >= _FLUSH_SECONDS
        ):
            self.flush()

    def _note(self, keep: bool) -> None:
        watch = self._watch
        record = StepRecord(
            step=watch.noted,
            loss=0.0,
            groups=watch.groups,
            missing=watch.missing,
            micro_batches=len(self._micro),
            batches=None,
        )
        self._pending.append(FlatStep(record, self._micro if keep else []))
        # Reading a loss waits for an accelerator, so it is left to the flush.
        self._losses.append(self._micro_losses)
        self._pending_bytes += sum(
            tensor.nbytes
            for micro in self._pending[-1].micro
            for tensor in (*micro.tensors, *micro.rng.values())
        )

    def _check_first_step(self) -> None:
        watch = self._watch
        assert self._built is not None
        assert self._start is not None
        if watch.forwards % len(self._micro) or not watch.forwards:
            raise RecordingError(
                f"{watch.forwards} forward passes of the model came before the first update, but "
                f"{len(self._micro)} batches were noted; call the model itself (not its parts, "
                "nor its forward method), and stage.step(batch, loss) once after every backward "
                "pass, behind optimizer.step()"
            )
        self._forwards_per_batch = watch.forwards // len(self._micro)
        rules = StepRules(
            self._accumulation,
            self._clip_norm,
            watch.evaluation_mode or [],
            self._facts.trainable,
        )
        batches = [
            MicroBatch(batch, micro.rng)
            for batch, micro in zip(self._first_batches, self._micro, strict=True)
        ]
        losses = [float(loss) for loss in self._micro_losses]
        record = StepRecord(0, losses[0], watch.groups, watch.missing, len(batches), batches)
        try:
            check_first_step(
                self._recorder.task,
                self._built,
                self._start,
                self._facts.optimizer,
                rules,
                record,
                losses,
                watch.gradients,
                model_tensors(self._model),
            )
        except RecordingError as error:
            if self._forwards_per_batch == 1:
                raise
            raise RecordingError(
                f"{error}. {watch.forwards} forward passes came before this update, but "
                f"{len(batches)} batches were noted: where gradients are accumulated, declare "
                "stage(..., accumulation=G) and call stage.step after every backward pass"
            ) from None
        self._built, self._start, watch.gradients, self._first_batches = None, None, {}, []
        if watch.evaluation_mode:
            self._facts = self._facts.model_copy(update={"evaluation_mode": watch.evaluation_mode})
            self._recorder.announce(self._facts, self._folder)

    def _check_forwards(self) -> None:
        watch = self._watch
        drew = any(micro.rng for micro in self._micro)
        if drew and watch.forwards != self._forwards_per_batch * len(self._micro):
            raise RecordingError(
                f"{watch.forwards} forward passes of the model came before update "
                f"{watch.updates}, where {self._forwards_per_batch} per batch came before the "
                "first, so it is not known which random numbers the update drew; run other "
                "forward passes under torch.no_grad()"
            )

    def flush(self) -> None:
        """Write what was noted since the last flush; afterwards it survives a killed process."""
        for step, losses in zip(self._pending, self._losses, strict=True):
            step.record.loss = sum(map(float, losses)) / len(losses)
        if self._pending:
            part = write_part(
                self._recorder.path, self._folder, len(self._parts), self._pending, self._digest
            )
            self._parts.append(part)
            self.steps_on_disk += part.steps
        self._pending, self._losses, self._pending_bytes = [], [], 0
        self._flushed = time.monotonic()

    def _checkpoint(self) -> None:
        self.flush()
        step = self._watch.noted
        state = capture(self._model, self._optimizer, self._names)
        reference = save_state(self._recorder.path, f"{self._folder}/checkpoint-{step:06d}", state)
        self._checkpoints.append(Checkpoint(step=step, state=reference))
        self._facts = self._facts.model_copy(update={"checkpoints": list(self._checkpoints)})
        self._recorder.announce(self._facts, self._folder)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.recording = False
        self._recorder.end()
        self._watch.close()
        if kind is not None:
            # What was noted is kept; the stage stays unfinished, because its end is not known.
            self.flush()
            return
        if self._watch.updates > self._watch.noted:
            raise RecordingError(
                "the last optimizer.step() was not noted; call stage.step(batch, loss) after it"
            )
        if self._watch.noted == 0:
            raise RecordingError(
                f"stage {self.name!r} has no step; call stage.step(batch, loss) after every "
                "optimizer.step() of the model and optimiser that the stage was given"
            )
        self.flush()
        self._watch.check_end()
        end = save_state(
            self._recorder.path,
            f"{self._folder}/end",
            capture(self._model, self._optimizer, self._names),
        )
        self._facts = self._facts.model_copy(
            update={
                "status": "complete",
                "end": end,
                "parts": list(self._parts),
                "steps": self._watch.noted,
                "seconds": time.monotonic() - self._started,
            }
        )
        self._recorder.announce(self._facts, self._folder)


def _keeps(keep_batches: str | int, step: int) -> bool:
    """Whether the batches of a step are kept."""
    if isinstance(keep_batches, str):
        return keep_batches == "all"
    return step % keep_batches == 0


def _environment(device: torch.device) -> Environment:
    return Environment(
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        device=device.type,
        machine=f"{platform.system()} {platform.machine()}",
    )
