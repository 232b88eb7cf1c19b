"""A stage's first recorded step is replayed at once, and refused if it does not reproduce."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stagelens.contracts import RecordingError, Task
from stagelens.replaying.optimizers import build_optimizer
from stagelens.replaying.step import StepRules, prepare, step
from stagelens.runs.schema import OptimizerFacts
from stagelens.runs.states import TrainingState, Weights, load_into, load_optimizer, model_tensors
from stagelens.runs.step_records import MicroBatch, StepRecord
from stagelens.runs.steps import FlatMicroBatch

from .watch import Watch

_TOLERANCE = 1e-4
"""Relative; far above rounding in float32, far below the effect of a forgotten setting."""


@dataclass
class FirstStep:
    """What is kept of a stage until its first step has been replayed.

    Attributes:
        task: Computes the loss.
        built: A module that the task built, with any weights.
        start: Training state before the step.
        facts: The stage's optimiser.
        batches: The step's, as noted.
    """

    task: Task
    built: torch.nn.Module
    start: TrainingState
    facts: OptimizerFacts
    batches: list[Any] = field(default_factory=list)

    def check(
        self, watch: Watch, rules: StepRules, micro: list[FlatMicroBatch], reported: list[float]
    ) -> int:
        """Replay the step and compare it with what the training loop did.

        Args:
            watch: Watched the step; its copies of gradients are dropped.
            rules: Accumulation, clipping and modes, as declared.
            micro: The step's micro-batches.
            reported: Loss of each, as the loop gave it to ``stage.step``.

        Returns:
            How many forward passes came before each batch.

        Raises:
            RecordingError: Loss, gradient or update differs; names the likely cause.
        """
        # A loss may call the model more than once per batch, but equally often for every batch.
        if watch.forwards % len(micro) or not watch.forwards:
            raise RecordingError(
                f"{watch.forwards} forward passes of the model came before the first update, but "
                f"{len(micro)} batches were noted; call the model itself (not its parts or its "
                "forward method), and call stage.step(batch, loss) once after every backward "
                "pass, following optimizer.step()"
            )
        batches = [
            MicroBatch(batch, each.rng, each.divisor)
            for batch, each in zip(self.batches, micro, strict=True)
        ]
        divisors = tuple(each.divisor for each in micro)
        record = StepRecord(0, reported[0], watch.groups, watch.missing, divisors, batches)
        try:
            self._compare(rules, record, reported, watch.gradients, model_tensors(watch.model))
        except RecordingError as error:
            # Accumulation that was not declared can pass the check above, with more passes.
            if watch.forwards == len(micro):
                raise
            raise RecordingError(
                f"{error}. {watch.forwards} forward passes came before this update, but "
                f"{len(micro)} batches were noted: where gradients are accumulated, declare "
                "stage(..., accumulation=G) and call stage.step after every backward pass"
            ) from None
        # As large as the model, and nobody asks for them again.
        watch.gradients = {}
        return watch.forwards // len(micro)

    def _compare(
        self,
        rules: StepRules,
        record: StepRecord,
        reported: list[float],
        gradients: dict[str, Tensor],
        after: dict[str, Tensor],
    ) -> None:
        device = next(iter(after.values())).device
        load_into(self.built, self.start.model)
        self.built.to(device)
        prepare(self.built, rules)
        parameters = dict(self.built.named_parameters())
        optimizer = build_optimizer(self.facts, parameters)
        names = {id(parameter): name for name, parameter in parameters.items()}
        load_optimizer(optimizer, names, self.start.optimizer)
        rng_devices = [device] if device.type == "cuda" else []
        # The step sets generators to recorded states, which the training loop must not notice; the
        # loop may call stage.step under no_grad.
        with torch.random.fork_rng(devices=rng_devices), torch.enable_grad():
            try:
                losses = step(self.task, self.built, optimizer, record, rules)
            # task.loss is the user's code and may raise anything.
            except Exception as error:
                raise RecordingError(
                    "task.loss(model, batch) cannot be recomputed from the batch of the first "
                    f"step ({type(error).__name__}: {error}); pass stage.step the batch that "
                    "task.loss takes, made of tensors, numbers and strings in plain tuples, lists "
                    "and dictionaries"
                ) from error
        _check_losses(losses, reported, rules.accumulation)
        replayed = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        _check_gradients(replayed, gradients, rules)
        _check_update(model_tensors(self.built), after, self.start.model)


def _check_losses(losses: list[float], reported: list[float], accumulation: int) -> None:
    for number, (own, given) in enumerate(zip(losses, reported, strict=True)):
        # The training diverged, and so did its replay.
        if math.isnan(own) and math.isnan(given):
            continue
        # Loops report the loss either as it is or as they backpropagate it, divided.
        candidates = (own, own / accumulation)
        # Absolute below 1, since rounding is large relative to a loss near zero.
        if not any(abs(c - given) <= _TOLERANCE * max(1.0, abs(given)) for c in candidates):
            where = f" of micro-batch {number + 1}" if len(losses) > 1 else ""
            raise RecordingError(
                f"the loss{where} of the first step is {given:.6g}, but task.loss(model, batch) "
                f"gives {own:.6g} for the same model and batch. Train on the loss of the task, "
                "pass the batch that it was computed from, and call stage.step(batch, loss) right "
                "after optimizer.step(); randomness outside torch's own generator, or drawn before "
                "the model is called, cannot be replayed"
            )


def _check_gradients(
    replayed: dict[str, Tensor], seen: dict[str, Tensor], rules: StepRules
) -> None:
    dot = own_square = seen_square = gap_square = 0.0
    for name, gradient in seen.items():
        # float64: half precision overflows when squared, and the squares are compared to 1e-8.
        own = replayed[name].double()
        other = gradient.double()
        dot += float((own * other).sum())
        own_square += float(own.square().sum())
        seen_square += float(other.square().sum())
        gap_square += float((own - other).square().sum())
    # Gradients that are not finite cannot be compared; a training that diverges is still recorded.
    if not math.isfinite(gap_square) or gap_square <= _TOLERANCE**2 * seen_square:
        return
    scale = math.sqrt(seen_square / own_square) if own_square else math.inf
    # Gradients that only differ in length were scaled: by clipping, accumulation or a factor.
    aligned = own_square > 0 and dot > 0.9999 * math.sqrt(own_square * seen_square)
    if aligned:
        raise RecordingError(
            f"the gradients of the first step are {scale:.4g} times those of the recorded "
            f"settings (clip_norm={rules.clip_norm}, accumulation={rules.accumulation}): declare "
            "clipping with stage(..., clip_norm=MAX_NORM) and gradient accumulation with "
            "stage(..., accumulation=G), or backpropagate the loss of the task unscaled"
        )
    raise RecordingError(
        "the gradients of the first step are not those of task.loss(model, batch), although the "
        "loss agrees: something was added to them or to the loss (a penalty, noise, gradients of "
        "an update before); put it into the task's loss, or into the optimiser's weight_decay"
    )


def _check_update(replayed: Weights, after: Weights, start: Weights) -> None:
    gap = change = 0.0
    worst = ("", -1.0)
    for name, tensor in after.items():
        # Counters, such as num_batches_tracked, would dominate the norm of the change.
        if not tensor.is_floating_point():
            continue
        moved = tensor.double() - start[name].to(tensor.device).double()
        difference = float((replayed[name].double() - tensor.double()).square().sum())
        gap, change = gap + difference, change + float(moved.square().sum())
        worst = max(worst, (name, difference), key=lambda pair: pair[1])
    if math.isfinite(gap) and gap > _TOLERANCE**2 * change:
        raise RecordingError(
            f"the first update is not the optimiser's own (largest difference in {worst[0]}): "
            "something else changed the model during the step; leave parameters to the optimiser"
        )
