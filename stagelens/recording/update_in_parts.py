"""The update of a step that is run again, made and compared one part of the model after another.

SGD, Adam and AdamW update each tensor by its own gradient and its own state alone. So an optimiser
of one part needs the state of that part only, where that of the whole model is twice its size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import nn

from stagelens.replaying.optimizers import update
from stagelens.runs.optimizer_set import AnyOptimizer, forget_state, members
from stagelens.runs.states import (
    OptimizerState,
    TrainingState,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    rule_of,
)

from .step_comparison import At, UpdateCheck, moved

_PARTS = 16


def by_tensor(optimizer: AnyOptimizer) -> bool:
    """Whether an optimiser is known to update every tensor by itself."""
    # Others may keep counts for a whole group, or scale by what all tensors have in common.
    return all(rule_of(one).formula for one in members(optimizer))


def check_update_in_parts(
    twin: nn.Module,
    optimizer: AnyOptimizer,
    before: OptimizerState,
    seen: TrainingState,
    at: At,
    beside: bool,
    left_out: Collection[str] = (),
) -> None:
    """Update a model by the gradients that it holds, and compare it with the training's.

    Args:
        twin: As before the step, with the step's gradients; it loses them.
        optimizer: Of its parameters, with the step's hyperparameters and without state;
            :func:`by_tensor`.
        before: What the training's optimiser kept before the step.
        seen: The training after the step.
        at: The step.
        beside: See :func:`~stagelens.recording.step_comparison.check_update`.
        left_out: Parameters whose update is not compared.

    Raises:
        RecordingError: They differ; names where most.
    """
    check = UpdateCheck(at, beside)
    parameters = dict(twin.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    twin.zero_grad()
    own = model_tensors(twin)  # its own memory, which updates change
    device, change = next(iter(parameters.values())).device, 0.0
    sizes = {name: tensor.nbytes for name, tensor in own.items() if name not in left_out}
    for part in _parts(sizes):
        for name in parameters.keys() & set(part):
            parameters[name].grad = gradients.pop(name)
        after = {name: seen.model[name].to(device) for name in part}
        change += moved({name: own[name] for name in part}, after)
        load_optimizer(optimizer, names, _of(before, part))
        update(optimizer)  # passes over what has no gradient
        check.add(
            TrainingState({n: own[n] for n in part}, optimizer_tensors(optimizer, names)),
            TrainingState(after, _on(device, _of(seen.optimizer, part))),
        )
        twin.zero_grad()
        forget_state(optimizer)
    check.finish(lambda: change)


def _of(state: OptimizerState, names: list[str]) -> OptimizerState:
    return {name: state[name] for name in names if name in state}


def _on(device: torch.device, state: OptimizerState) -> OptimizerState:
    return {n: {k: tensor.to(device) for k, tensor in own.items()} for n, own in state.items()}


def _parts(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names in their order, in parts of about a sixteenth of the model, or of one tensor."""
    most, size = sum(sizes.values()) / _PARTS, 0
    part: list[str] = []
    for name, own in sizes.items():
        if part and size + own > most:
            yield part
            part, size = [], 0
        part.append(name)
        size += own
    if part:
        yield part
