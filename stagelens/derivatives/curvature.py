"""Derivatives of a recorded step's loss: its gradient, products of its curvature, examples' parts.

What stands for its second derivative H is told by :mod:`~.derivatives.products`. The exact ``H v``
is the derivative of g . v, taken through the graph of the gradient. The graph is
built once per micro-batch and serves every vector (a loop that shares the linearisation). On a CPU
with three vectors this takes 2.1 to 2.6 ms against 4.4 to 5.6 for ``vmap`` of forward mode over
reverse on a small MLP, and 40 against 36 on a small CNN; it needs no forward-mode derivatives, and
the result for one vector does not depend on which others are requested. Finite differences of
gradients are no alternative: they are off by 10 to 500 times on ReLU networks.

x stands for everything that is differentiated: parameters and floating buffers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stagelens.compute import devices
from stagelens.contracts import Refused, Task
from stagelens.replaying.replay import same_arithmetic
from stagelens.replaying.step import StepRules, prepare
from stagelens.replaying.training_loss import loss_of_stage
from stagelens.runs.batches import to_device
from stagelens.runs.run import Stage
from stagelens.runs.states import load_into
from stagelens.runs.step_records import MicroBatch, StepRecord

from .autodiff import derivative, explained, gradients
from .batch_norm import ExplicitBatchNorm, Statistics, tracking
from .curvature_kinds import USUAL, Curvature
from .held import Held
from .loss_parts import Split
from .plain_loss import check_same_loss, plain_attention
from .products import Nothing, Pass, product_of
from .start_references import StartReferences

Vectors = dict[str, Tensor]
"""Name to K vectors, (K, *shape)."""


@dataclass
class Evaluated:
    """The results of one step's forward and backward passes.

    Attributes:
        gradient: Name to gradient of the step's loss (all micro-batches), before clipping.
        statistics: Batch statistics, in the order in which running statistics averaged them.
        d_gradient: K tangents of the gradient.
        d_statistics: Per entry of ``statistics``, K tangents of mean and variance.
    """

    gradient: dict[str, Tensor]
    statistics: list[Statistics]
    d_gradient: Vectors
    d_statistics: list[tuple[Tensor, Tensor]]


class StageLoss:
    """The loss of a stage's recorded steps as a function of x.

    Args:
        task: Builds the model.
        stage: Gives loss, modes, accumulation and the values of everything that is not in x.
        active: Names that are differentiated; other names of the model are constants.
        dtype: The dtype of all computation.
        curvature: What stands for its second derivative, see :mod:`~.derivatives.products`.

    Raises:
        Refused: Without kernels of its own, the loss of the first step is another than recorded.
            Or the curvature is not defined for it.
    """

    def __init__(
        self,
        task: Task,
        stage: Stage,
        active: frozenset[str],
        dtype: torch.dtype,
        curvature: Curvature = USUAL,
    ) -> None:
        facts = stage.facts
        self.device = devices.replaying(stage.environment.device)
        self.dtype = dtype
        self.model = task.build_model(facts.build_config)
        swapped = plain_attention(self.model)
        # Loading gives every tensor its recorded dtype, so the working dtype comes after it.
        load_into(self.model, stage.start().model)
        self.model.to(self.device, dtype)
        self.rules = StepRules.of(facts)
        prepare(self.model, self.rules)
        # Reference models are constants here: see `check_differentiable` for where they are not.
        recorded = loss_of_stage(task, stage, self.model)
        self.loss = recorded.plain()
        for reference in self.loss.references.values():
            reference.to(dtype=dtype)
        # Only x is differentiated: `place` sets the flags of its parameters.
        self.model.requires_grad_(False)
        names = [n for n, _ in self.model.named_parameters()]
        names += [n for n, b in self.model.named_buffers() if b.is_floating_point()]
        self.names = [name for name in names if name in active]
        self.batch_norm = ExplicitBatchNorm(self.model)
        self.references = StartReferences(stage, self.loss, self.names)
        self.product = product_of(curvature, task, stage, self.loss, self.references, self.model)
        if swapped or self.loss is not recorded:
            start = {n: t.to(self.device, dtype) for n, t in stage.start().model.items()}
            for first in stage.read_steps()[:1]:
                with same_arithmetic(stage):
                    gradient = self.gradient(start, first).gradient
                check_same_loss(task, stage, first, gradient)

    def gradient(self, values: Mapping[str, Tensor], record: StepRecord) -> Evaluated:
        """First derivatives only."""
        return self.push(values, record, {})

    def push(self, values: Mapping[str, Tensor], record: StepRecord, dx: Vectors) -> Evaluated:
        """``(x, dx) -> (g, C dx)``, and the same for batch statistics.

        Args:
            values: x, by name.
            record: Its batches are the loss.
            dx: K tangents of every x; empty for none.
        """
        total = Evaluated({}, [], {}, [])
        for micro in _batches(record):
            at = self._forward(values, micro, self.product.cuts, follow=bool(dx))
            # With loss + p . s at p = 0, g is the loss's own gradient and d(g . v)/dp = J_s v: one
            # backward pass through g gives H v and the statistics' tangents together.
            probes = [torch.zeros_like(s, requires_grad=True) for s in _flat(at.statistics)]
            scalar = at.loss
            for statistic, probe in zip(_flat(at.statistics), probes, strict=True):
                scalar = scalar + (statistic * probe).sum()
            at.held.keep_used(scalar)
            inputs = [*at.x, *self.references.leaves, *at.held.leaves]
            again = bool(dx) and (self.product.of_gradient or bool(probes))
            at.gradient = gradients(scalar, inputs, graph=again, keep=bool(dx))
            own = (t.detach() for t in at.gradient[: len(at.x)])
            _add(total.gradient, dict(zip(self.names, own, strict=True)))
            total.statistics += [s.detached() for s in at.statistics]
            if dx:
                h, tangents = self._products(at, probes, dx)
                _add(total.d_gradient, h)
                total.d_statistics += zip(tangents[::2], tangents[1::2], strict=True)
        return total

    def _products(
        self, at: Pass, probes: list[Tensor], dx: Vectors
    ) -> tuple[Vectors, list[Tensor]]:
        """``dx -> C dx`` and ``dx -> d(statistics)``: the gradient of g . dx in x and probes."""
        h, statistics = [], []
        for k in range(len(next(iter(dx.values())))):
            with explained():
                both = self.product.push(at, [dx[name][k] for name in self.names], k, probes)
            h.append(both[: len(at.x)])
            statistics.append(both[len(at.x) :])
        stacked = {name: torch.stack([hk[i] for hk in h]) for i, name in enumerate(self.names)}
        return stacked, [torch.stack(list(parts)) for parts in zip(*statistics, strict=True)]

    def pull(
        self,
        values: Mapping[str, Tensor],
        record: StepRecord,
        gradient: Vectors,
        statistics: Sequence[tuple[Tensor, Tensor]],
    ) -> Vectors:
        """The transpose of :meth:`push`: ``(w_g, w_s) -> C^T w_g + J_s^T w_s``.

        Args:
            values: x, by name.
            record: Its batches are the loss.
            gradient: K cotangents of the gradient; absent names count as zero.
            statistics: K cotangents of every mean and variance, as ``push`` ordered them.
        """
        return self.pull_with_examples(values, record, gradient, statistics, ())[0]

    def pull_with_examples(
        self,
        values: Mapping[str, Tensor],
        record: StepRecord,
        gradient: Vectors,
        statistics: Sequence[tuple[Tensor, Tensor]],
        directions: Sequence[Mapping[str, Tensor]],
    ) -> tuple[Vectors, list[Tensor]]:
        """:meth:`pull`, and :meth:`example_products` with each direction, by few passes.

        Raises:
            NotSeparable: As :meth:`example_products`.
        """
        total: Vectors = {}
        products: list[list[Tensor]] = [[] for _ in directions]
        if not self.product.cuts:
            # All of them before what follows, which notes cotangents of references.
            products = [[own] for own in self.example_products(values, record, directions)]
        used = 0
        for micro in _batches(record):
            if isinstance(self.product, Nothing) and not self._averages(micro):
                continue
            at = self._forward(values, micro, self.product.cuts, follow=True)
            if self.product.cuts:
                for parts, direction in zip(products, directions, strict=True):
                    parts.append(self._per_example(at, direction))
            own = statistics[used : used + len(at.statistics)]
            used += len(at.statistics)
            rows = self._pulled(at, gradient, own)
            _add(total, {n: torch.stack([r[i] for r in rows]) for i, n in enumerate(self.names)})
            for i, name in enumerate(self.references.names, len(at.x)):
                self.references.note({name: torch.stack([r[i] for r in rows])})
        return total, [torch.cat(parts) for parts in products]

    def _averages(self, micro: MicroBatch) -> bool:
        """Whether a pass over a micro-batch moves running statistics."""
        return not micro.process and any(
            module.training for module in tracking(self.model).values()
        )

    def _pulled(
        self, at: Pass, gradient: Vectors, statistics: Sequence[tuple[Tensor, Tensor]]
    ) -> list[list[Tensor]]:
        """Per vector, its cotangents of x and of references at the stage's start."""
        at.held.keep_used(at.loss)
        # Whatever g depends on: x, references that were x once, and what is held.
        free = [*at.x, *self.references.leaves]
        if self.product.of_gradient:
            at.gradient = gradients(at.loss, at.x, graph=True)
        rows = []
        for k in range(len(next(iter(gradient.values())))):
            w = [gradient[name][k] if name in gradient else None for name in self.names]
            with explained():
                row = self.product.pull(at, w)
                if at.statistics:
                    covector = [part[k] for pair in statistics for part in pair]
                    inputs = [*free, *at.held.leaves]
                    through = derivative(_flat(at.statistics), covector, inputs)
                    row = [a + b for a, b in zip(row, through, strict=True)]
                rows.append(at.held.back(free, row))
        return rows

    def example_products(
        self,
        values: Mapping[str, Tensor],
        record: StepRecord,
        directions: Sequence[Mapping[str, Tensor]],
    ) -> list[Tensor]:
        """``v . g_i`` of every example i of the step, over its micro-batches in order; (B,) each.

        For outputs z and loss L(z), g_i = J_i^T dL/dz_i and ``v . g_i = dL/dz_i . (J v)_i``.
        This is exact for any loss, with the masks of dropout, and the g_i sum to the gradient.
        One pass over each micro-batch serves all directions.

        Raises:
            NotSeparable: The loss is no sum over examples.
        """
        parts: list[list[Tensor]] = [[] for _ in directions]
        for micro in _batches(record) if directions else ():
            at = self._forward(values, micro, True)
            for own, direction in zip(parts, directions, strict=True):
                own.append(self._per_example(at, direction))
        return [torch.cat(own) for own in parts]

    def _per_example(self, at: Pass, direction: Mapping[str, Tensor]) -> Tensor:
        assert at.split is not None
        pairs = zip(self.names, at.x, strict=True)
        v = [direction[name] if name in direction else torch.zeros_like(t) for name, t in pairs]
        return at.split.per_example(at.x, v, self.loss.owners(at.micro.batch))

    def part(
        self, values: Mapping[str, Tensor], record: StepRecord, positions: Collection[int]
    ) -> dict[str, Tensor]:
        """What some examples of the step add to its gradient, before clipping; by name.

        Args:
            values: x, by name.
            record: The step.
            positions: The examples, counted over its micro-batches.

        Raises:
            NotSeparable: The loss is no sum over examples.
        """
        total: dict[str, Tensor] = {}
        first = 0
        for micro in _batches(record):
            owners = self.loss.owners(micro.batch)
            count = int(owners.max()) + 1
            chosen = {p - first for p in positions if first <= p < first + count}
            first += count
            if chosen:
                at = self._forward(values, micro, cut=True)
                assert at.split is not None
                part = at.split.part(at.x, owners, chosen)
                _add(total, dict(zip(self.names, part, strict=True)))
        return total or {name: torch.zeros_like(values[name]) for name in self.names}

    def _forward(
        self,
        values: Mapping[str, Tensor],
        micro: MicroBatch,
        cut: bool,
        follow: bool = False,
    ) -> Pass:
        x = self.place(values)
        # Every pass over a batch has the recorded dropout masks: H and g are of the same loss.
        devices.restore_random(micro.rng, self.device)
        batch = cast(to_device(micro.batch, self.device), self.dtype)
        divisor = self.rules.divisor(micro)
        with torch.enable_grad(), self.batch_norm as statistics:
            if cut:
                parts = Split.of(self.loss, self.model, batch, divisor)
                return Pass(micro, x, parts.loss, _averaged(statistics, micro), parts)
            held = Held()
            with held if follow else nullcontext():
                loss = self.loss(self.model, batch) / divisor
        return Pass(micro, x, loss, _averaged(statistics, micro), held=held)

    def place(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Put x into the model, as leaves of a new graph."""
        parameters = dict(self.model.named_parameters())
        x = []
        for name in self.names:
            if name in parameters:
                # Shared, not copied: no pass writes to parameters.
                leaf: Tensor = parameters[name]
                leaf.data = values[name].detach()
                leaf.requires_grad_(True)
            else:
                leaf = values[name].detach().clone().requires_grad_(True)
                module, _, attribute = name.rpartition(".")
                self.model.get_submodule(module)._buffers[attribute] = leaf
            x.append(leaf)
        return x


def _batches(record: StepRecord) -> Sequence[MicroBatch]:
    if record.batches is None:
        raise Refused(f"the batch of step {record.step} was not kept, so it has no derivative")
    return record.batches


def _averaged(statistics: Sequence[Statistics], micro: MicroBatch) -> list[Statistics]:
    """Those that running statistics average: the main process's."""
    return [] if micro.process else list(statistics)


def _flat(statistics: Sequence[Statistics]) -> list[Tensor]:
    return [tensor for s in statistics for tensor in (s.mean, s.variance)]


def _add(total: Vectors, more: Mapping[str, Tensor]) -> None:
    for name, tensor in more.items():
        total[name] = total[name] + tensor if name in total else tensor


def cast(batch: Any, dtype: torch.dtype) -> Any:
    """The same batch with its floating tensors in ``dtype``."""
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, tuple | list):
        return type(batch)(cast(item, dtype) for item in batch)
    if isinstance(batch, Mapping):
        return {key: cast(item, dtype) for key, item in batch.items()}
    return batch
