"""One recorded step, run again: its gradient, and the optimiser's update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.compute import devices
from stagelens.contracts import Refused, Task
from stagelens.runs.batches import to_device
from stagelens.runs.schema import Precision, StageFile
from stagelens.runs.step_records import MicroBatch, StepRecord

from .optimizers import set_group_hyperparameters, update
from .shared_batches import SplitGradient

AUTOCAST: Mapping[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What autocast casts to, for each precision that it gives."""


@dataclass
class StepRules:
    """What a stage does at each of its steps besides the optimiser's update.

    Attributes:
        accumulation: Each micro-batch's loss is divided by it before backward, where the
            micro-batch has no divisor of its own.
        clip_norm: Largest total gradient norm; None where nothing is clipped.
        evaluation_mode: Modules that stay in evaluation mode while training.
        trainable: Parameters that require a gradient.
        precision: Of forward passes; other than float32 under autocast.
    """

    accumulation: int = 1
    clip_norm: float | None = None
    evaluation_mode: Sequence[str] = ()
    trainable: Sequence[str] = ()
    precision: Precision = "float32"

    @classmethod
    def of(cls, facts: StageFile) -> StepRules:
        """Those of a recorded stage."""
        return cls(
            facts.accumulation,
            facts.clip_norm,
            facts.evaluation_mode,
            facts.trainable,
            facts.precision,
        )

    def divisor(self, micro: MicroBatch) -> float:
        """What a micro-batch's loss is divided by before backward."""
        return micro.divisor or self.accumulation


def widest_eps(model: nn.Module) -> float:
    """What rounding leaves of a number of a model's coarsest floating dtype, relative."""
    kinds = {each.dtype for each in model.parameters() if each.is_floating_point()}
    return max((torch.finfo(kind).eps for kind in kinds), default=0.0)


def prepare(model: nn.Module, rules: StepRules) -> None:
    """Set the training modes and ``requires_grad`` flags of a stage."""
    model.train()
    modules = dict(model.named_modules())
    for name in rules.evaluation_mode:
        # Not eval(), which would take submodules along; those concerned are listed themselves.
        modules[name].training = False
    trainable = set(rules.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)


def loss_of(task: Task, model: nn.Module, batch: Any, rules: StepRules) -> Tensor:
    """The task's loss of a batch on the model's device, in the precision of the stage; ()."""
    if rules.precision == "float32":
        return task.loss(model, batch)
    device = next(model.parameters()).device.type
    with torch.autocast(device, dtype=AUTOCAST[rules.precision]):
        return task.loss(model, batch).float()


def step(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    record: StepRecord,
    rules: StepRules,
    split: SplitGradient | None = None,
) -> list[float]:
    """Run one recorded step on a prepared model, in place; see :func:`backward`."""
    losses = backward(task, model, optimizer, record, rules, split)
    set_group_hyperparameters(optimizer, record.groups)
    update(optimizer)
    return losses


def backward(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    record: StepRecord,
    rules: StepRules,
    split: SplitGradient | None = None,
) -> list[float]:
    """Leave in a prepared model the gradient that the optimiser received at a recorded step.

    Args:
        task: Computes the loss.
        model: Prepared.
        optimizer: Of its parameters.
        record: The step.
        rules: Of its stage.
        split: Where every process takes its part of each micro-batch.

    Returns:
        The task's loss of each micro-batch, before division; of a split one this process's part.
    """
    if record.batches is None:
        raise Refused(f"the batch of step {record.step} was not kept, so it cannot be replayed")
    parameters = dict(model.named_parameters())
    device = next(iter(parameters.values())).device
    losses = []
    loss = partial(loss_of, task, model, rules=rules)
    optimizer.zero_grad(set_to_none=True)
    for micro in record.batches:
        devices.restore_random(micro.rng, device)
        batch, divisor = to_device(micro.batch, device), rules.divisor(micro)
        if split is not None:
            losses.append(split.backward(batch, loss, divisor))
            continue
        whole = loss(batch)
        losses.append(float(whole.detach()))
        (whole if divisor == 1 else whole / divisor).backward()
    if split is not None:
        split.add_up(parameters, record.missing)
    restore_missing(parameters, record.missing, optimizer)
    if rules.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), rules.clip_norm)
    return losses


def restore_missing(
    parameters: dict[str, nn.Parameter],
    missing: Sequence[str],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Restore "no gradient" and "zero gradient" as recorded: only the first skips an update."""
    absent = {id(parameters[name]) for name in missing}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in absent:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
