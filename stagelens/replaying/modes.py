"""Optimisers with two sets of weights, of training and of evaluation, as schedule-free ones have.

``optimizer.eval()`` turns the weights that gradients are taken at into an average that people
evaluate and save, and ``optimizer.train()`` turns them back: up to rounding. So a replay has to
call them where the training did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from stagelens.runs.optimizer_set import AnyOptimizer, members
from stagelens.runs.run import Stage
from stagelens.runs.states import TrainingState, capture, load_optimizer, rule_of

from .optimizers import CALLS, build_optimizer, set_group_hyperparameters


def two_sets(optimizer: AnyOptimizer) -> bool:
    """Whether any of the optimisers has two sets of weights."""
    return any(rule_of(one).mode for one in members(optimizer))


def call_all(optimizer: AnyOptimizer, calls: Sequence[str]) -> None:
    """Call ``train`` and ``eval``, in this order, of those optimisers that have them."""
    for one in members(optimizer) if calls else ():
        if rule_of(one).mode:
            for call in calls:
                getattr(one, call)()


def calls_before(groups: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """What was called between the update before a step and its forward pass."""
    calls: Sequence[str] = groups[0].get(CALLS, ()) if groups else ()
    return calls


def called(stage: Stage, state: TrainingState, calls: Sequence[str]) -> TrainingState:
    """A state after a stage whose optimiser was then called ``train`` or ``eval``; a copy."""
    known = stage.facts.optimizer
    if known is None or not calls:
        return state
    trained = [name for group in known.groups for name in group.parameters]
    model = nn.Module()
    names = {}
    parameters = {}
    for number, name in enumerate(trained):
        parameters[name] = nn.Parameter(state.model[name].clone(), requires_grad=False)
        model.register_parameter(f"p{number}", parameters[name])
        names[id(parameters[name])] = name
    optimizer = build_optimizer(known, parameters)
    load_optimizer(optimizer, names, state.optimizer)
    steps = stage.read_steps()
    if len(steps):
        set_group_hyperparameters(optimizer, steps.facts(len(steps) - 1).groups)
    call_all(optimizer, calls)
    moved = capture(model, optimizer, names)
    own = {name: moved.model[f"p{number}"] for number, name in enumerate(trained)}
    return TrainingState({**state.model, **own}, {**state.optimizer, **moved.optimizer})
