"""Recording one stage: its start, every update, its end."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.compute import devices
from stagelens.contracts import RecordingError
from stagelens.replaying.optimizers import optimizer_facts
from stagelens.replaying.step import StepRules
from stagelens.runs.batches import flatten, unflatten
from stagelens.runs.run import Stage
from stagelens.runs.schema import Boundary, Checkpoint, Environment, StageFile, StateRef
from stagelens.runs.states import TrainingState, capture, model_tensors, same_tensor, save_state
from stagelens.runs.step_records import StepRecord
from stagelens.runs.steps import FlatMicroBatch

from .adapters import Adapter, read_adapter
from .best_model import Best
from .boundary import find_boundary, first_boundary
from .first_step import FirstStep
from .run_writer import RunWriter
from .stage_settings import StageSettings
from .step_writer import StepWriter
from .watch import Watch


class StageRecorder:
    """Made by :meth:`Recorder.stage`; enter it around the training loop of one stage.

    Attributes:
        name: The stage's name.
        recording: Whether the block was entered and not left yet.
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
        self._run = run
        self._folder = folder
        self._model = model
        self._optimizer = optimizer
        self._settings = settings
        self._build_config = settings.build_config
        self._names = {id(p): n for n, p in model.named_parameters()}
        self._writer = StepWriter(run.path, folder, settings.flush_every)
        self._micro: list[FlatMicroBatch] = []
        self._micro_losses: list[Tensor | float] = []
        self._forwards_per_batch = 0
        self._best: Best | None = None
        self._at_best = False

    def __enter__(self) -> StageRecorder:
        self._run.begin(self)
        self._started = time.monotonic()
        optimizer = optimizer_facts(self._optimizer, self._names)
        trainable = [n for n, p in self._model.named_parameters() if p.requires_grad]
        optimised = {name for group in optimizer.groups for name in group.parameters}
        if not optimised & set(trainable):
            raise RecordingError(
                "the optimiser has no parameter that requires a gradient; pass the parameters "
                "that this stage trains"
            )
        self._adapter = read_adapter(self._model)
        if (read := self._run.task.stage_config(self._model)) is not None:
            self._build_config = {**read, **(self._build_config or {})}
        built = self._build(self._build_config)
        self._check_built(built)
        start = capture(self._model, self._optimizer, self._names)
        boundary, reference = self._write_start(
            start, [n for n in self._names.values() if n not in trainable]
        )
        self._first: FirstStep | None = FirstStep(self._run.task, built, start, optimizer)
        self._facts = StageFile(
            name=self.name,
            description=self._settings.description,
            status="recording",
            optimizer=optimizer,
            boundary=boundary,
            trainable=trainable,
            clip_norm=self._settings.clip_norm,
            accumulation=self._settings.accumulation,
            keep_batches=self._settings.keep_batches,
            build_config=self._build_config,
            environment=_environment(next(self._model.parameters()).device),
            start=reference,
        )
        self._run.announce(self._facts, self._folder)
        self._watch = Watch(
            self._model,
            self._optimizer,
            self._names,
            self._settings.clip_norm,
            self._settings.keeps,
        )
        self.recording = True
        return self

    def _build(self, config: Mapping[str, Any] | None) -> nn.Module:
        # Building draws initial weights, which must not advance the training loop's generator.
        with torch.random.fork_rng(devices=[]):
            return self._run.task.build_model(config)

    def _check_built(self, built: nn.Module) -> None:
        """The task's own module has to be of the architecture that is trained."""
        own = {n: tuple(t.shape) for n, t in model_tensors(self._model).items()}
        task = {n: tuple(t.shape) for n, t in model_tensors(built).items()}
        for name in (*own, *task):
            if own.get(name) != task.get(name):
                raise RecordingError(
                    f"the model that is trained is not the one that the task builds: {name} is "
                    f"{own.get(name, 'absent')} here and {task.get(name, 'absent')} there; let "
                    "task.build_model make this architecture, or pass build_config for this stage"
                )

    def _write_start(self, start: TrainingState, frozen: list[str]) -> tuple[Boundary, StateRef]:
        root, prefix = self._run.path, f"{self._folder}/start"
        last = self._run.last
        if last is None:
            return first_boundary(start, frozen), save_state(root, prefix, start)
        before = last.end()
        boundary = find_boundary(
            before,
            start,
            stage=self.name,
            reinitialised=self._settings.reinitialised,
            frozen=frozen,
            adapters=(self._adapter_before(last, before), self._adapter),
        )
        unchanged = before.model.keys() == start.model.keys() and all(
            same_tensor(before.model[name], tensor) for name, tensor in start.model.items()
        )
        # Files of the previous end serve an unchanged model; it is not written twice.
        there = last.facts.end if unchanged else None
        return boundary, save_state(root, prefix, start, there)

    def _adapter_before(self, stage: Stage, end: TrainingState) -> Adapter | None:
        """The previous stage's; its model is built only where it can have had one."""
        if self._adapter is None and end.model.keys() == model_tensors(self._model).keys():
            return None
        # A state is tensors only: which of them are an adapter's is read off a module.
        return read_adapter(self._build(stage.facts.build_config))

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
        Nothing is updated here, and the batch is copied.

        Args:
            batch: What ``task.loss`` was computed from: tensors, numbers and strings, nested in
                tuples, lists and dictionaries.
            loss: Its loss, divided by the accumulation or not.
            divisor: What the loss was divided by before backward, for loops in which that is not
                always the accumulation; then given for every micro-batch, with the loss undivided.

        Raises:
            RecordingError: Replay could not reproduce the step; says what to declare or change.
        """
        if not self.recording:
            raise RecordingError(
                f"stage {self.name!r} is not being recorded; call stage.step inside its with block"
            )
        watch = self._watch
        keep = self._settings.keeps(watch.noted)
        description, tensors = flatten(batch) if keep else (None, [])
        self._micro.append(FlatMicroBatch(description, tensors, watch.take_rng(), divisor))
        # No float() of a tensor: it would make every step wait for the accelerator.
        self._micro_losses.append(loss.detach() if isinstance(loss, Tensor) else float(loss))
        if self._first is not None:
            # Checked with the batch as replay will read it, or one that the loop cannot change.
            kept = unflatten(description, tensors) if keep else copy.deepcopy(batch)
            self._first.batches.append(kept)
        if divisor is None and len(self._micro) > self._settings.accumulation:
            raise RecordingError(
                f"{len(self._micro)} batches were noted before update {watch.noted + 1}; call "
                "stage.step(batch, loss) after optimizer.step(), and declare gradient "
                "accumulation with stage(..., accumulation=G)"
            )
        # No update since the last note: this was a micro-batch on the way to one.
        if watch.updates == watch.noted:
            return
        if self._first is not None:
            self._check_first_step()
        self._check_forwards(keep)
        self._note(keep)
        watch.noted += 1
        watch.forwards = 0
        self._micro, self._micro_losses = [], []
        if self._checkpoint_due(watch.noted):
            self._checkpoint()
        elif self._writer.due:
            self._writer.flush()

    def _note(self, keep: bool) -> None:
        watch = self._watch
        record = StepRecord(
            step=watch.noted,
            loss=0.0,  # set when it is flushed
            groups=watch.groups,
            missing=watch.missing,
            divisors=tuple(micro.divisor for micro in self._micro),
            batches=None,
        )
        self._writer.note(record, self._micro if keep else [], self._micro_losses)

    def _check_first_step(self) -> None:
        watch = self._watch
        assert self._first is not None
        rules = StepRules(
            self._settings.accumulation,
            self._settings.clip_norm,
            watch.evaluation_mode or [],
            self._facts.trainable,
            watch.precision,
        )
        losses = [float(loss) for loss in self._micro_losses]
        self._forwards_per_batch = self._first.check(watch, rules, self._micro, losses)
        self._first = None
        self._announce(evaluation_mode=watch.evaluation_mode or [], precision=watch.precision)

    def _check_forwards(self, kept: bool) -> None:
        watch = self._watch
        drew = any(micro.rng for micro in self._micro)
        # Extra passes shift the random numbers of the recorded ones, and move running statistics.
        # A model with neither is the same after them.
        matters = drew or (kept and watch.passes_move_buffers)
        if matters and watch.forwards != self._forwards_per_batch * len(self._micro):
            what = "random numbers the update drew" if drew else "passes moved its buffers"
            raise RecordingError(
                f"{watch.forwards} forward passes of the model came before update "
                f"{watch.updates}, where {self._forwards_per_batch} per batch came before the "
                f"first, so which {what} is not known; run other forward passes in evaluation "
                "mode, under torch.no_grad()"
            )

    def _announce(self, **update: Any) -> None:
        """Write the stage's facts if something changes."""
        facts = self._facts.model_copy(update=update)
        if facts != self._facts:
            self._facts = facts
            self._run.announce(facts, self._folder)

    def _checkpoint(self) -> Checkpoint:
        """The training state as it is now, on disk, and all steps up to it."""
        self._watch.check_now()
        self._writer.flush()  # first: resuming needs every step before a checkpoint
        known = self._facts.checkpoints
        # A regular checkpoint and keep_best can come at the same step.
        if known and known[-1].step == self.steps:
            return known[-1]
        prefix = f"{self._folder}/checkpoint-{self.steps:06d}"
        checkpoint = Checkpoint(step=self.steps, state=self._save_state(prefix))
        self._announce(checkpoints=[*known, checkpoint])
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
        self._best.check(self._run.path, self._model)
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
        if kind is not None:
            # What was noted is kept; the stage stays unfinished, because its end is not known.
            self._writer.flush()
            return
        if self._watch.updates > self._watch.noted:
            self._writer.flush()
            raise RecordingError(
                "the last optimizer.step() was not noted; call stage.step(batch, loss) after it"
            )
        if self._watch.noted == 0:
            raise RecordingError(
                f"stage {self.name!r} has no step; call stage.step(batch, loss) after every "
                "optimizer.step() of the model and optimiser that the stage was given"
            )
        self._writer.flush()
        seconds = time.monotonic() - self._started
        if self._best is not None and self._at_best:
            ending = self._best.ending(self._facts.checkpoints, self._writer.parts)
            self._announce(status="complete", seconds=seconds, **ending)
            self._tidy("*")
            return
        self._watch.check_now()
        self._announce(
            status="complete",
            seconds=seconds,
            end=self._save_state(f"{self._folder}/end"),
            parts=list(self._writer.parts),
            steps=self.steps,
        )


def _environment(device: torch.device) -> Environment:
    return Environment(
        torch=torch.__version__,
        # The order of additions, and so the last bits, depend on how many threads share them.
        threads=torch.get_num_threads(),
        device=device.type,
        machine=f"{platform.system()} {platform.machine()}",
        arithmetic=devices.arithmetic(device),
    )
