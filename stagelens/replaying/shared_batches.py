"""One recorded batch over several processes: each takes some of its examples, gradients are added.

A batch's loss is the mean of some terms, by default one per example. A process with w of the W
terms computes the gradient of ``w/W`` times its own mean; their sum over processes is the batch's
gradient, up to the order of additions. So all processes take the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from stagelens.compute import processes
from stagelens.contracts import Refused, Task
from stagelens.runs.batches import batch_size, rows_of
from stagelens.runs.step_records import MicroBatch

_ALIKE = {torch.float64: 1e-10}
"""Largest relative difference between a batch's loss and that of its parts; 1e-4 for the others."""

LossOf = Callable[[Any], Tensor]


def check_splittable(model: nn.Module, stage: str) -> None:
    """Refuse a model in which the examples of a batch affect one another.

    Args:
        model: In the modes of the stage.
        stage: Its name, for the message.

    Raises:
        Refused: It has a BatchNorm in training mode, or dropout; names the module.
    """
    for name, module in model.named_modules():
        if not module.training:
            continue
        kind = type(module).__name__
        if isinstance(module, _BatchNorm):
            why = f"{kind} {name!r} couples the examples of a batch"
        elif isinstance(module, _DropoutNd) and module.p > 0:
            why = f"{kind} {name!r} draws random numbers for the batch as a whole"
        else:
            continue
        raise _refusal(stage, why)


def _refusal(stage: str, why: str) -> Refused:
    return Refused(
        f"the batches of stage {stage!r} cannot be split over processes, because {why}; omit "
        "--split-batches, and processes share out whole counterfactuals"
    )


class SplitGradient:
    """Gradients of recorded steps, each process with its part of every micro-batch.

    Args:
        task: Computes the loss.
        model: Prepared for the stage.
        stage: Its name, for messages.
        trained_by: How many processes trained it. As many take the micro-batches that each had
            then, whatever is in the model.

    Attributes:
        whole: Whether they do.
    """

    def __init__(self, task: Task, model: nn.Module, stage: str, trained_by: int = 1) -> None:
        self.whole = 1 < trained_by == processes.count()
        if not self.whole:
            check_splittable(model, stage)
        self._task, self._model, self._stage = task, model, stage
        self._checked = False

    def mine(self, batches: Sequence[MicroBatch]) -> Sequence[MicroBatch]:
        """The micro-batches of a step that this process takes, or a part of each of them."""
        own = processes.number()
        return [micro for micro in batches if micro.process == own] if self.whole else batches

    def from_main(self) -> None:
        """Give all processes the main one's buffers, which its passes have moved."""
        for buffer in self._model.buffers() if self.whole else ():
            buffer.copy_(processes.from_main(buffer))

    def backward(self, batch: Any, loss_of: LossOf, divisor: float) -> float:
        """Add this process's part of ``loss / divisor`` to the parameters' gradients.

        Args:
            batch: The whole micro-batch, on the model's device.
            loss_of: Batch to loss.
            divisor: What the loss is divided by before backward.

        Returns:
            This process's part of the batch's loss; the parts add up to it.

        Raises:
            Refused: The task's loss is not the mean that it says, or passes draw random numbers.
        """
        # Once a stage, for the passes that it costs: kinds of modules and loss stay the same.
        if not self._checked:
            self._check(batch, loss_of)
            self._checked = True
        share, part = self._part(batch, processes.number(), processes.count())
        if not share:
            return 0.0
        loss = loss_of(part) * share
        (loss / divisor).backward()
        return float(loss.detach())

    def _part(self, batch: Any, number: int, count: int) -> tuple[float, Any]:
        """A process's share of a batch's loss, and its examples."""
        size = batch_size(batch)
        start, stop = size * number // count, size * (number + 1) // count
        if start == stop:
            return 0.0, None
        part = rows_of(batch, slice(start, stop))
        terms = self._task.loss_terms(batch)
        if terms is None:
            return (stop - start) / size, part
        return (self._task.loss_terms(part) or 0.0) / terms if terms else 1.0, part

    @torch.no_grad()
    def _check(self, batch: Any, loss_of: LossOf) -> None:
        """Compare a batch with its parts, and look for what the kinds of modules do not show."""
        random = self._random_states()
        # A module of the user's own can couple examples as BatchNorm does, and shows it here.
        buffers = {name: b.clone() for name, b in self._model.named_buffers()}
        whole = loss_of(batch)
        if not all(map(torch.equal, random, self._random_states())):
            raise _refusal(self._stage, "its passes draw random numbers")
        for name, buffer in self._model.named_buffers():
            if not torch.equal(buffers[name], buffer):
                raise _refusal(self._stage, f"buffer {name!r} changes with every pass")
        count = processes.count()
        parts = [self._part(batch, number, count) for number in range(count)]
        added = sum(share * float(loss_of(part)) for share, part in parts if share)
        # Not ``>``, which NaN would pass.
        if not abs(added - float(whole)) <= _ALIKE.get(whole.dtype, 1e-4) * abs(float(whole)):
            raise _refusal(
                self._stage,
                f"the loss of a batch is {float(whole):.6g}, but its parts give {added:.6g} (what "
                "it is the mean of is said by the task's loss_terms)",
            )

    def _random_states(self) -> list[Tensor]:
        device = next(self._model.parameters()).device
        on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
        return [torch.get_rng_state(), *on_gpu]

    def add_up(self, parameters: Mapping[str, nn.Parameter], missing: Sequence[str]) -> None:
        """Make every process's gradients those of the whole step.

        Args:
            parameters: By name.
            missing: Those without a gradient in the recorded step.
        """
        # Also what has no gradient here: a process without examples sends zeros of the same shape.
        there = [p for name, p in parameters.items() if p.requires_grad and name not in missing]
        for dtype in dict.fromkeys(p.dtype for p in there):
            own = [p for p in there if p.dtype == dtype]
            # One message per dtype instead of one per parameter.
            flat = torch.cat(
                [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in own]
            )
            added = processes.added(flat).split([p.numel() for p in own])
            for parameter, gradient in zip(own, added, strict=True):
                parameter.grad = gradient.view_as(parameter)
