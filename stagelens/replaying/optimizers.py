"""Optimisers as a run records them and as replay makes them again.

The rule of an optimiser's class (``contracts.OptimizerRule``) says what is read at every step, what
is fixed for a stage, and what is refused with which remedy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.contracts import (
    OptimizerRule,
    RecordingError,
    RunError,
    optimizer_class,
    optimizer_name,
    optimizer_rule,
)
from stagelens.runs.optimizer_facts import OptimizerFacts, OptimizerMember, ParameterGroup
from stagelens.runs.optimizer_set import AnyOptimizer, as_one, members
from stagelens.runs.shards import is_shared_out
from stagelens.runs.states import rule_of

from .overrides import set_overrides, state_overrides

CALLS = "calls"
"""Beside a step's hyperparameters: ``train`` and ``eval`` of the optimiser, as they were called
between the update before and the step's forward pass."""


def refusal(name: str, options: Mapping[str, Any]) -> str | None:
    """Why an optimiser's step cannot be reproduced, and what to do; None if it can.

    Args:
        name: As registered.
        options: One of its parameter groups, or any part of one; what is absent is off.
    """
    rule = optimizer_rule(name)
    if rule is None:
        return f"the optimiser {name} is not registered"
    for option, remedy in rule.refused.items():
        if options.get(option):
            return f"{name} with {option}={options[option]!r} is not supported; {remedy}"
    return None


def check_optimizer(optimizer: object) -> None:
    """Refuse an optimiser that replay could not step again.

    Only registered classes themselves pass: a subclass or a wrapper may update differently.

    Raises:
        RecordingError: Its class or one of its options is refused; the message says which, and
            what to use instead.
    """
    kind = type(optimizer).__name__
    for attribute in ("optimizer", "base"):
        inner = getattr(optimizer, attribute, None)
        if isinstance(inner, torch.optim.Optimizer):
            raise RecordingError(
                f"{kind} wraps the optimiser {type(inner).__name__}; pass the inner one, "
                f"optimizer.{attribute}"
            )
    name = optimizer_name(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer) or name is None:
        if type(optimizer).__module__.startswith("torch.optim."):
            raise RecordingError(
                f"replay cannot make steps of torch.optim.{kind}; use another one of torch.optim"
            )
        raise RecordingError(
            f"{type(optimizer).__module__}.{kind} is not a registered optimiser, so replay could "
            "not make it again; use one of torch.optim, or register it: "
            f"stagelens.register_optimizer({kind.lower()!r}, {kind})"
        )
    rule = rule_of(optimizer)
    for number, group in enumerate(optimizer.param_groups):
        where = f" (parameter group {number})"
        if (why := refusal(name, group)) is not None:
            raise RecordingError(why + where)
        if rule.hyperparameters is not None:
            _check_floats(name, rule.hyperparameters, group, where)
        for flag in (*rule.flags, *rule.options):
            if group.get(flag) != optimizer.param_groups[0].get(flag):
                raise RecordingError(
                    f"{name} with different {flag} in its groups; pass {flag} once, to the "
                    "optimizer" + where
                )


def _check_floats(name: str, keys: Sequence[str], group: Mapping[str, Any], where: str) -> None:
    for key in keys:
        values = group[key] if isinstance(group[key], (tuple, list)) else (group[key],)
        if any(isinstance(value, Tensor) for value in values):
            raise RecordingError(f"{name} with a tensor as {key}; pass a float" + where)


def optimizer_facts(optimizer: AnyOptimizer, names: Mapping[int, str]) -> OptimizerFacts:
    """What ``stage.json`` holds of an optimiser, or of several, as it is now.

    Args:
        optimizer: Of a registered class; this is checked.
        names: ``id(parameter)`` to name in the model.

    Raises:
        RecordingError: :func:`check_optimizer` refuses it, or it updates a tensor that is
            not a parameter of the model.
    """
    each = [_facts(one, names) for one in members(optimizer)]
    if len(each) == 1:
        return each[0]
    parameters = [n for facts in each for group in facts.groups for n in group.parameters]
    if len(set(parameters)) < len(parameters):
        twice = next(name for name in parameters if parameters.count(name) > 1)
        raise RecordingError(
            f"{twice} is a parameter of two of the stage's optimisers; give each parameter to one"
        )
    return OptimizerFacts(
        name=" and ".join(facts.name for facts in each),
        groups=[group for facts in each for group in facts.groups],
        flags={},
        members=[
            OptimizerMember(name=facts.name, groups=len(facts.groups), flags=facts.flags)
            for facts in each
        ],
    )


def _facts(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> OptimizerFacts:
    check_optimizer(optimizer)
    rule = rule_of(optimizer)
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
        if rule.mode:  # which weights the stage starts with
            hyperparameters[rule.mode] = group[rule.mode]
        groups.append(
            ParameterGroup(
                parameters=[names[id(parameter)] for parameter in group["params"]],
                hyperparameters={  # lists, so that facts equal what comes back from JSON
                    key: list(value) if isinstance(value, tuple) else value
                    for key, value in hyperparameters.items()
                },
            )
        )
    first = optimizer.param_groups[0]
    flags = {flag: first.get(flag) for flag in rule.flags}
    flags.update({option: first[option] for option in rule.options if first.get(option)})
    for argument, path in rule.arguments.items():
        flags[argument] = reduce(_part, path.split("."), optimizer)
    flags.update(state_overrides(optimizer, names))
    return OptimizerFacts(name=optimizer_name(optimizer) or "", groups=groups, flags=flags)


def _part(whole: Any, name: str) -> Any:
    return whole[name] if isinstance(whole, Mapping) else getattr(whole, name)


def build_optimizer(facts: OptimizerFacts, parameters: Mapping[str, nn.Parameter]) -> AnyOptimizer:
    """The optimiser that ``facts`` describe, without state: same class, groups and flags.

    Args:
        facts: From :func:`optimizer_facts`, directly or through JSON.
        parameters: Name to parameter; those that no group lists are not trained.

    Raises:
        RunError: A group lists a parameter that is not there.
        Refused: Its class is not registered here, or the package is not installed.
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
    made = []
    for member in facts.each():
        own, groups = groups[: member.groups], groups[member.groups :]
        made.append(_build(member, own, parameters))
    return as_one(made)


def _build(
    member: OptimizerMember, groups: list[dict[str, Any]], parameters: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    kind = optimizer_class(member.name)
    accepted = inspect.signature(kind).parameters
    made: torch.optim.Optimizer = kind(
        groups, **{key: value for key, value in member.flags.items() if key in accepted}
    )
    set_overrides(made, member.flags, parameters)
    return made


_SMALL = 1_000_000
"""Parameters up to which the calls that update them one by one take as long as the arithmetic."""


def update_in_lists(optimizer: AnyOptimizer) -> None:
    """Have a small model on the CPU updated list by list, not parameter by parameter.

    There torch does for a list what it does for each of its members, to the last bit (but for
    bfloat16), with fewer calls from Python. Lists hold temporary tensors for all parameters at
    once, which a large model has no room for.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    alike = all(
        p.is_cpu and p.dtype in (torch.float32, torch.float64) and not is_shared_out(p)
        for p in parameters
    )
    if not alike or sum(p.numel() for p in parameters) > _SMALL:
        return
    for one in members(optimizer):
        for group in one.param_groups if rule_of(one).in_lists else ():
            if not group.get("fused"):
                group["foreach"] = True


def hyperparameter_names(optimizer: torch.optim.Optimizer, rule: OptimizerRule) -> tuple[str, ...]:
    """What the optimiser's step reads of its parameter groups, and may change between steps."""
    if rule.hyperparameters is not None:
        return rule.hyperparameters
    fixed = {*rule.flags, *rule.options, *rule.refused, *rule.group_state}
    # Once it has loaded a state, torch lists defaults that the groups do not have.
    known = set.intersection(*({*group} for group in optimizer.param_groups))
    return tuple(name for name in optimizer.defaults if name in known - fixed)


def group_hyperparameters(optimizer: AnyOptimizer) -> list[dict[str, Any]]:
    """What the next step will read, per parameter group.

    Of SGD, Adam and AdamW, values are floats, except ``nesterov`` (a bool) and ``betas`` (a tuple
    of floats); of others they are what the optimiser holds. Called at every step of a recorded
    training, so it checks nothing.
    """
    found = []
    for one in members(optimizer):
        rule = rule_of(one)
        keys, plain = hyperparameter_names(one, rule), _as_it_is
        if rule.hyperparameters is not None:
            plain = _as_floats
        found += [{key: plain(group[key]) for key in keys} for group in one.param_groups]
    return found


def set_group_hyperparameters(optimizer: AnyOptimizer, values: Sequence[Mapping[str, Any]]) -> None:
    """Give every parameter group its values for the next step, one mapping per group, in order.

    Raises:
        ValueError: There are more or fewer mappings than groups.
    """
    for group, mapping in zip(optimizer.param_groups, values, strict=True):
        for key, value in _for_torch(mapping).items():
            if key == CALLS:
                continue
            if isinstance(group.get(key), Tensor):
                group[key].fill_(value)  # torchao keeps its learning rate as a tensor
            else:
                group[key] = value


def _as_floats(value: Any) -> Any:
    # First, since float would accept a bool too.
    if isinstance(value, bool):
        return value
    return tuple(map(float, value)) if isinstance(value, (tuple, list)) else float(value)


def _as_it_is(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return tuple(map(_as_it_is, value)) if isinstance(value, (tuple, list)) else value


def _for_torch(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples; torch's ``betas`` is one."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in hyperparameters.items()}


def update(optimizer: AnyOptimizer) -> None:
    """``optimizer.step()``, in two halves where torch's fused SGD cannot take it at once.

    It raises TypeError where one group holds parameters with and without a momentum buffer, which
    a counterfactual can bring about. SGD updates every parameter by itself, so updating the fresh
    ones first and then the others is the same arithmetic.
    """
    for one in members(optimizer):
        _update(one)


def _update(optimizer: torch.optim.Optimizer) -> None:
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
