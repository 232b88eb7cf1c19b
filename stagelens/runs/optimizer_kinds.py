"""What can be had of a stage's optimiser beside its own steps; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagelens.contracts import optimizer_rule, told_absent, why_absent

from .schema import OptimizerFacts, StageFile


def absent(facts: OptimizerFacts) -> str | None:
    """Why the optimiser cannot be made here, and what to do; None if it can."""
    whys = [why_absent(member.name) for member in facts.each()]
    return next((why for why in whys if why is not None), None)


def was_absent(facts: OptimizerFacts, reason: str) -> bool:
    """Whether a refusal says that the optimiser cannot be made, and now it can."""
    told = any(told_absent(member.name, reason) for member in facts.each())
    return told and absent(facts) is None


def no_formula(name: str, options: Mapping[str, Any]) -> str | None:
    """Why the update of an optimiser has no formula; None if it has one.

    Args:
        name: As registered.
        options: A parameter group of it, or what is fixed for the stage.
    """
    rule = optimizer_rule(name)
    if rule is None or not rule.formula:
        return f"the update of {name} is known by its own step only, not by a formula"
    if (on := next((option for option in rule.options if options.get(option)), None)) is not None:
        return f"the update of {name} with {on} is known by its own step only, not by a formula"
    return None


def without_formula(facts: OptimizerFacts) -> str | None:
    """:func:`no_formula` of a stage's optimiser."""
    if facts.members:
        return f"{facts.name} train one model, and formulas are of a single optimiser"
    return no_formula(facts.name, facts.flags)


def update_of(facts: OptimizerFacts) -> str:
    """The name of a stage's update: AdamW for Adam without weight decay, which is the same.

    The two differ in where weight decay goes, and in nothing else.
    """
    plain = facts.name == "Adam" and without_formula(facts) is None
    decays = any(group.hyperparameters.get("weight_decay") != 0 for group in facts.groups)
    unusual = any(group.hyperparameters.get("maximize") for group in facts.groups)
    return "AdamW" if plain and not decays and not unusual else facts.name


def unmergeable(facts: OptimizerFacts) -> str | None:
    """Why several steps of the optimiser cannot become one; None if they can."""
    groups = list(facts.groups)
    for member in facts.each():
        rule = optimizer_rule(member.name)
        own, groups = groups[: member.groups], groups[member.groups :]
        if rule is None:
            continue
        options = rule.unmergeable_with.items()
        on = [why for name, why in options if any(g.hyperparameters.get(name) for g in own)]
        if why := rule.unmergeable or next(iter(on), ""):
            return f"steps of {member.name} cannot be merged: {why}"
    for group in facts.groups:
        # As with relative_step: their size then depends on how many steps there were.
        if group.hyperparameters.get("lr") is None:
            return f"steps of {facts.name} cannot be merged: it is given no learning rate, lr"
    return None


def mode_of(facts: OptimizerFacts) -> str:
    """What says which of two sets of weights there are; empty where there is one set."""
    rules = [optimizer_rule(member.name) for member in facts.each()]
    return next((rule.mode for rule in rules if rule is not None and rule.mode), "")


def training_weights(facts: StageFile) -> str | None:
    """That a stage ended with its optimiser's training weights, in a sentence; None if not."""
    if facts.optimizer is None or not mode_of(facts.optimizer) or facts.end_calls[-1:] == ["eval"]:
        return None
    return (
        f"stage {facts.name!r} ended with the training weights of {facts.optimizer.name}, as they "
        "stood in the model, not with those that optimizer.eval() gives for evaluation; to end "
        "with these, call it as the last line of the stage's block"
    )
