"""Torch's optimisers as a run records them and as replay rebuilds them.

The table ``contracts.SUPPORTED_OPTIMIZERS`` decides what is read at every step, what is fixed for
a stage, and what is refused with which remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.contracts import SUPPORTED_OPTIMIZERS, RecordingError, RunError
from stagelens.runs.schema import OptimizerFacts, ParameterGroup

_USE = "use torch.optim." + " or torch.optim.".join(SUPPORTED_OPTIMIZERS)


def refusal(name: str, options: Mapping[str, Any]) -> str | None:
    """Why an optimiser's step cannot be reproduced, and what to do; None if it can.

    Args:
        name: Class name in ``torch.optim``.
        options: One of its parameter groups, or any part of one; what is absent is off.
    """
    rule = SUPPORTED_OPTIMIZERS.get(name)
    if rule is None:
        return f"the optimiser {name} is not supported; {_USE}"
    for option, remedy in rule.refused.items():
        if options.get(option):
            return f"{name} with {option}={options[option]!r} is not supported; {remedy}"
    return None


def check_optimizer(optimizer: object) -> None:
    """Refuse an optimiser that replay could not step again.

    Only the classes of the table themselves pass: a subclass or a wrapper may update differently.

    Raises:
        RecordingError: Its class or one of its options is refused; the message says which, and
            what to use instead.
    """
    name = type(optimizer).__name__
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, torch.optim.Optimizer):
        raise RecordingError(
            f"{name} wraps the optimiser {type(inner).__name__}; pass the inner one, "
            "optimizer.optimizer"
        )
    supported = [getattr(torch.optim, known) for known in SUPPORTED_OPTIMIZERS]
    if not isinstance(optimizer, torch.optim.Optimizer) or type(optimizer) not in supported:
        raise RecordingError(
            f"{type(optimizer).__module__}.{name} is not supported, because replay makes exactly "
            f"the steps of torch's own classes; {_USE} itself"
        )
    rule = SUPPORTED_OPTIMIZERS[name]
    for number, group in enumerate(optimizer.param_groups):
        where = f" (parameter group {number})"
        if (why := refusal(name, group)) is not None:
            raise RecordingError(why + where)
        for key in rule.hyperparameters:
            values = group[key] if isinstance(group[key], (tuple, list)) else (group[key],)
            if any(isinstance(value, Tensor) for value in values):
                raise RecordingError(f"{name} with a tensor as {key}; pass a float" + where)
        for flag in rule.flags:
            if group.get(flag) != optimizer.param_groups[0].get(flag):
                raise RecordingError(
                    f"{name} with different {flag} in its groups; pass {flag} once, to the "
                    "optimizer" + where
                )


def optimizer_facts(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> OptimizerFacts:
    """What ``stage.json`` holds of an optimiser, as it is now.

    Args:
        optimizer: A supported one; this is checked.
        names: ``id(parameter)`` to name in the model.

    Raises:
        RecordingError: :func:`check_optimizer` refuses it, or it updates a tensor that is
            not a parameter of the model.
    """
    check_optimizer(optimizer)
    groups = []
    values = group_hyperparameters(optimizer)
    for number, (group, hyperparameters) in enumerate(
        zip(optimizer.param_groups, values, strict=True)
    ):
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise RecordingError(
                    f"parameter group {number} of the optimiser holds a tensor of shape "
                    f"{tuple(parameter.shape)} that is not a parameter of the model; make the "
                    "optimiser from the parameters of the model that you pass, after it was "
                    "moved or changed"
                )
        groups.append(
            ParameterGroup(
                parameters=[names[id(parameter)] for parameter in group["params"]],
                hyperparameters={  # lists, so that facts equal what comes back from JSON
                    key: list(value) if isinstance(value, tuple) else value
                    for key, value in hyperparameters.items()
                },
            )
        )
    name = type(optimizer).__name__
    first = optimizer.param_groups[0]
    flags = {flag: first.get(flag) for flag in SUPPORTED_OPTIMIZERS[name].flags}
    return OptimizerFacts.model_validate({"name": name, "groups": groups, "flags": flags})


def build_optimizer(
    facts: OptimizerFacts, parameters: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimiser that ``facts`` describe, without state: same class, groups and flags.

    Args:
        facts: From :func:`optimizer_facts`, directly or through JSON.
        parameters: Name to parameter; those that no group lists are not trained.

    Raises:
        RunError: A group lists a parameter that is not there.
    """
    groups = []
    for group in facts.groups:
        absent = [name for name in group.parameters if name not in parameters]
        if absent:
            raise RunError(
                f"the stage's optimiser trains {', '.join(absent[:3])}, which the model that the "
                "task builds does not have; open the run with the task that it was recorded with"
            )
        chosen = [parameters[name] for name in group.parameters]
        groups.append({"params": chosen, **_for_torch(group.hyperparameters)})
    made: torch.optim.Optimizer = getattr(torch.optim, facts.name)(groups, **facts.flags)
    return made


_SMALL = 1_000_000
"""Parameters up to which the calls that update them one by one take as long as the arithmetic."""


def update_in_lists(optimizer: torch.optim.Optimizer) -> None:
    """Have a small model on the CPU updated list by list, not parameter by parameter.

    There torch does for a list what it does for each of its members, to the last bit (but for
    bfloat16), with fewer calls from Python. Lists hold temporary tensors for all parameters at
    once, which a large model has no room for.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    alike = all(p.is_cpu and p.dtype in (torch.float32, torch.float64) for p in parameters)
    if not alike or sum(p.numel() for p in parameters) > _SMALL:
        return
    for group in optimizer.param_groups:
        if not group.get("fused"):
            group["foreach"] = True


def group_hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the next step will read, per parameter group.

    Values are floats, except ``nesterov`` (a bool) and ``betas`` (a tuple of floats). Called at
    every step of a recorded training, so it checks nothing.
    """
    keys = SUPPORTED_OPTIMIZERS[type(optimizer).__name__].hyperparameters
    return [{key: _plain(group[key]) for key in keys} for group in optimizer.param_groups]


def set_group_hyperparameters(
    optimizer: torch.optim.Optimizer, values: Sequence[Mapping[str, Any]]
) -> None:
    """Give every parameter group its values for the next step, one mapping per group, in order.

    Raises:
        ValueError: There are more or fewer mappings than groups.
    """
    for group, mapping in zip(optimizer.param_groups, values, strict=True):
        group.update(_for_torch(mapping))


def _plain(value: Any) -> Any:
    # First, since float would accept a bool too.
    if isinstance(value, bool):
        return value
    return tuple(map(float, value)) if isinstance(value, (tuple, list)) else float(value)


def _for_torch(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples; torch's ``betas`` is one."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in hyperparameters.items()}


def update(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()``, in two halves where torch's fused SGD cannot take it at once.

    It raises TypeError where one group holds parameters with and without a momentum buffer, which
    a counterfactual can bring about. SGD updates every parameter by itself, so updating the fresh
    ones first and then the others is the same arithmetic.
    """
    step = _without_marks(optimizer)
    fresh = {id(parameter) for parameter in _fresh_among_others(optimizer)}
    if not fresh:
        step()
        return
    updated = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    halves = [[p for p in updated if (id(p) in fresh) is half] for half in (True, False)]
    if not all(halves):
        step()
        return
    # step passes over parameters without a gradient, so each half hides those of the other.
    gradients = {id(parameter): parameter.grad for parameter in updated}
    for now, later in (halves, halves[::-1]):
        for parameter in now:
            parameter.grad = gradients[id(parameter)]
        for parameter in later:
            parameter.grad = None
        step()


def _without_marks(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """``optimizer.step`` without what torch wraps it in: marks for its profiler, and hooks.

    For a small model those take a good part of the update's own time.
    """
    whole = type(optimizer).step
    inner = getattr(whole, "__wrapped__", None)
    return (
        optimizer.step
        if inner is None or not hasattr(whole, "hooked")
        else partial(inner, optimizer)
    )


def _fresh_among_others(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    fresh = []
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum"):
            updated = [p for p in group["params"] if p.grad is not None]
            own = [p for p in updated if "momentum_buffer" not in optimizer.state.get(p, {})]
            fresh += own if len(own) < len(updated) else []
    return fresh
