"""Training states: parameters, buffers and optimiser state, by name, in memory and on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.compute.unallocated import allocate
from stagelens.contracts import OptimizerRule, RunError, optimizer_name, optimizer_rule

from .optimizer_set import AnyOptimizer, members
from .optimizer_values import GROUP, as_tensors, from_tensors
from .quantised import quantised_parts, take_quantised
from .shards import is_shared_out, put_back, shared_like
from .streaming import facts_of, flat_blocks

Weights = Mapping[str, Tensor]
"""Parameters and buffers of one architecture, by name."""

OptimizerState = dict[str, dict[str, Tensor]]
"""Parameter name to what its optimiser keeps for it, for instance ``exp_avg`` and ``step``; what is
no plain tensor is named as in :mod:`.optimizer_values`."""


@dataclass
class TrainingState:
    """Everything that an update reads or writes, at one moment.

    Attributes:
        model: Parameters and buffers by name; shared parameters appear once.
        optimizer: Per parameter, the optimiser's tensors; a parameter that never had a gradient
            has no entry.
    """

    model: Weights
    optimizer: OptimizerState = field(default_factory=dict)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The module's own parameters and buffers (not copies), by name.

    Those of 4-bit weights come with what unpacks them, see :mod:`stagelens.runs.quantised`.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        # A plain tensor: a packed parameter would stay one, which cannot be copied.
        tensors[name] = parameter.detach().as_subclass(Tensor)
        tensors |= quantised_parts(name, parameter)
    tensors.update((name, b.detach()) for name, b in model.named_buffers())
    return tensors


def rule_of(optimizer: torch.optim.Optimizer) -> OptimizerRule:
    """How a registered optimiser is recorded.

    Raises:
        RunError: It is not registered.
    """
    rule = optimizer_rule(optimizer_name(optimizer) or "")
    if rule is None:
        raise RunError(f"the optimiser {type(optimizer).__name__} is not registered")
    return rule


def optimizer_tensors(optimizer: AnyOptimizer, names: Mapping[int, str]) -> OptimizerState:
    """The optimiser's own state tensors (not copies), by parameter name.

    What it keeps of a parameter group is found with each parameter that has a state.

    Args:
        optimizer: Of a registered class.
        names: ``id(parameter)`` to name.
    """
    states: OptimizerState = {}
    for one in members(optimizer):
        groups = _group_values(one)
        for parameter, state in one.state.items():
            tensors = as_tensors(state)
            if tensors:  # nothing is written of an empty entry, so it would not come back
                tensors.update(groups.get(id(parameter), {}))
                states[names[id(parameter)]] = tensors
    return states


def _group_values(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """``id(parameter)`` to the state of its group; empty for most optimisers."""
    keys = rule_of(optimizer).group_state
    if not keys:
        return {}
    values = [as_tensors({key: group[key] for key in keys}) for group in optimizer.param_groups]
    return {
        id(parameter): {GROUP + key: value for key, value in own.items()}
        for group, own in zip(optimizer.param_groups, values, strict=True)
        for parameter in group["params"]
    }


def copied(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, without gradients."""
    # copy=True: on the CPU, training would go on to change the very tensor that was kept.
    return tensor.detach().to("cpu", copy=True).contiguous()


def capture(
    model: nn.Module,
    optimizer: AnyOptimizer | None,
    names: Mapping[int, str],
    *,
    copy: bool = True,
) -> TrainingState:
    """Everything at this moment, on the CPU.

    Args:
        model: The model.
        optimizer: Its optimiser; None for a state of the model alone.
        names: ``id(parameter)`` to name.
        copy: Whether to copy what is on the CPU already. Without, it is right until training goes
            on, which is enough for writing it, and takes no memory.
    """
    kept = copied if copy else _on_cpu
    states = {} if optimizer is None else optimizer_tensors(optimizer, names)
    return TrainingState(
        {name: kept(tensor) for name, tensor in model_tensors(model).items()},
        {name: {k: kept(v) for k, v in state.items()} for name, state in states.items()},
    )


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def load_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy parameters and buffers into a module of the same architecture.

    Raises:
        RunError: A name is missing on either side, or a shape differs; nothing is broadcast.
    """
    allocate(model)
    put_back(model)
    take_quantised(model, tensors)
    with torch.no_grad():
        for name, tensor in fitted(model, tensors).items():
            # In blocks, so that only the module itself takes memory; to a GPU at once, since
            # every transfer takes its time.
            if is_shared_out(tensor):
                tensor.copy_(shared_like(tensor, tensors[name]))
            elif tensor.device.type == "cpu" and tensor.is_contiguous():
                flat, done = tensor.view(-1), 0
                for block in flat_blocks(tensors, name):
                    flat[done : done + len(block)] = block
                    done += len(block)
            else:
                tensor.copy_(tensors[name])


def fitted(model: nn.Module, tensors: Weights) -> dict[str, Tensor]:
    """The module's own parameters and buffers, in the dtypes of those that are to go into it.

    Raises:
        RunError: A name is missing on either side, or a shape differs.
    """
    own = model_tensors(model)
    if own.keys() != tensors.keys():
        raise RunError(
            "the model that the task builds does not fit the recorded state: "
            + _difference(own.keys(), tensors.keys())
            + "; open the run with the task that it was recorded with"
        )
    for name, tensor in own.items():
        facts = facts_of(tensors, name)
        # copy_ would broadcast a smaller shape without a word.
        if tensor.shape != facts.shape:
            raise RunError(
                f"{name} has shape {tuple(tensor.shape)} in the model that the task builds, "
                f"but {tuple(facts.shape)} in the recorded state; open the run with "
                "the task that it was recorded with"
            )
        if tensor.dtype != facts.dtype:
            own[name] = _retyped(model, name, facts.dtype)
    return own


def _retyped(model: nn.Module, name: str, dtype: torch.dtype) -> Tensor:
    """Give one parameter or buffer the recorded dtype: a cast would change its value."""
    module, _, attribute = name.rpartition(".")
    own: Tensor = getattr(model.get_submodule(module), attribute)
    # Through .data the parameter stays the same object, so that tied weights stay tied.
    own.data = own.data.to(dtype)
    return own.detach()


def _difference(built: object, recorded: object) -> str:
    only_built = sorted(set(built) - set(recorded))  # type: ignore[call-overload]
    only_recorded = sorted(set(recorded) - set(built))  # type: ignore[call-overload]
    parts = []
    if only_built:
        parts.append(f"only the built model has {', '.join(only_built[:3])}")
    if only_recorded:
        parts.append(f"only the recorded state has {', '.join(only_recorded[:3])}")
    return " and ".join(parts)


def load_optimizer(
    optimizer: AnyOptimizer, names: Mapping[int, str], states: OptimizerState
) -> None:
    """Copy recorded state into an optimiser; that of parameters it does not train is ignored.

    Args:
        optimizer: State that it has of recorded parameters is replaced.
        names: ``id(parameter)`` to name.
        states: Per parameter, the optimiser's tensors as recorded.

    Raises:
        RunError: The state is that of another kind of optimiser.
    """
    for one in members(optimizer):
        rule = rule_of(one)
        for group in one.param_groups:
            for parameter in group["params"]:
                tensors = states.get(names[id(parameter)])
                # It never had a gradient: its state is made at the first.
                if tensors is not None:
                    one.state[parameter] = _own_state(one, rule, group, parameter, tensors)


def _own_state(
    optimizer: torch.optim.Optimizer,
    rule: OptimizerRule,
    group: dict[str, Any],
    parameter: Tensor,
    tensors: Mapping[str, Tensor],
) -> dict[str, Any]:
    """One parameter's state; gives the group what is its own."""
    if rule.state is not None and not tensors.keys() <= set(rule.state):
        raise RunError(
            f"the recorded optimiser state ({', '.join(tensors)}) is not that of "
            f"{type(optimizer).__name__}; use the kind of optimiser that it was recorded with, or "
            "a new state"
        )
    moved = {
        # Copies, because an optimiser updates its state in place. torch keeps counts on the CPU
        # unless the optimiser is fused.
        key: tensor.clone()
        if key in _ON_CPU and not group.get("fused")
        else shared_like(parameter, tensor).to(parameter.device, copy=True)
        for key, tensor in tensors.items()
    }
    if rule.group_state:
        of_group = {k.removeprefix(GROUP): t for k, t in moved.items() if k.startswith(GROUP)}
        group.update(from_tensors(of_group, {}))
        moved = {key: tensor for key, tensor in moved.items() if not key.startswith(GROUP)}
    return from_tensors(moved, rule.tensors)


_ON_CPU = ("step", "mu_product")


def not_finite(tensors: Weights, names: Iterable[str]) -> str | None:
    """The first of these names whose tensor holds a NaN or an infinity, or None."""
    for name in names:
        if name not in tensors or not facts_of(tensors, name).dtype.is_floating_point:
            continue
        if not all(map(all_finite, flat_blocks(tensors, name))):
            return name
    return None


def all_finite(values: Tensor) -> bool:
    """Whether there is no NaN and no infinity among floating values."""
    # The sum is quick, but may overflow where every value is finite.
    return math.isfinite(values.sum()) or bool(torch.isfinite(values).all())


def difference_of(a: Tensor, b: Tensor) -> Tensor:
    """``a - b`` in float64; 0 where both are the same infinity, as in an attention mask."""
    return torch.where(a == b, 0.0, a.double() - b.double())


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree bit for bit; NaN equals the same NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    # As bytes: NaN != NaN, and -0.0 == 0.0. Flat first: torch views no scalar as bytes.
    bytes_a, bytes_b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(bytes_a, bytes_b)


def same_values(one: Weights, name: str, other: Weights, there: str) -> bool:
    """Whether a tensor of one model and a tensor of another agree bit for bit, read in blocks."""
    if facts_of(one, name) != facts_of(other, there):
        return False
    pairs = zip(flat_blocks(one, name), flat_blocks(other, there), strict=True)
    return all(same_tensor(a, b) for a, b in pairs)
