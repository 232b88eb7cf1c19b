"""Whether a recording describes what training did: its steps run again from recorded states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stagelens.compute import devices
from stagelens.contracts import ProgressCallback, RunError, Task, no_progress
from stagelens.runs.batches import to_device
from stagelens.runs.optimizer_ends import end_optimizer
from stagelens.runs.run import Run, Stage
from stagelens.runs.states import (
    TrainingState,
    Weights,
    difference_of,
    load_into,
    same_values,
)
from stagelens.runs.step_records import StepRecord
from stagelens.runs.streaming import facts_of, side_by_side

from .replay import StageReplay, fits, replay_stage, same_arithmetic, tolerance_of
from .stage_model import Share
from .step import StepRules, loss_of, prepare
from .training_loss import loss_of_stage


@dataclass(frozen=True)
class Sampled:
    """What came of running some recorded steps again.

    Attributes:
        steps: How many losses were compared.
        misfit: The first step whose loss is not the recorded one; None if all are.
        recorded: Its loss as recorded.
        found: Its loss here.
    """

    steps: int
    misfit: int | None = None
    recorded: float = 0.0
    found: float = 0.0


def sample_steps(task: Task, stage: Stage, length: int, everywhere: bool = False) -> Sampled:
    """Run the first steps after recorded states again, and compare their losses.

    A loss shows a wrong batch, loss function or random state at its own step, and a wrong update
    (clipping, learning rate, an edited gradient) of the step before it.

    Args:
        task: The run's.
        stage: A recorded stage.
        length: How many steps to run from each state; fewer where batches were not kept.
        everywhere: Whether to begin at every recorded checkpoint too, not only at the start.
    """
    compared = 0
    for first, state in _beginnings(stage, everywhere):
        with same_arithmetic(stage):
            replay = StageReplay(task, stage, state)
            for record, losses in replay.window(first, length):
                if _drawn_elsewhere(stage, record):
                    break
                compared += 1
                if not replay.fits(record, losses):
                    found = record.reported_loss(losses)
                    return Sampled(compared, record.step, record.loss, found)
    return Sampled(compared)


def first_loss(run: Run, stage: Stage) -> Sampled:
    """Compare the loss of a stage's first step alone: a forward pass, without any update."""
    record = stage.read_steps()[0]
    if record.batches is None or _drawn_elsewhere(stage, record):
        return Sampled(0)
    rules = StepRules.of(stage.facts)
    device = devices.replaying(stage.environment.device)
    model = run.task.build_model(stage.facts.build_config)
    load_into(model, stage.start().model)
    model.to(device)
    prepare(model, rules)
    loss, losses = loss_of_stage(run.task, stage, model), []
    with same_arithmetic(stage), torch.no_grad():
        for micro in record.batches:
            devices.restore_random(micro.rng, device)
            losses.append(float(loss_of(loss, model, to_device(micro.batch, device), rules)))
    if fits(record, losses, rules, tolerance_of(rules, model)):
        return Sampled(1)
    return Sampled(1, record.step, record.loss, record.reported_loss(losses))


def _beginnings(stage: Stage, everywhere: bool) -> list[tuple[int, TrainingState]]:
    # A reference model that moves is not as it was at a checkpoint.
    moves = stage.facts.objective is not None and stage.facts.objective.moves_references
    within = list(stage.within()) if everywhere and not moves else []
    return [(0, stage.start()), *within]


def _drawn_elsewhere(stage: Stage, record: StepRecord) -> bool:
    """Whether the step drew random numbers on a kind of device that is not used here."""
    recorded = stage.environment.device
    drew = any(micro.rng for micro in record.batches or ())
    return drew and devices.replaying(recorded).type != recorded


@dataclass(frozen=True)
class Deviation:
    """How far a replay from the recorded start is from the recorded end of a stage.

    Attributes:
        stage: The stage's name.
        bitwise: Whether parameters, buffers and optimiser state agree bit for bit, and all losses
            are those recorded.
        largest: Largest absolute difference of a parameter or buffer.
        relative: Norm of the difference over the norm of the stage's own change.
        misfit: The first step whose loss was not the recorded one; None if all were, or where
            processes share batches.
    """

    stage: str
    bitwise: bool
    largest: float
    relative: float
    misfit: int | None = None


def measure_deviation(
    task: Task, stage: Stage, progress: ProgressCallback = no_progress, share: Share = ""
) -> Deviation:
    """Replay one stage as recorded and compare with its recorded end.

    Raises:
        RunError: The replay has parameters or buffers other than those recorded.
    """
    done = replay_stage(task, stage, progress=progress, share=share)
    replayed, misfit = done.state, None if share == "batches" else done.misfit
    recorded = stage.end()
    if replayed.model.keys() != recorded.model.keys():
        raise RunError(
            f"replaying stage {stage.name!r} gives other parameters than its end state has; open "
            "the run with the task that it was recorded with"
        )
    bitwise = _ends_so(replayed, stage)
    largest, relative = distance(replayed.model, stage)
    return Deviation(stage.name, bitwise and misfit is None, largest, relative, misfit)


def distance(replayed: Weights, stage: Stage) -> tuple[float, float]:
    """How far a model is from the recorded end of a stage.

    Returns:
        Largest absolute difference, and the norm of the difference over that of the stage's change.
    """
    recorded, start = stage.end().model, stage.start().model
    difference = change = largest = 0.0
    for name in recorded:
        if not facts_of(recorded, name).dtype.is_floating_point:
            continue
        for own, end, began in side_by_side(name, replayed, recorded, start):
            gap = difference_of(own, end)
            largest = max(largest, float(gap.abs().max())) if gap.numel() else largest
            difference += float(gap.square().sum())
            change += float(difference_of(end, began).square().sum())
    relative = 0.0 if difference == 0 else (difference / change) ** 0.5 if change else float("inf")
    return largest, relative


def state_after(
    task: Task, stage: Stage, steps: int, through: bool, progress: ProgressCallback = no_progress
) -> tuple[TrainingState, bool]:
    """The training state of a stage after some of its steps, by a replay from its recorded start.

    Args:
        task: The run's.
        stage: A recorded stage.
        steps: How many of its steps.
        through: Whether to replay the other steps too, and compare with the recorded end.
        progress: Called for every step.

    Returns:
        The state, and whether the replay has the recorded losses and, where it went through, the
        recorded end, bit for bit.
    """
    total = stage.steps if through else steps
    with same_arithmetic(stage):
        replay, state = StageReplay(task, stage), stage.start()
        for number, _ in enumerate(replay.run(), 1):
            progress(number / total, f"stage {stage.name}, step {number} of {stage.steps}")
            if number == steps:
                state = replay.state()
            if number == total:
                break
        same = replay.misfit is None and (not through or _ends_so(replay.state(), stage))
    return state, same


def _ends_so(reached: TrainingState, stage: Stage) -> bool:
    """Whether a stage ended with this training state, bit for bit."""
    recorded = stage.end()
    known = stage.facts.end_optimizer or end_optimizer(recorded.optimizer)
    return _same(reached.model, recorded.model) and end_optimizer(reached.optimizer) == known


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(same_values(a, key, b, key) for key in b)
