"""Whether a loss is a sum over the examples of a batch, each with the terms that its task tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stagelens.compute import devices
from stagelens.contracts import Refused, Task
from stagelens.runs.batches import to_device
from stagelens.runs.run import Stage
from stagelens.runs.step_records import MicroBatch

from .batch_parts import Cut
from .replay import StageReplay, same_arithmetic, tolerance_of
from .same_draws import same_draws
from .step import loss_of


def check_stage_adds_up(task: Task, stage: Stage) -> None:
    """Check the first micro-batch of a stage that has parts, by the model at the stage's start.

    Raises:
        Refused: As of :func:`check_adds_up`, or the stage cannot be replayed.
    """
    with same_arithmetic(stage):
        replay = StageReplay(task, stage)
        for record in stage.read_steps():
            for micro in record.batches or ():
                cut = Cut.of(stage, task, micro, {0}, 0)
                if check_adds_up(replay, cut) is not None:
                    return


@torch.no_grad()
def check_adds_up(replay: StageReplay, cut: Cut) -> set[str] | None:
    """Hold the loss of a micro-batch against those of its two parts.

    With the same random numbers, the loss of the whole is the mean of that of what is left and
    that of what is left out, each with its terms. What a task says of its loss is proven by it,
    and that no module of its own compares examples. BatchNorm is known to, and is looked at
    in evaluation mode.

    Args:
        replay: Its model is used, and left as it is.
        cut: A micro-batch of it.

    Returns:
        Operations whose random numbers could not be kept for those that are left; None where the
        micro-batch has not two parts.

    Raises:
        Refused: It is not.
    """
    if not 0 < cut.left < cut.terms:
        return None
    model = replay.model
    before = [buffer.clone() for buffer in model.buffers()]
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    draws: set[str] = set()
    others: set[str] = set()
    try:
        with _evaluated(norms):
            found = _compared(replay, cut, draws)
        if not found.same and (cut.micro.rng or draws):
            # Without any draws: are these the reason?
            with _evaluated(model.modules()):
                again = _compared(replay, cut, set())
            if again.same:
                others = draws or {"draws of its modules"}
                found = again
    finally:
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
    if found.same:
        return others
    raise Refused(
        f"no example of stage {replay.stage.name!r} can be left out by itself: the loss of a "
        f"batch is {found.whole:.6g}, but its parts give {found.parts:.6g}, so its examples "
        "affect one another (or the task's loss_terms does not say what the loss is the mean "
        "of)"
    )


@dataclass(frozen=True)
class _Compared:
    whole: float
    parts: float
    same: bool


def _compared(replay: StageReplay, cut: Cut, draws: set[str]) -> _Compared:
    micros = (cut.micro, cut.rest(), cut.others())
    (whole, left, others), tolerance = losses_of(replay, micros, draws)
    if cut.adds_up:
        parts = left + others
    else:
        parts = (left * cut.left + others * (cut.terms - cut.left)) / cut.terms
    size = max(abs(whole), abs(left), abs(others))
    return _Compared(whole, parts, abs(whole - parts) <= tolerance * size)


def losses_of(
    replay: StageReplay, micros: Sequence[MicroBatch], draws: set[str]
) -> tuple[list[float], float]:
    """Losses of passes, by the random numbers of the recorded one, and what rounding explains.

    Args:
        replay: Gives model and loss.
        micros: One pass each.
        draws: Is told operations whose random numbers were not those recorded.
    """
    device = next(replay.model.parameters()).device
    found, tolerance = [], 1e-9
    for micro in micros:
        devices.restore_random(micro.rng, device)
        with same_draws(micro) as own:
            loss = loss_of(replay.loss, replay.model, to_device(micro.batch, device), replay.rules)
        if own is not None:
            draws |= own.others
        found.append(float(loss))
        if loss.dtype is not torch.float64:  # as transformers have it, whatever the model is in
            tolerance = max(tolerance, tolerance_of(replay.rules, replay.model))
    return found, tolerance


@contextmanager
def _evaluated(modules: Iterable[nn.Module]) -> Iterator[None]:
    """In evaluation mode; afterwards as before."""
    before = [(module, module.training) for module in modules]
    for module, _ in before:
        module.training = False
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
