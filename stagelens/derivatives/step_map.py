"""A recorded step as a differentiable map of training states: the update, clipping, averages.

:class:`State` is a training state in the dtype of all computation. The factual trajectory consists
of the pure steps of :mod:`stagelens.derivatives.step`, not of torch's loops: the gradient is then
computed once, for the step and for its derivative; float64 and float32 run the same code; and
derivatives belong to exactly the map that is stepped. It starts at every stage's recorded start, so
rounding does not add up over stages, and ``LinearStage.check_end`` refuses it where it ends too far
from the recording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stagelens.runs.run import Stage
from stagelens.runs.states import TrainingState
from stagelens.runs.step_records import StepRecord

from .batch_norm import Statistics, tracking
from .curvature import Evaluated, StageLoss
from .curvature import Vectors as Values
from .step import AdamState, ParameterState, clip_factor, state_from_torch
from .step import step as pure_step
from .tangent import (
    MASSES,
    MOMENTS,
    Blocks,
    ClipOperator,
    PlainSGDOperator,
    UpdateOperator,
    linearise_update,
    rebased_mass,
)

Betas = tuple[float, float]


@dataclass
class State:
    """A training state: optimised parameters, all other floating tensors, and integer buffers.

    Attributes:
        optimised: Parameters that the stage's optimiser trains, with their moments.
        fixed: All other parameters and floating buffers.
        integers: Integer buffers.
        betas: For Adam, per optimised parameter: what its bias masses are computed from.
    """

    optimised: dict[str, ParameterState]
    fixed: dict[str, Tensor]
    integers: dict[str, Tensor]
    betas: dict[str, Betas]

    @property
    def values(self) -> dict[str, Tensor]:
        """Parameters and floating buffers by name."""
        return {**self.fixed, **{name: kept.theta for name, kept in self.optimised.items()}}


@dataclass
class StateVectors:
    """K vectors in the space of training states, each tensor with a leading dimension of K.

    Attributes:
        values: Parameters and floating buffers by name.
        moments: Optimised parameter to block name to (K, *shape); bias masses (K,) float64.
    """

    values: Values
    moments: dict[str, Blocks]

    @property
    def count(self) -> int:
        """K."""
        return len(self.tensors()[0])

    def blocks(self, name: str) -> Blocks:
        """All blocks of one optimised parameter."""
        return {"theta": self.values[name], **self.moments[name]}

    def tensors(self) -> list[Tensor]:
        """Every tensor."""
        return [*self.values.values(), *(t for b in self.moments.values() for t in b.values())]

    def dot(self, other: StateVectors) -> Tensor:
        """``a . b`` of K vectors with one (or K); (K,) float64. Absent blocks count as zero."""
        total = torch.zeros((), dtype=torch.float64)
        for name, vector in other.values.items():
            if name in self.values:
                total = total + _row_dots(self.values[name], vector)
        for name, blocks in other.moments.items():
            for block, vector in blocks.items():
                total = total + _row_dots(self.moments[name][block], vector)
        return total


def _row_dots(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).reshape(len(a), -1).sum(1).cpu()


class Layout:
    """The space of a stage's training states: its blocks and their shapes."""

    def __init__(self, stage: Stage, loss: StageLoss, state: State) -> None:
        values = state.values
        self.values = {name: values[name] for name in loss.names}
        self.rule = stage.optimizer.name
        self.optimised = [name for name in state.optimised if name in self.values]

    def zeros(self, count: int) -> StateVectors:
        """``count`` zero vectors."""
        values = {n: t.new_zeros((count, *t.shape)) for n, t in self.values.items()}
        moments = {
            name: {
                block: values[name].new_zeros(count, dtype=torch.float64)
                if block in MASSES
                else torch.zeros_like(values[name])
                for block in MOMENTS[self.rule]
            }
            for name in self.optimised
        }
        return StateVectors(values, moments)


def state_of(
    stage: Stage, recorded: TrainingState, dtype: torch.dtype, device: torch.device
) -> State:
    """A recorded state of ``stage`` in the dtype of all computation."""
    facts = stage.facts
    tensors = {name: tensor.to(device) for name, tensor in recorded.model.items()}
    floats = {n: t.to(dtype) for n, t in tensors.items() if t.is_floating_point()}
    trained = [n for group in stage.optimizer.groups for n in group.parameters]
    # An optimiser may hold parameters that require no gradient, which it never updates.
    trained = [n for n in trained if n in set(facts.trainable)]
    entries = {
        name: {k: t if k == "step" else t.to(device, dtype) for k, t in entry.items()}
        for name, entry in recorded.optimizer.items()
    }
    optimised = state_from_torch(stage.optimizer.name, {n: floats[n] for n in trained}, entries)
    betas = {
        name: (float(group.hyperparameters["betas"][0]), float(group.hyperparameters["betas"][1]))
        for group in stage.optimizer.groups
        for name in group.parameters
        if "betas" in group.hyperparameters
    }
    return State(
        optimised,
        {n: t for n, t in floats.items() if n not in optimised},
        {n: t for n, t in tensors.items() if not t.is_floating_point()},
        betas,
    )


def options_by_name(stage: Stage, record: StepRecord) -> dict[str, Mapping[str, Any]]:
    """Every optimised parameter's hyperparameters at a step."""
    groups = stage.optimizer.groups
    return {
        name: values
        for group, values in zip(groups, record.groups, strict=True)
        for name in group.parameters
    }


class StepMap:
    """One recorded step at one state, given its gradient and batch statistics.

    Args:
        stage: The stage.
        loss: Its loss.
        before: The state before the step.
        record: The step.
        evaluated: Gradient and statistics at ``before``.
        plain_sgd: See :class:`~stagelens.derivatives.tangent.PlainSGDOperator`.

    Attributes:
        after: The state after the step.
    """

    def __init__(
        self,
        stage: Stage,
        loss: StageLoss,
        before: State,
        record: StepRecord,
        evaluated: Evaluated,
        plain_sgd: bool = False,
    ) -> None:
        self.before = before
        self.statistics = evaluated.statistics
        options = options_by_name(stage, record)
        # Without a gradient, a parameter is neither updated nor part of the norm that is clipped.
        missing = set(record.missing)
        updated = [n for n in before.optimised if n not in missing]
        gradients = {name: evaluated.gradient[name] for name in updated}
        self.clip: ClipOperator | None = None
        self.factor = 1.0
        if stage.facts.clip_norm is not None:
            self.factor = float(clip_factor(gradients, stage.facts.clip_norm))
            self.clip = ClipOperator(gradients, stage.facts.clip_norm, self.factor)
            gradients = {name: self.factor * g for name, g in gradients.items()}
        self.gradients = gradients
        rule = stage.optimizer.name
        padded = {name: gradients.get(name) for name in before.optimised}
        optimised = pure_step(rule, before.optimised, padded, options)
        betas = dict(before.betas)
        self.operators: dict[str, UpdateOperator] = {}
        for name in updated:
            old, new, g = before.optimised[name], optimised[name], gradients[name]
            if plain_sgd:
                self.operators[name] = PlainSGDOperator(g, new, options[name])
                continue
            rebase = (1.0, 1.0)
            if isinstance(old, AdamState):
                b1, b2 = (float(b) for b in options[name]["betas"])
                rebase = rebase_factors(betas[name], (b1, b2), float(old.t))
                # Only for updated parameters: the others' masses still belong to the earlier betas.
                betas[name] = (b1, b2)
            self.operators[name] = linearise_update(rule, old, g, new, options[name], rebase)
        self._average(loss, before)
        self.after = State(optimised, self._fixed, self._integers, betas)

    def _average(self, loss: StageLoss, before: State) -> None:
        """Running statistics: ``r' = (1 - a) r + a s`` per batch statistic s."""
        modules = tracking(loss.model)
        self._fixed, self._integers = dict(before.fixed), dict(before.integers)
        self.weights: list[float] = []
        # One at a time: a module that is called twice in a step averages twice, in this order.
        for s in self.statistics:
            counter = _prefix(s) + "num_batches_tracked"
            if counter in self._integers:
                self._integers[counter] = self._integers[counter] + 1  # `before` keeps its own
            # Without a momentum, torch averages over all batches so far.
            momentum = modules[s.module].momentum
            a = 1.0 / float(self._integers[counter]) if momentum is None else float(momentum)
            self.weights.append(a)
            for name, statistic in _running(s):
                self._fixed[name] = (1 - a) * self._fixed[name] + a * statistic

    def push(self, vectors: StateVectors, evaluated: Evaluated) -> StateVectors:
        """``(ds, dg, d statistics) -> ds'`` for K tangents."""
        gradients = {name: evaluated.d_gradient[name] for name in self.operators}
        if self.clip is not None:
            gradients = self.clip.apply(gradients)
        values, moments = dict(vectors.values), dict(vectors.moments)
        for name, operator in self.operators.items():
            blocks = operator.push(vectors.blocks(name), gradients[name])
            values[name] = blocks.pop("theta")
            moments[name] = blocks
        for s, a, pair in zip(self.statistics, self.weights, evaluated.d_statistics, strict=True):
            for (name, _), tangent in zip(_running(s), pair, strict=True):
                if name in values:
                    values[name] = (1 - a) * values[name] + a * tangent
        return StateVectors(values, moments)

    def pull(
        self, vectors: StateVectors
    ) -> tuple[StateVectors, Values, list[tuple[Tensor, Tensor]]]:
        """The transpose of :meth:`push`: cotangents of the state, gradient and statistics."""
        values, moments = dict(vectors.values), dict(vectors.moments)
        gradients: Values = {}
        for name, operator in self.operators.items():
            blocks, gradients[name] = operator.pull(vectors.blocks(name))
            values[name] = blocks.pop("theta")
            moments[name] = blocks
        if self.clip is not None:
            gradients = self.clip.apply(gradients)
        statistics = []
        # In reverse, because averages of a module that is called twice build on each other.
        for s, a in zip(reversed(self.statistics), reversed(self.weights), strict=True):
            pair = []
            for name, _ in _running(s):
                pair.append(a * values[name])
                values[name] = (1 - a) * values[name]
            statistics.append((pair[0], pair[1]))
        return StateVectors(values, moments), gradients, statistics[::-1]

    def change(self, names: Sequence[str]) -> StateVectors:
        """``s' - s`` in all blocks, K = 1, for parameters and buffers among ``names``."""
        values: Values = {}
        moments: dict[str, Blocks] = {}
        for name, operator in self.operators.items():
            blocks = operator.change()
            values[name] = blocks.pop("theta")
            moments[name] = blocks
        # A set: after - before holds all averages of a module that is called twice.
        for name in {name for s in self.statistics for name, _ in _running(s)}:
            values[name] = (self.after.fixed[name] - self.before.fixed[name])[None]
        return StateVectors({n: v for n, v in values.items() if n in names}, moments)

    def share(self, vectors: StateVectors) -> Values:
        """Per parameter what an example's gradient is multiplied by; see :class:`UpdateOperator`.

        The clipping factor f is held: example i's part is ``f share . g_i``, with g_i not clipped.
        """
        return {
            name: operator.share(vectors.blocks(name)) for name, operator in self.operators.items()
        }


def _running(s: Statistics) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
    return (_prefix(s) + "running_mean", s.mean), (_prefix(s) + "running_var", s.variance)


def _prefix(s: Statistics) -> str:
    return f"{s.module}." if s.module else ""


def rebase_factors(before: Betas, now: Betas, count: float) -> tuple[float, float]:
    """:func:`rebased_mass` for both betas."""
    return rebased_mass(before[0], now[0], count), rebased_mass(before[1], now[1], count)


def difference(
    end: State, start: State, layout: Layout, betas: Mapping[str, Betas]
) -> StateVectors:
    """``end - start`` in all blocks, K = 1; masses are computed from ``betas``."""
    vectors = layout.zeros(1)
    a, b = end.values, start.values
    for name in layout.values:
        vectors.values[name] = (a[name] - b[name])[None]
    for name in layout.optimised:
        one, other = end.optimised[name], start.optimised[name]
        blocks = vectors.moments[name]
        if isinstance(one, AdamState) and isinstance(other, AdamState):
            blocks["m"], blocks["u"] = (one.m - other.m)[None], (one.u - other.u)[None]
            # w = 1 - b^t. Moments that no boundary carries lack betas, and are dropped there.
            for block, beta in zip(MASSES, betas.get(name, (0.0, 0.0)), strict=True):
                blocks[block] += beta ** float(other.t) - beta ** float(one.t)
        elif not isinstance(one, AdamState) and not isinstance(other, AdamState):
            zero = torch.zeros_like(one.theta)  # of a buffer before its first update
            v, w = (zero if x.v is None else x.v for x in (one, other))
            blocks["v"] = (v - w)[None]
    return vectors
