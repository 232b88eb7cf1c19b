"""How large a run becomes, said at its first step: before the disk is full, not after."""

from __future__ import annotations

import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from stagelens.compute.memory import amount
from stagelens.contracts import RecordingWarning
from stagelens.runs.optimizer_set import AnyOptimizer
from stagelens.runs.packed import pack
from stagelens.runs.states import model_tensors, optimizer_tensors
from stagelens.runs.step_rows import stack_name
from stagelens.runs.steps import FlatStep

from .stage_settings import StageSettings

_MOSTLY = 0.9
"""As in :mod:`stagelens.runs.saved_states`: from this share on, all of a model is written again."""

_SAMPLE = 1 << 18
"""Bytes of batches from which it is seen how far they are packed."""

_WORTH_SAYING = 10**9
"""Bytes of a stage with 1,000 steps from which its size is said, where it fits."""


@dataclass(frozen=True)
class SizeAhead:
    """What a run will take on disk.

    Attributes:
        model: Bytes of the first stage's start: all parameters and buffers.
        end: Bytes of each stage's end: those that training changes.
        optimizer: Bytes of the optimiser's state, wherever that is stored.
        step: Bytes of a step's batches and random states, packed, on average where only those of
            every n-th step are kept; 0 where none are.
        kept: Whether every stage's end has the optimiser's state.
        checkpoint_every: Steps between checkpoints, each an end with the optimiser's state.
    """

    model: int
    end: int
    optimizer: int
    step: float
    kept: bool = False
    checkpoint_every: int | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: AnyOptimizer,
        step: FlatStep,
        settings: StageSettings,
        processes: int = 1,
    ) -> SizeAhead:
        """What follows from a model, and from the first step that was made of it.

        Args:
            model: As it is trained; it may be on ``meta``.
            optimizer: After the step.
            step: Its batches; none where they are not kept.
            settings: Of the stage.
            processes: How many have micro-batches like this one's.
        """
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        states = optimizer_tensors(optimizer, names).values()
        whole, changed = weights_of(model)
        nth = settings.keep_batches if isinstance(settings.keep_batches, int) else 1
        return cls(
            model=whole,
            end=changed,
            optimizer=sum(tensor.nbytes for own in states for tensor in own.values()),
            step=processes * _packed_bytes(step) / nth,
            kept=settings.keep_optimizer,
            checkpoint_every=settings.checkpoint_every,
        )

    def stage(self, steps: int) -> int:
        """Bytes that a stage of so many steps adds."""
        checkpoints = steps // self.checkpoint_every if self.checkpoint_every else 0
        ends = self.end + (self.optimizer if self.kept else 0)
        return round(ends + checkpoints * (self.end + self.optimizer) + steps * self.step)

    def sentence(self, free: int) -> str:
        """All of it in words.

        Args:
            free: Bytes that are free on the disk.
        """
        parts = [f"{amount(self.model)} once", f"{amount(self.end)} at every stage's end"]
        if self.optimizer:
            where = "there too" if self.kept else "where the next stage carries it on"
            parts.append(f"{amount(self.optimizer)} of the optimiser's state {where}")
        if self.checkpoint_every:
            each = amount(self.end + self.optimizer)
            parts.append(f"{each} every {self.checkpoint_every:,} steps for a checkpoint")
        if self.step:
            parts.append(f"{amount(round(1000 * self.step))} of batches per 1,000 steps")
        return f"the run takes about {', '.join(parts)}; {amount(free)} are free on its disk"


def weights_of(model: nn.Module) -> tuple[int, int]:
    """Bytes of a model's parameters and buffers, and of those that a stage's end writes.

    What training does not change is stored once: frozen parameters, and buffers other than the
    running statistics of normalisation.
    """
    running = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name, _ in module.named_buffers(recurse=False)
        if hasattr(module, "running_mean")
    }
    trained = {name for name, each in model.named_parameters() if each.requires_grad} | running
    sizes = {name: tensor.nbytes for name, tensor in model_tensors(model).items()}
    whole = sum(sizes.values())
    changed = sum(size for name, size in sizes.items() if name in trained)
    return whole, whole if changed > _MOSTLY * whole else changed


def tell_size(path: Path, ahead: SizeAhead) -> None:
    """Say how large a run becomes, and warn where it does not fit; never stops the training.

    Args:
        path: The run folder.
        ahead: What it will take.
    """
    free, needed = shutil.disk_usage(path).free, ahead.model + ahead.stage(1000)
    if needed > free:
        warnings.warn(
            f"{ahead.sentence(free)}: a stage of 1,000 steps does not fit. The training goes on; "
            'keep fewer batches (keep_batches="none", or every n-th), fewer checkpoints, or record '
            "on another disk",
            RecordingWarning,
            stacklevel=2,
        )
    elif needed >= _WORTH_SAYING:
        print(f"stagelens: {ahead.sentence(free)}", file=sys.stderr)


def _packed_bytes(step: FlatStep) -> float:
    """Bytes of one step's batches and random states as a part of steps stores them."""
    stacks: dict[str, Tensor] = {}
    raw = sum(tensor.nbytes for micro in step.micro for _, tensor in micro.stored)
    if not raw:
        return 0.0
    # As often as it takes to see what many of its kind come to; each row is packed by itself.
    times = max(1, min(1024, _SAMPLE // raw))
    for number, micro in enumerate(step.micro):
        for place, tensor in micro.stored:
            name = stack_name(f"{number}.{place}", tensor)
            stacks[name] = torch.stack([tensor] * times)
    found, _ = pack(stacks, {name: list(range(times)) for name in stacks})
    return sum(tensor.nbytes for tensor in found.values()) / times
