"""Replay: running recorded steps again, from any training state, with torch's own optimisers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from stagelens.compute import devices
from stagelens.contracts import Progress, ProgressCallback, Refused, Task, no_progress
from stagelens.runs.batches import batch_size
from stagelens.runs.boundaries import apply_boundary, check_crossable, check_started, started_names
from stagelens.runs.optimizer_kinds import absent
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import Precision
from stagelens.runs.states import TrainingState, capture, load_optimizer, same_tensor
from stagelens.runs.step_records import StepRecord

from .averaging import Averaging
from .modes import call_all, called
from .optimizers import build_optimizer, update_in_lists
from .sharded_model import SharedModel
from .shared_batches import SplitGradient
from .stage_model import Share, stage_model
from .step import OF_KERNELS, Stepper, StepRules, widest_eps
from .training_loss import Passed, loss_of_stage


def cross_boundary(state: TrainingState, stage: Stage) -> TrainingState:
    """Apply the boundary rule of ``stage`` to the end state of the stage before.

    New parameters and buffers take their recorded initial values, removed ones are dropped,
    adapters are added, merged or removed, weights are cast, rows are added or cut, and the
    optimiser's state stays only where it was carried. For the recorded end state this gives the
    recorded start state: where merging rounds differently here than in the recording, or added
    rows were drawn around a mean, the recorded weights are moved by the difference that ``state``
    makes.

    Raises:
        Refused: Not all that happened at the boundary is known.
    """
    boundary = stage.facts.boundary
    check_crossable(stage.name, boundary)
    with same_arithmetic(stage):
        return _crossed(state, stage)


def _crossed(state: TrainingState, stage: Stage) -> TrainingState:
    recorded, boundary = stage.start().model, stage.facts.boundary
    factual_end = stage.previous.end() if stage.previous is not None else state
    if stage.previous is not None and boundary.calls:
        state = called(stage.previous, state, boundary.calls)
        factual_end = called(stage.previous, factual_end, boundary.calls)
    model = apply_boundary(boundary, state.model, recorded)
    started = started_names(boundary)
    moved = boundary.merged.keys() | boundary.averaged.keys() | started | set(boundary.unpacked)
    moved -= set(boundary.packed)
    if moved and stage.previous is not None:
        factual = apply_boundary(boundary, factual_end.model, recorded)
        check_started(stage.name, boundary, factual, recorded)
        for name in moved:
            start, own, usual = recorded[name], model[name], factual[name]
            if not same_tensor(usual, start):
                # start + 0.0 would turn -0.0 into 0.0, and an infinite value into NaN.
                other = torch.where(usual == start, own, start + (own - usual))
                model[name] = torch.where(own == usual, start, other)
    sources = {name: boundary.source(name) for name in boundary.carried}
    return TrainingState(
        model,
        {n: state.optimizer[old] for n, old in sources.items() if old in state.optimizer},
    )


def check_replayable(stages: Sequence[Stage]) -> None:
    """Refuse before any work where a step of these stages could not be replayed.

    Raises:
        Refused: Batches were not kept for all steps; says what to do.
    """
    for stage in stages:
        if stage.facts.origin == "assembled":
            raise Refused(stage.not_recorded)
        if stage.facts.problem is not None:
            raise Refused(
                f"stage {stage.name!r} cannot be replayed, because of what was found while it was "
                f"recorded: {stage.facts.problem}"
            )
        if (why := absent(stage.optimizer)) is not None:
            raise Refused(f"stage {stage.name!r} cannot be replayed here: {why}")
        if stage.no_data_set:
            raise Refused(stage.no_data_set)
        if not stage.replayable:
            raise Refused(
                f"stage {stage.name!r} cannot be replayed, because its batches were not all kept "
                f'(keep_batches={stage.facts.keep_batches!r}); record it with keep_batches="all", '
                "or use --estimator task-vector"
            )
        _ = stage.objective  # refused where it is not known


_ROUNDING: Mapping[Precision, float] = {"float32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}


def tolerance_of(rules: StepRules, model: nn.Module) -> float:
    """The largest relative difference of a loss that rounding explains.

    Args:
        rules: Of the stage.
        model: Its parameters may be of a dtype that rounds more coarsely.
    """
    other = OF_KERNELS if rules.kernels else 0.0
    return max(_ROUNDING[rules.precision], 4 * widest_eps(model), other)


def fits(record: StepRecord, losses: Sequence[float], rules: StepRules, tolerance: float) -> bool:
    """Whether losses of micro-batches are those of a recorded step, up to rounding.

    Args:
        record: The step.
        losses: The task's, before division.
        rules: Of its stage.
        tolerance: See :func:`tolerance_of`.
    """
    found = record.reported_loss(losses)
    if found == record.loss:
        return True
    if math.isnan(found):
        return math.isnan(record.loss)
    # A loop may note its losses as they are divided. Another processor rounds otherwise; 1e-6 is
    # what rounding leaves of a loss close to 0.
    return any(
        math.isclose(found / divisor, record.loss, rel_tol=tolerance, abs_tol=1e-6)
        for divisor in {1, rules.of_one.accumulation}
    )


class StageReplay:
    """One stage ready to run: model and optimiser at a training state, and the steps.

    Attributes:
        misfit: The first step run so far whose loss is not the recorded one.
        loss: What is minimised.

    Args:
        task: Builds the model.
        stage: The recorded stage.
        state: Where to start; by default where the recording started.
        passed: Where a counterfactual was at the boundaries up to the stage's start; by default
            all of them are as recorded.
        share: What the processes of the job share.
    """

    def __init__(
        self,
        task: Task,
        stage: Stage,
        state: TrainingState | None = None,
        passed: Passed | None = None,
        share: Share = "",
    ) -> None:
        self.task = task
        self.stage = stage
        facts = stage.facts
        self.rules = StepRules.of(facts)
        device = devices.replaying(stage.environment.device)
        state = stage.start() if state is None else state
        self.model, self._parts = stage_model(task, stage, state.model, self.rules, device, share)
        parameters = dict(self.model.named_parameters())
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.optimizer = build_optimizer(stage.optimizer, parameters)
        load_optimizer(self.optimizer, self.names, state.optimizer)
        update_in_lists(self.optimizer)
        shared: SplitGradient | SharedModel | None = self._parts
        self._split: SplitGradient | None = None
        if share == "batches":
            shared = self._split = SplitGradient(task, self.model, stage.name, facts.processes)
        self.loss = loss_of_stage(task, stage, self.model, passed)
        self._stepper = Stepper(self.loss, self.model, self.optimizer, self.rules, shared)
        self._tolerance = tolerance_of(self.rules, self.model)
        average = facts.average
        self._averaging = None if average is None else Averaging(average, self.model)
        self._ran = False
        self.misfit: int | None = None

    def run(
        self,
        order: Sequence[int] | None = None,
        change: Callable[[int, StepRecord], StepRecord | None] | None = None,
    ) -> Iterator[StepRecord]:
        """Run all steps; yields each record after its update.

        Args:
            order: Which recorded step's batches to use at each step, learning rates staying in
                place; None for the recorded order.
            change: From a step's place and record to what to run instead; None for a step that
                is not taken. Losses of other steps than the recorded ones are not compared.
        """
        steps = self.stage.read_steps()
        rates = [steps.facts(number).groups for number in range(len(steps))] if order else []
        for place, number in enumerate(order or range(len(steps))):
            record = steps[number]
            if order:
                record = replace(record, groups=rates[place])
            recorded, own = record, record if change is None else change(place, record)
            if own is not None:
                record = own
                losses = self._stepper.step(record)
                self.loss.updated(place, self.model)
                if self._averaging is not None:
                    self._averaging.updated(place)
                if record is recorded and self.misfit is None and not self.fits(record, losses):
                    self.misfit = record.step
            if place == len(steps) - 1:
                call_all(self.optimizer, self.stage.facts.end_calls)
            yield record
        self._ran = True

    def window(self, first: int, length: int) -> Iterator[tuple[StepRecord, list[float]]]:
        """Run steps from ``first`` on; yields each with the losses of its micro-batches.

        Ends before a step whose batches were not kept.
        """
        steps = self.stage.read_steps()
        for number in range(first, min(first + length, len(steps))):
            record = steps[number]
            if record.batches is None:
                return
            yield record, self._stepper.step(record)
            self.loss.updated(number, self.model)

    def backward(self, record: StepRecord) -> list[float]:
        """Leave a step's gradients in the model, without its update; see :class:`Stepper`."""
        return self._stepper.backward(record)

    @property
    def other_draws(self) -> set[str]:
        """See :class:`Stepper`."""
        return self._stepper.other_draws

    def fits(self, record: StepRecord, losses: Sequence[float]) -> bool:
        """Whether losses of a step's micro-batches are those recorded, up to rounding."""
        return fits(record, losses, self.rules, self._tolerance)

    def state(self) -> TrainingState:
        """A copy of the training state as it is now; after :meth:`run`, the stage's end."""
        if self._parts is not None:
            return self._parts.state(self.optimizer, self.names)
        if self._split is not None:
            self._split.from_main()
        state = capture(self.model, self.optimizer, self.names)
        if self._averaging is not None and self._ran:
            state.model = capture(self._averaging.model, None, {}).model
        return state


def _has_cuda() -> bool:
    return torch.cuda.is_available()


def threads_here(stage: Stage) -> int:
    """How many threads a replay of a stage computes with: those recorded, if they can be had."""
    limit = os.environ.get("OMP_THREAD_LIMIT", "")
    with same_arithmetic(stage):
        given = torch.get_num_threads()
    return min(given, int(limit)) if limit.isdigit() and int(limit) else given


@contextmanager
def same_arithmetic(stage: Stage) -> Iterator[None]:
    """Replay with the recorded thread count, leaving threads and random state as they were."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if _has_cuda() else ()):
        # The order of additions depends on how many threads share them. Of a stage that was
        # assembled from checkpoints nothing is known of it, and boundaries are crossed alone.
        if stage.facts.environment is not None:
            torch.set_num_threads(stage.environment.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@dataclass
class Replayed:
    """The end of a replay, and its cost.

    Attributes:
        state: The training state after the last replayed step.
        example_gradients: How many examples' gradients were computed.
        misfit: The first step whose loss was not the recorded one; None if all were.
    """

    state: TrainingState
    example_gradients: int
    misfit: int | None = None


def replay_stage(
    task: Task,
    stage: Stage,
    state: TrainingState | None = None,
    progress: ProgressCallback = no_progress,
    order: Sequence[int] | None = None,
    share: Share = "",
    passed: Passed | None = None,
) -> Replayed:
    """Replay one stage from ``state`` (by default its recorded start), in ``order`` if given.

    ``share`` says what the processes of the job share. ``passed`` says where a
    counterfactual was at earlier boundaries; its state at this one is ``state``.
    """
    check_replayable([stage])
    examples = 0
    with same_arithmetic(stage):
        if state is not None:
            passed = (passed or Passed()).enter(stage, state.model)
        replay = StageReplay(task, stage, state, passed, share)
        for number, record in enumerate(replay.run(order), 1):
            examples += sum(batch_size(micro.batch) for micro in record.batches or ())
            progress(number / stage.steps, f"stage {stage.name}, step {number} of {stage.steps}")
        return Replayed(replay.state(), examples, replay.misfit)


Orders = Mapping[str, Sequence[int]]
"""Stage name to an order of its recorded batches."""


def replay_without(
    run: Run,
    stage: Stage,
    progress: ProgressCallback = no_progress,
    orders: Orders | None = None,
    share: Share = "",
) -> Replayed:
    """The training state at the end of the run as it would be without ``stage``.

    The stage's start state stands in for its end state; then the boundary rules and the recorded
    steps of all later stages follow. For the last stage this is its start state, at no cost.

    Args:
        run: The run.
        stage: The stage that is left out.
        progress: Called for every step.
        orders: Another order of the later stages' batches, for the noise floor.
        share: What the processes of the job share.

    Raises:
        Refused: Batches of a later stage were not kept.
    """
    return replay_later(run, stage, stage.start(), progress, orders, share)


def replay_later(
    run: Run,
    stage: Stage,
    state: TrainingState,
    progress: ProgressCallback = no_progress,
    orders: Orders | None = None,
    share: Share = "",
) -> Replayed:
    """Replay all stages after ``stage`` from ``state``; see :func:`replay_without`."""
    later = run.stages[stage.index + 1 :]
    check_replayable(later)
    for other in later:
        check_crossable(other.name, other.facts.boundary)
    examples = 0
    total = sum(other.steps for other in later)
    done, overall = 0, Progress(progress)
    passed = Passed(later).leave(stage, state.model)
    for other in later:
        report = overall.part(done / total, (done + other.steps) / total)
        order = (orders or {}).get(other.name)
        begin = cross_boundary(state, other)
        replayed = replay_stage(run.task, other, begin, report, order, share, passed)
        state, examples = replayed.state, examples + replayed.example_gradients
        passed.leave(other, state.model)
        done += other.steps
    return Replayed(state, examples)
