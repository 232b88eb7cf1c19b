"""What stands for the second derivative H of a step's loss: itself, or something that is cheaper.

All are products with vectors over x, of one micro-batch at a time; none is ever formed. The update
of the optimiser, clipping, weight decay and averages of batch statistics are differentiated exactly
beside each of them.

- ``exact``: H, through the graph of the gradient. What the loss holds fixed, and references that
  are the start of their stage, are followed, so that H then is not symmetric.
- ``gauss-newton``: ``J^T H_L J``, with z = f(x) the model's outputs, J = dz/dx, and H_L the second
  derivative of the loss in z. It is H for a model that is linear in x, and has no negative
  eigenvalue where the loss is convex in z, as cross-entropy is of logits.
- ``empirical-fisher``: ``sum_i (grad l_i) (grad l_i)^T / n`` over the examples i of a micro-batch,
  where its loss is ``sum_i l_i / n`` (n examples of a plain mean; for a mean over tokens, l_i is a
  text's sum and n the number of tokens). With g_i the examples' parts of the step's gradient, which
  sum to it, and d what the training loop divides the micro-batch's loss by, that is
  ``n d sum_i g_i g_i^T``. At its own labels, it is near H only where the l_i are negative
  log-likelihoods of a model that fits them.
- ``none``: 0, as if the gradients of later steps did not depend on x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from stagelens.contracts import Refused, Task
from stagelens.replaying.batch_parts import divided_by
from stagelens.replaying.step import StepRules
from stagelens.replaying.training_loss import TrainingLoss
from stagelens.runs.run import Stage
from stagelens.runs.step_records import MicroBatch

from .autodiff import derivative
from .batch_norm import Statistics, coupling
from .curvature_kinds import CURVATURES, Curvature
from .held import Held
from .loss_parts import Split
from .start_references import StartReferences


@dataclass
class Pass:
    """A forward pass over one micro-batch, at x.

    Attributes:
        micro: The micro-batch.
        x: Leaves of its graph.
        loss: Its part of the step's loss, divided as the training loop divides it.
        statistics: Batch statistics that running statistics average.
        split: The loss, cut off from the model; only where it was asked for.
        held: What the loss holds fixed.
        gradient: Of the loss in x, in references at the stage's start and in what is held, with
            its graph; only where it is taken.
    """

    micro: MicroBatch
    x: list[Tensor]
    loss: Tensor
    statistics: list[Statistics]
    split: Split | None = None
    held: Held = field(default_factory=Held)
    gradient: Sequence[Tensor] = ()


class Product(Protocol):
    """Products of a micro-batch's curvature C with vectors over x.

    Attributes:
        cuts: Whether it takes the loss cut off from the model, see :class:`~.loss_parts.Split`.
        of_gradient: Whether it takes the graph of the gradient.
    """

    cuts: bool
    of_gradient: bool

    def push(self, at: Pass, v: list[Tensor], k: int, probes: list[Tensor]) -> list[Tensor]:
        """``v -> C v`` by x, and behind it the derivative of ``gradient . v`` by probes.

        Args:
            at: Where.
            v: The vector, by x.
            k: Its number.
            probes: Leaves of the gradient's graph, for the tangents of batch statistics.
        """
        ...

    def pull(self, at: Pass, w: Sequence[Tensor | None]) -> list[Tensor]:
        """``w -> C^T w`` by x and, behind it, by what else the gradient depends on.

        Args:
            at: Where.
            w: The vector, by x; None for zero.
        """
        ...


class Exact:
    """H itself; see :mod:`stagelens.derivatives.products`."""

    cuts = False
    of_gradient = True

    def __init__(self, references: StartReferences) -> None:
        self._references = references

    def push(self, at: Pass, v: list[Tensor], k: int, probes: list[Tensor]) -> list[Tensor]:
        """See :class:`Product`."""
        v = v + self._references.along(k)
        along = at.held.along([*at.x, *self._references.leaves], v)
        return derivative(at.gradient, [*v, *along], [*at.x, *probes])

    def pull(self, at: Pass, w: Sequence[Tensor | None]) -> list[Tensor]:
        """See :class:`Product`."""
        pairs = [(g, v) for g, v in zip(at.gradient, w, strict=False) if v is not None]
        inputs = [*at.x, *self._references.leaves, *at.held.leaves]
        return derivative([g for g, _ in pairs], [v for _, v in pairs], inputs)


class _Symmetric(ABC):
    """A curvature that is its own transpose, and only of x."""

    cuts = True
    of_gradient = False

    @abstractmethod
    def times(self, at: Pass, v: list[Tensor]) -> list[Tensor]:
        """``v -> C v``."""

    def push(self, at: Pass, v: list[Tensor], k: int, probes: list[Tensor]) -> list[Tensor]:
        """See :class:`Product`. The tangents of batch statistics are exact."""
        return self.times(at, v) + (derivative(at.gradient, v, probes) if probes else [])

    def pull(self, at: Pass, w: Sequence[Tensor | None]) -> list[Tensor]:
        """See :class:`Product`."""
        filled = [torch.zeros_like(t) if v is None else v for t, v in zip(at.x, w, strict=True)]
        return self.times(at, filled)


class GaussNewton(_Symmetric):
    """``J^T H_L J``; see :mod:`stagelens.derivatives.products`."""

    def times(self, at: Pass, v: list[Tensor]) -> list[Tensor]:
        """See :class:`_Symmetric`."""
        assert at.split is not None
        return at.split.gauss_newton(at.x, v)


class EmpiricalFisher(_Symmetric):
    """``n d sum_i g_i g_i^T``; see :mod:`stagelens.derivatives.products`."""

    def __init__(self, task: Task, stage: Stage, loss: TrainingLoss) -> None:
        self._task, self._stage, self._loss = task, stage, loss
        self._rules = StepRules.of(stage.facts)

    def times(self, at: Pass, v: list[Tensor]) -> list[Tensor]:
        """See :class:`_Symmetric`."""
        assert at.split is not None
        batch = at.micro.batch
        factor = divided_by(self._stage, self._task, batch) * self._rules.divisor(at.micro)
        return at.split.outer(at.x, v, self._loss.owners(batch), factor)


class Nothing(_Symmetric):
    """0; see :mod:`stagelens.derivatives.products`."""

    cuts = False

    def times(self, at: Pass, v: list[Tensor]) -> list[Tensor]:
        """See :class:`_Symmetric`."""
        return [torch.zeros_like(t) for t in at.x]


def product_of(
    kind: Curvature,
    task: Task,
    stage: Stage,
    loss: TrainingLoss,
    references: StartReferences,
    model: nn.Module,
) -> Product:
    """The products of one kind.

    Args:
        kind: Which.
        task: The run's.
        stage: Whose loss.
        loss: The loss.
        references: Its reference models that are its own start.
        model: The one that is trained, in the modes that it is trained in.

    Raises:
        Refused: The kind is not known, or not defined for the stage.
    """
    if kind == "exact":
        return Exact(references)
    if kind not in CURVATURES:
        raise Refused(f"there is no curvature {kind!r}; use one of {', '.join(CURVATURES)}")
    if references.leaves:
        raise Refused(
            f"the loss of stage {stage.name!r} is computed from a reference model that is its own "
            f"start, which {kind} curvature leaves out; use exact curvature"
        )
    if kind == "empirical-fisher":
        if names := coupling(model):
            raise Refused(
                f"the examples of stage {stage.name!r} have no gradients of their own, because "
                f"BatchNorm in training mode ({names[0]}) couples those of a batch, so the "
                "empirical Fisher is not defined; use exact or gauss-newton curvature"
            )
        return EmpiricalFisher(task, stage, loss)
    return GaussNewton() if kind == "gauss-newton" else Nothing()
