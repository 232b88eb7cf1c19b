"""One recorded step, run again: its gradient, and the optimiser's update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stagelens.compute import devices
from stagelens.contracts import Refused
from stagelens.runs.batches import to_device
from stagelens.runs.optimizer_set import AnyOptimizer
from stagelens.runs.schema import Precision, StageFile
from stagelens.runs.step_records import MicroBatch, StepRecord

from .embedding_noise import add_noise
from .modes import call_all, calls_before
from .optimizers import set_group_hyperparameters, update
from .same_draws import same_draws
from .sharded_model import SharedModel
from .shared_batches import SplitGradient
from .training_loss import LossFunction, TrainingLoss

AUTOCAST: Mapping[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What autocast casts to, for each precision that it gives."""

OF_KERNELS = 1e-2
"""Largest relative difference that fused or compiled code makes to a loss, or to a gradient: about
that of bfloat16, in which some of it sums. A setting that was forgotten makes a larger one."""


@dataclass
class StepRules:
    """What a stage does at each of its steps besides the optimiser's update.

    Attributes:
        accumulation: Each micro-batch's loss is divided by it before backward, where the
            micro-batch has no divisor of its own; of all processes together.
        clip_norm: Largest total gradient norm; None where nothing is clipped.
        evaluation_mode: Modules that stay in evaluation mode while training.
        trainable: Parameters that require a gradient.
        precision: Of forward passes; other than float32 under autocast.
        embedding_noise: NEFTune's alpha; None without.
        autocast: What autocast is around.
        kernels: What computed the recorded passes in place of the model's own code, by name.
        zeroed: Whose gradients are cleared before a step.
        processes: How many trained the stage together.
    """

    accumulation: int = 1
    clip_norm: float | None = None
    evaluation_mode: Sequence[str] = ()
    trainable: Sequence[str] = ()
    precision: Precision = "float32"
    embedding_noise: float | None = None
    autocast: Literal["loss", "passes"] = "loss"
    kernels: Sequence[str] = ()
    zeroed: Literal["optimizer", "model"] = "optimizer"
    processes: int = 1

    @classmethod
    def of(cls, facts: StageFile) -> StepRules:
        """Those of a recorded stage."""
        return cls(
            facts.accumulation * facts.processes,  # the mean over them is in it
            facts.clip_norm,
            facts.evaluation_mode,
            facts.trainable,
            facts.precision,
            facts.embedding_noise,
            facts.objective.autocast if facts.objective is not None else "loss",
            facts.kernels,
            facts.zeroed,
            facts.processes,
        )

    @property
    def of_one(self) -> StepRules:
        """Those of each of the processes, for its own micro-batches."""
        return replace(self, accumulation=self.accumulation // self.processes, processes=1)

    @property
    def clips_leftovers(self) -> bool:
        """Whether gradients that no optimiser of the stage clears take part in clipping."""
        return self.clip_norm is not None and self.zeroed == "optimizer"

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
    if rules.embedding_noise is not None:
        add_noise(model, rules.embedding_noise)


def loss_of(loss: LossFunction, model: nn.Module, batch: Any, rules: StepRules) -> Tensor:
    """The loss of a batch on the model's device, in the precision of the stage; ()."""
    if rules.precision == "float32":
        return loss(model, batch)
    device, dtype = next(model.parameters()).device.type, AUTOCAST[rules.precision]
    if rules.autocast == "passes":
        references = loss.references.values() if isinstance(loss, TrainingLoss) else ()
        with ExitStack() as around:
            for each in (model, *references):
                around.enter_context(_autocast_passes(each, device, dtype))
            return loss(model, batch)
    with torch.autocast(device, dtype=dtype):
        return loss(model, batch).float()


@contextmanager
def _autocast_passes(model: nn.Module, device: str, dtype: torch.dtype) -> Iterator[None]:
    """Autocast within a model's passes only, with outputs in float32, as accelerate has it."""
    from accelerate.utils import convert_outputs_to_fp32

    casting: Any = convert_outputs_to_fp32(torch.autocast(device, dtype=dtype)(model.forward))
    casting.autocast_dtype = dtype  # for objectives that prepare the model below what casts
    model.forward = casting
    try:
        yield
    finally:
        del model.forward


class MainBuffers:
    """Buffers that passes move, such as BatchNorm's running statistics: the main process's.

    The passes of the stage's other processes leave them as they are: torch's data parallelism
    hands the main one's to all, and it is the main one's that are saved.

    Args:
        buffers: Of the model.
        rules: Of the stage.
        several: Whether several processes replay it.
    """

    def __init__(self, buffers: Iterable[Tensor], rules: StepRules, several: bool = False) -> None:
        self._moving = list(buffers) if several or rules.processes > 1 else []

    @contextmanager
    def of(self, micro: MicroBatch) -> Iterator[None]:
        """Around the forward and the backward pass of a micro-batch."""
        if not micro.process or not self._moving:
            yield
            return
        before = [buffer.clone() for buffer in self._moving]
        yield
        # After backward, which would find them changed in place.
        for buffer, own in zip(self._moving, before, strict=True):
            buffer.copy_(own)


class Stepper:
    """Runs recorded steps on a prepared model, in place.

    What stays the same from step to step is looked up once: the steps of a small model take no
    longer than looking it up does.

    Args:
        loss: That the stage minimised.
        model: Prepared.
        optimizer: Of its parameters.
        rules: Of the stage.
        shared: Where processes share the work: every one takes its part of each micro-batch, or
            whole micro-batches on its part of the model.

    Attributes:
        other_draws: Operations of passes over parts of recorded micro-batches whose random numbers
            were not those recorded.
    """

    def __init__(
        self,
        loss: LossFunction,
        model: nn.Module,
        optimizer: AnyOptimizer,
        rules: StepRules,
        shared: SplitGradient | SharedModel | None = None,
    ) -> None:
        self._optimizer, self._rules, self._shared = optimizer, rules, shared
        self._parameters = dict(model.named_parameters())
        self._updated = [p for group in optimizer.param_groups for p in group["params"]]
        self._cleared = self._updated
        if rules.zeroed == "model":
            self._cleared = list(self._parameters.values())
        self._device = next(iter(self._parameters.values())).device
        self._buffers = MainBuffers(model.buffers(), rules, isinstance(shared, SharedModel))
        self._loss = partial(loss_of, loss, model, rules=rules)
        self.other_draws: set[str] = set()

    def step(self, record: StepRecord) -> list[float]:
        """Run one recorded step; see :meth:`backward`."""
        losses = self.backward(record)
        set_group_hyperparameters(self._optimizer, record.groups)
        update(self._optimizer)
        return losses

    def backward(self, record: StepRecord) -> list[float]:
        """Leave in the model the gradient that the optimiser received at a recorded step.

        Returns:
            The loss of each micro-batch, before division; of a split one this process's
            part.
        """
        if record.batches is None:
            raise Refused(f"the batch of step {record.step} was not kept, so it cannot be replayed")
        call_all(self._optimizer, calls_before(record.groups))
        # As zero_grad does, without what it notes for torch's profiler.
        for parameter in self._cleared:
            parameter.grad = None
        if isinstance(self._shared, SplitGradient):
            split = self._shared
            losses = [self._part(split, micro) for micro in split.mine(record.batches)]
            self._shared.add_up(self._parameters, record.missing)
        elif self._shared is not None:
            losses = self._passes_of(self._shared, record.batches)
        else:
            losses = [self._pass(micro, self._rules.divisor(micro)) for micro in record.batches]
        restore_missing(self._parameters, record.missing, self._updated)
        if self._rules.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters.values(), self._rules.clip_norm)
        return losses

    def _pass(self, micro: MicroBatch, divisor: float, weight: float = 1.0) -> float:
        """One forward and backward pass; the loss before division."""
        devices.restore_random(micro.rng, self._device)
        batch = to_device(micro.batch, self._device)
        with self._buffers.of(micro), same_draws(micro) as draws:
            whole = self._loss(batch)
            loss: float = whole.item()
            if weight != 1:
                whole = whole * weight
            (whole if divisor == 1 else whole / divisor).backward()
        if draws is not None:
            self.other_draws |= draws.others
        return loss

    def _part(self, split: SplitGradient, micro: MicroBatch) -> float:
        if split.whole:
            return self._pass(micro, self._rules.divisor(micro))
        devices.restore_random(micro.rng, self._device)
        batch = to_device(micro.batch, self._device)
        return split.backward(batch, self._loss, self._rules.divisor(micro))

    def _passes_of(self, shared: SharedModel, batches: Sequence[MicroBatch]) -> list[float]:
        own: dict[int, float] = {}
        for place, micro in shared.own(batches):
            # Torch takes the mean over processes.
            divisor = self._rules.divisor(micro) / shared.count
            loss = self._pass(micro, divisor, 0.0 if place is None else 1.0)
            if place is not None:
                own[place] = loss
        return shared.losses(own, len(batches))


def restore_missing(
    parameters: Mapping[str, nn.Parameter],
    missing: Sequence[str],
    updated: Iterable[nn.Parameter],
) -> None:
    """Restore "no gradient" and "zero gradient" as recorded: only the first skips an update.

    Args:
        parameters: By name.
        missing: Those without a gradient in the recorded step.
        updated: Those of the optimiser.
    """
    absent = {id(parameters[name]) for name in missing}
    for parameter in updated:
        if id(parameter) in absent:
            parameter.grad = None
        elif parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
