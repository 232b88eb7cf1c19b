"""Several networks replayed as one: their weights stacked, each recorded step run once for all.

A small network leaves a GPU idle, because a step takes as long as its calls, not as its arithmetic.
Here M networks of one architecture, each with weights of its own, share the calls. Stacked products
are added up in another order than single ones, so the ends are those of replay up to rounding, and
not to the bit: one of the networks is the recorded one, whose end tells how far they are off.

Networks share the random numbers of a recorded pass, as they have the same ones one by one. Where
torch draws other ones for stacked tensors (fused dropout of a GPU, dropout within attention), or
cannot run an operation on them at all, the first step shows it: see :func:`stackable`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from stagelens.compute import devices, memory
from stagelens.contracts import Progress, ProgressCallback, Task, no_progress
from stagelens.runs.batches import to_device
from stagelens.runs.boundaries import check_crossable
from stagelens.runs.run import Run, Stage
from stagelens.runs.states import (
    OptimizerState,
    TrainingState,
    Weights,
    copied,
    load_optimizer,
    optimizer_tensors,
)
from stagelens.runs.step_records import StepRecord

from .optimizers import build_optimizer, set_group_hyperparameters, update, update_in_lists
from .replay import StageReplay, cross_boundary, replay_stage, same_arithmetic, tolerance_of
from .reproduction import distance
from .step import MainBuffers, StepRules, loss_of, restore_missing
from .training_loss import loss_of_stage

_ELEMENTWISE = ("SGD", "Adam", "AdamW")
"""Optimisers that update a stack of tensors as they update each of them."""
_COPIES = 8
"""Weights, gradients, two moments, and as much again for what a step holds besides."""


class _Loss(nn.Module):
    """The stage's loss as a module's output, which a functional call needs."""

    def __init__(self, task: Task, stage: Stage, model: nn.Module, rules: StepRules) -> None:
        super().__init__()
        self.model = model
        self._of = partial(loss_of, loss_of_stage(task, stage, model), model, rules=rules)

    def forward(self, batch: Any) -> Tensor:
        return self._of(batch)


class Ensemble:
    """M networks on their way through a recorded stage.

    Attributes:
        parameters: Name to (M, *shape) parameter.
        buffers: Name to (M, *shape) buffer.

    Args:
        task: Builds the model and computes the loss.
        stage: The recorded stage; its optimiser updates element by element.
        states: M training states to start from.

    Raises:
        ValueError: The optimiser has kept something else of one network than of another.
    """

    def __init__(self, task: Task, stage: Stage, states: Sequence[TrainingState]) -> None:
        model = StageReplay(task, stage, states[0]).model
        self._rules = StepRules.of(stage.facts)
        self._loss = _Loss(task, stage, model, self._rules)
        self._count = len(states)
        self._device = next(model.parameters()).device

        def stacked(name: str) -> Tensor:
            return torch.stack([state.model[name] for state in states]).to(self._device)

        self.parameters = {
            name: nn.Parameter(stacked(name), requires_grad=own.requires_grad)
            for name, own in model.named_parameters()
        }
        self.buffers = {name: stacked(name) for name, _ in model.named_buffers()}
        self._moving = MainBuffers(self.buffers.values(), self._rules)
        self._names = {id(parameter): name for name, parameter in self.parameters.items()}
        self._optimizer = build_optimizer(stage.optimizer, self.parameters)
        self._updated = [p for group in self._optimizer.param_groups for p in group["params"]]
        trained = [self._names[id(parameter)] for parameter in self._updated]
        state = _stacked_state([each.optimizer for each in states], trained)
        load_optimizer(self._optimizer, self._names, state)
        update_in_lists(self._optimizer)

    def step(self, record: StepRecord) -> None:
        """Run one recorded step for every network."""
        self.backward(record)
        set_group_hyperparameters(self._optimizer, record.groups)
        update(self._optimizer)

    def backward(self, record: StepRecord) -> list[Tensor]:
        """Leave in the parameters the gradients that the optimiser receives at a recorded step.

        Returns:
            (M,) losses of each micro-batch, before division.
        """
        losses = []
        whole = self._rules.zeroed == "model"
        for parameter in self.parameters.values() if whole else self._updated:
            parameter.grad = None
        for micro in record.batches or ():
            devices.restore_random(micro.rng, self._device)
            batch, divisor = to_device(micro.batch, self._device), self._rules.divisor(micro)
            with self._moving.of(micro):
                each = vmap(partial(self._one, batch), randomness="same")(
                    self.parameters, self.buffers
                )
                losses.append(each.detach())
                # No network's loss depends on another's weights: the sum has the gradients of each.
                (each if divisor == 1 else each / divisor).sum().backward()
        restore_missing(self.parameters, record.missing, self._updated)
        if self._rules.clip_norm is not None:
            self._clip(self._rules.clip_norm)
        return losses

    def _one(self, batch: Any, parameters: Mapping[str, Tensor], buffers: Any) -> Tensor:
        """The loss of one network; () of stacked tensors within vmap."""
        own = {f"model.{name}": tensor for name, tensor in {**parameters, **buffers}.items()}
        loss: Tensor = functional_call(self._loss, own, (batch,))
        return loss

    @torch.no_grad()
    def _clip(self, most: float) -> None:
        """``clip_grad_norm_`` of each network's gradients by themselves."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norms = vmap(partial(nn.utils.get_total_norm, foreach=False))(gradients)
        factors = (most / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 1)))

    def states(self) -> list[TrainingState]:
        """A copy of each network's training state as it is now."""
        model = {n: copied(t) for n, t in {**self.parameters, **self.buffers}.items()}
        kept = optimizer_tensors(self._optimizer, self._names)
        state = {n: {k: copied(t) for k, t in own.items()} for n, own in kept.items()}
        return [
            TrainingState(
                {name: tensor[place].clone() for name, tensor in model.items()},
                {
                    name: {k: (t if k == "step" else t[place]).clone() for k, t in own.items()}
                    for name, own in state.items()
                },
            )
            for place in range(self._count)
        ]


def _stacked_state(states: Sequence[OptimizerState], names: Sequence[str]) -> OptimizerState:
    """What optimisers kept of these parameters, one upon the other; counts of steps are shared."""
    found: OptimizerState = {}
    for name in names:
        own = [state.get(name, {}) for state in states]
        counts = {float(each["step"]) for each in own if "step" in each}
        if len({frozenset(each) for each in own}) > 1 or len(counts) > 1:
            raise ValueError(f"the networks' optimisers have kept different things of {name}")
        if own[0]:
            found[name] = {
                key: tensor if key == "step" else torch.stack([each[key] for each in own])
                for key, tensor in own[0].items()
            }
    return found


@contextmanager
def _in_one_call(stage: Stage) -> Iterator[None]:
    """Compute as recorded; operations that torch runs on one network after the other are errors."""
    on_cpu = devices.replaying(stage.environment.device).type == "cpu"
    # Of the kinds of attention on a CPU, torch stacks only this one.
    attention = sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext()
    with same_arithmetic(stage), attention, warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*batching rule")
        yield


def stackable(task: Task, stage: Stage) -> bool:
    """Whether networks replay a stage as one: losses, gradients and buffers are compared.

    At the first step, with the recorded start and the recorded end, which each also take alone.

    Args:
        task: Builds the model and computes the loss.
        stage: Replayable.
    """
    start, optimizer, objective = stage.start(), stage.optimizer.name, stage.facts.objective
    # Networks that were trained for different numbers of steps have different counts.
    counts = bool(stage.facts.boundary.carried) and optimizer != "SGD"
    if optimizer not in _ELEMENTWISE or counts or not stage.steps:
        return False
    # Each network would have a reference model of its own.
    if stage.facts.average is not None or (objective is not None and objective.references):
        return False
    states = [start, TrainingState(stage.end().model, start.optimizer)]
    record = stage.read_steps()[0]
    try:
        with _in_one_call(stage):
            ensemble = Ensemble(task, stage, states)
            losses = ensemble.backward(record)
    except Exception:  # the task's own code may raise anything where tensors are stacked
        return False
    with same_arithmetic(stage):
        alone = [StageReplay(task, stage, state) for state in states]
        expected = torch.tensor([replay.backward(record) for replay in alone])
    # TF32 and mixed precision round coarsely; other random numbers change gradients far more.
    wide = max(1e-2, 5 * tolerance_of(alone[0].rules, alone[0].model))
    gap, size = _compared([torch.stack(losses, 1)], [expected])
    if not gap <= wide * size:
        return False
    own = [dict(replay.model.named_parameters()) for replay in alone]
    gradients = {name: [each[name].grad for each in own] for name in ensemble.parameters}
    there = [n for n, each in gradients.items() if None not in each]
    together = {n: p.grad for n, p in ensemble.parameters.items() if p.grad is not None}
    if together.keys() != set(there):
        return False
    gap, size = _compared(together.values(), [_stack(gradients[name]) for name in together])
    if not gap <= wide * size:
        return False
    for name, buffer in ensemble.buffers.items():
        after = _stack(replay.model.get_buffer(name) for replay in alone)
        moved, _ = _compared([after], [_stack(state.model[name] for state in states)])
        gap, size = _compared([buffer], [after])
        if not gap <= wide * moved + 1e-6 * size:
            return False
    return True


def _stack(tensors: Iterable[Tensor | None]) -> Tensor:
    return torch.stack([tensor for tensor in tensors if tensor is not None])


def _compared(found: Iterable[Tensor], expected: Iterable[Tensor]) -> tuple[float, float]:
    """Norms of the difference, and of what was expected, over all tensors."""
    pairs = [(a.cpu().double(), b.cpu().double()) for a, b in zip(found, expected, strict=True)]
    gaps, sizes = [float((a - b).norm()) for a, b in pairs], [float(b.norm()) for _, b in pairs]
    return math.hypot(*gaps), math.hypot(*sizes)


def _fits(stage: Stage, networks: int) -> bool:
    """Whether so many networks should fit into the memory of the device."""
    device = devices.replaying(stage.environment.device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.available()
    own = sum(t.numel() * t.element_size() for t in stage.start().model.values())
    return networks * _COPIES * own <= free


def replay_members(
    task: Task,
    stage: Stage,
    states: Sequence[TrainingState],
    progress: ProgressCallback = no_progress,
) -> list[TrainingState]:
    """The states at the end of a stage from each of these: as one, or one by one.

    One by one where their optimisers have kept different things, where memory does not suffice, and
    where a later batch needs what torch cannot do for stacked tensors.

    Args:
        task: Builds the model and computes the loss.
        stage: :func:`stackable`.
        states: At its start.
        progress: Called for every step.
    """
    if _fits(stage, len(states)):
        try:
            with _in_one_call(stage):
                ensemble = Ensemble(task, stage, states)
                for number, record in enumerate(stage.read_steps(), 1):
                    ensemble.step(record)
                    progress(number / stage.steps, f"stage {stage.name}, step {number}")
                return ensemble.states()
        except Exception:  # whatever is wrong with the stage itself, replay says below
            progress(0.0, f"stage {stage.name}, one by one")
    overall = Progress(progress)
    return [
        replay_stage(task, stage, state, overall.piece(number, len(states))).state
        for number, state in enumerate(states)
    ]


@dataclass
class Together:
    """What came of replaying later stages for several networks at once.

    Attributes:
        without: Stage that was left out, to the final model without it.
        factual: The final model with all stages, by the same arithmetic.
        relative: Later stage to the distance of the factual network from its recorded end, over
            the norm of what the stage changed.
    """

    without: dict[str, Weights] = field(default_factory=dict)
    factual: Weights = field(default_factory=dict)
    relative: dict[str, float] = field(default_factory=dict)


def replay_together(
    run: Run, stages: Sequence[Stage], progress: ProgressCallback = no_progress
) -> Together:
    """The final models without each of these stages, and with all of them, replayed at once.

    Args:
        run: The run.
        stages: Those to leave out, not the last; all stages after them are :func:`stackable`.
        progress: Called for every step.
    """
    first, names = min(stage.index for stage in stages), {stage.name for stage in stages}
    later = run.stages[first + 1 :]
    for stage in later:
        check_crossable(stage.name, stage.facts.boundary)
    work = sum(stage.steps for stage in later)
    done, overall, found = 0, Progress(progress), Together()
    factual, without = run.stages[first].end(), dict[str, TrainingState]()
    for stage in later:
        before = run.stages[stage.index - 1]
        if before.name in names:
            without[before.name] = before.start()
        states = [cross_boundary(state, stage) for state in (factual, *without.values())]
        report = overall.part(done / work, (done + stage.steps) / work)
        factual, *others = replay_members(run.task, stage, states, report)
        without = dict(zip(without, others, strict=True))
        found.relative[stage.name] = distance(factual.model, stage)[1]
        done += stage.steps
    found.factual = factual.model
    found.without = {name: state.model for name, state in without.items()}
    return found
