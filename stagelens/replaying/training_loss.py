"""The loss that a stage minimised, with the reference models that it is computed from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.contracts import NotSeparable, Objective, Refused, Task
from stagelens.runs.batches import batch_size
from stagelens.runs.objective_facts import ObjectiveFacts, ReferenceFacts
from stagelens.runs.run import Stage
from stagelens.runs.states import Weights, load_into

LossFunction = Callable[[nn.Module, Any], Tensor]
"""From a model and a batch to the loss, (); before the loop divides it."""


class Passed:
    """Where a counterfactual was at the boundaries that it passed; elsewhere it is as recorded.

    Args:
        later: The stages that it goes through. What none of them needs is not held.
    """

    def __init__(self, later: Sequence[Stage] = ()) -> None:
        facts = [stage.facts.objective for stage in later]
        self._wanted = {
            (reference.kind, reference.stage)
            for objective in facts
            if objective is not None
            for reference in objective.references.values()
        }
        self._held: dict[tuple[str, str], Weights] = {}
        self._here: tuple[str, Weights] | None = None

    def copy(self) -> Passed:
        """Another one that was at the same boundaries."""
        made = Passed()
        made._wanted, made._held, made._here = self._wanted, dict(self._held), self._here
        return made

    def enter(self, stage: Stage, start: Weights) -> Passed:
        """Note the model at the start of a stage; returns itself."""
        self._here = (stage.name, start)
        return self._note("start", stage, start)

    def leave(self, stage: Stage, end: Weights) -> Passed:
        """Note the model at the end of a stage, or where it would have begun; returns itself."""
        self._here = None
        return self._note("end", stage, end)

    def _note(self, kind: str, stage: Stage, weights: Weights) -> Passed:
        if (kind, stage.name) in self._wanted:
            self._held[kind, stage.name] = weights
        return self

    def branch(self) -> Passed:
        """The same so far, for another way on from here."""
        other = Passed()
        other._wanted, other._held = self._wanted, dict(self._held)
        return other

    def at(self, kind: str, stage: str) -> Weights | None:
        """The model at the ``"start"`` or ``"end"`` of a stage; None where it is as recorded."""
        if kind == "start" and self._here is not None and self._here[0] == stage:
            return self._here[1]
        return self._held.get((kind, stage))


@dataclass(frozen=True)
class Source:
    """What a reference model is made of.

    Attributes:
        weights: Its parameters and buffers.
        build_config: For ``task.build_model``.
    """

    weights: Weights
    build_config: Mapping[str, Any] | None


class TrainingLoss:
    """A stage's loss: called with a model and a batch.

    Args:
        task: Builds reference models; the model's own loss is the task's.
        objective: What is minimised.
        facts: What was recorded of it; None for the model's own loss.
        model: The one that is trained, on its device and in its dtypes.
        source: From the name of a reference model, and what was recorded of it, to what it is made
            of; not asked where that is the trained model itself. They are made when the loss is
            first computed, on the device that the model is on then.
    """

    def __init__(
        self,
        task: Task,
        objective: Objective,
        facts: ObjectiveFacts | None,
        model: nn.Module,
        source: Callable[[str, ReferenceFacts], Source],
    ) -> None:
        self.task, self.objective = task, objective
        self._named = facts
        self._facts = facts.references if facts is not None else {}
        # What is not needed is not held: it may be a whole training state.
        self._made_of = (model, source) if objective.references else None

    @cached_property
    def references(self) -> dict[str, nn.Module]:
        """Its reference models, by name."""
        found: dict[str, nn.Module] = {}
        if self._made_of is None:
            return found
        model, source = self._made_of
        for name in self.objective.references:
            facts = self._facts.get(name, ReferenceFacts())
            if facts.kind == "adapter off":
                found[name] = AdapterOff(model)
            else:
                found[name] = _held_fixed(self.task, source(name, facts), model)
        self._made_of = None
        return found

    @property
    def title(self) -> str:
        """What messages call it."""
        if self._named is None:
            return "task.loss(model, batch)"
        return f"the objective {self._named.title!r}"

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, ()."""
        return self.objective.loss(self.task, model, batch, self.references)

    def plain(self) -> TrainingLoss:
        """The same loss by operations that torch can differentiate twice; see ``Objective``."""
        objective = self.objective.plain()
        if objective is self.objective:
            return self
        found = copy.copy(self)
        found.objective = objective
        return found

    def owners(self, batch: Any) -> Tensor:
        """The example that each row of a batch belongs to, (B,), where the loss is a sum over them.

        Of a batch whose rows hold several, that of each token: (B, T), -1 for none.

        Raises:
            NotSeparable: The loss compares examples with one another.
        """
        if (why := self.objective.coupling(self.task, batch)) is not None:
            raise NotSeparable(why)
        if (documents := self.objective.documents(self.task, batch)) is not None:
            return documents
        found = self.objective.row_examples(self.task, batch)
        return torch.tensor(range(batch_size(batch)) if found is None else found)

    def moves(self, step: int) -> bool:
        """Whether a reference model moves after a step, numbered from 0."""
        if not self._facts:
            return False
        every = [reference.sync_every for reference in self._facts.values()]
        return any(one is not None and (step + 1) % one == 0 for one in every)

    @torch.no_grad()
    def updated(self, step: int, model: nn.Module) -> None:
        """Move reference models towards the trained one, where it is time after a step."""
        for name, facts in self._facts.items():
            if facts.sync_every is None or (step + 1) % facts.sync_every:
                continue
            trained = dict(model.named_parameters())
            for own, parameter in self.references[name].named_parameters():
                target = trained[own].to(parameter.device)
                parameter.mul_(1 - facts.sync_mixing).add_(target, alpha=facts.sync_mixing)


def _held_fixed(task: Task, source: Source, like: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # building draws initial weights
        model = task.build_model(source.build_config)
    load_into(model, source.weights)
    device = next(like.parameters()).device
    return model.to(device).eval().requires_grad_(False)


class AdapterOff(nn.Module):
    """The trained model with its adapter off, in evaluation mode and without gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._held = [model]  # in a list: no submodule, so nothing is registered twice

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own."""
        model: Any = self._held[0]
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad(), model.disable_adapter():
                return model(*args, **kwargs)
        finally:
            for module, mode in modes.items():
                module.training = mode


def loss_of_stage(
    task: Task, stage: Stage, model: nn.Module, passed: Passed | None = None
) -> TrainingLoss:
    """The loss of a recorded stage.

    Args:
        task: The run's.
        stage: The stage.
        model: The one that is trained.
        passed: Boundaries of a counterfactual, which its reference models are taken from.

    Raises:
        Refused: The objective is not installed, or has to be given again.
    """

    def source(name: str, facts: ReferenceFacts) -> Source:
        if facts.kind == "kept":
            return Source(stage.reference_state(name).model, facts.build_config)
        other = _named(stage, facts.stage or stage.name)
        weights = None if passed is None else passed.at(facts.kind, other.name)
        if weights is None:
            weights = (other.end() if facts.kind == "end" else other.start()).model
        own = facts.build_config
        return Source(weights, other.facts.build_config if own is None else own)

    return TrainingLoss(task, stage.objective, stage.facts.objective, model, source)


def _named(stage: Stage, name: str) -> Stage:
    """The stage itself, or one before it."""
    found: Stage | None = stage
    while found is not None and found.name != name:
        found = found.previous
    if found is None:
        raise Refused(f"stage {stage.name!r} refers to stage {name!r}, which does not precede it")
    return found
