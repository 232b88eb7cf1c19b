"""A loss split where it stops depending on the model, for examples' parts and curvature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stagelens.contracts import Refused
from stagelens.replaying.training_loss import LossFunction, TrainingLoss

from .autodiff import derivative, explained, gradients


@dataclass(frozen=True)
class _Cut:
    """A tensor through which the loss depends on the model.

    Attributes:
        value: The tensor, in the graph of f.
        detached: The leaf at which the loss's graph ends.
        inside: Whether the model itself computes a loss from it.
    """

    value: Tensor
    detached: Tensor
    inside: bool


class NotSeparable(Refused):
    """A loss that cannot be separated by example; its steps still have contributions."""


class Split:
    """A loss split where it stops depending on the model: z = f(x), then L(z).

    z are the model's outputs or, where the model computes its loss itself, as those of
    ``transformers`` do, what it passes to ``cross_entropy``.

    Attributes:
        loss: ``z . dL/dz`` with the slopes held: its gradient in x is that of L(f(x)).
    """

    def __init__(self, cuts: Sequence[_Cut], loss: Tensor) -> None:
        detached = [cut.detached for cut in cuts]
        # The slopes keep their graph, whose derivative is the H_L of Gauss-Newton.
        slopes = torch.autograd.grad(loss, detached, create_graph=True, allow_unused=True)
        pairs = [(c, s) for c, s in zip(cuts, slopes, strict=True) if s is not None]
        self.cuts = [cut for cut, _ in pairs]
        self.slopes = [slope for _, slope in pairs]
        parts = [(cut.value * slope.detach()).sum() for cut, slope in pairs]
        self.loss = torch.stack(parts).sum() if parts else loss.new_zeros(())

    @property
    def outputs(self) -> list[Tensor]:
        """z, in the graph of f."""
        return [cut.value for cut in self.cuts]

    @classmethod
    def of(cls, loss: LossFunction, model: nn.Module, batch: Any, divisor: float) -> Split:
        """Run the stage's loss with z cut off from the model.

        Raises:
            NotSeparable: The loss is not a function of one call's z alone.
        """
        if isinstance(loss, TrainingLoss) and not loss.objective.of_outputs:
            raise NotSeparable(
                f"the objective {loss.objective.name!r} is computed within the model, so examples' "
                "shares and Gauss-Newton curvature are not defined; ask for steps and exact "
                "curvature"
            )
        apart = _Apart(model)
        value = loss(apart, batch) / divisor
        if apart.calls == 1 and value.requires_grad and apart.cuts:
            # z is cut off, so a gradient left here goes past it, as that of a weight penalty does.
            held = [p for p in model.parameters() if p.requires_grad]
            past = torch.autograd.grad(value, held, retain_graph=True, allow_unused=True)
            split = cls(apart.cuts, value)
            if split.cuts and all(slope is None for slope in past):
                return split
        raise NotSeparable(
            "the stage's loss does not come from the outputs of one call of the model alone (nor "
            "from one cross-entropy in it), so examples' shares and Gauss-Newton curvature are not "
            "defined; ask for steps and exact curvature"
        )

    def product(self, x: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        """``v -> Jv -> H_L J v -> J^T H_L J v``."""
        pushed = self._outputs_along(x, v)
        bent = derivative(self.slopes, pushed, [cut.detached for cut in self.cuts])
        return derivative(self.outputs, bent, x)

    def per_example(self, x: list[Tensor], v: list[Tensor], examples: int) -> Tensor:
        """``dL/dz_i . (J v)_i`` for every example i; (B,).

        Raises:
            NotSeparable: z does not have one row per example, or one per token.
        """
        for cut in self.cuts:
            rows = cut.value.shape[0]
            if rows != examples and (not cut.inside or rows % examples):
                raise NotSeparable(
                    "the model's outputs do not have one row per example, so examples' shares of "
                    "a step are not defined; ask for steps"
                )
        # A language model's rows are tokens, with those of one example next to each other.
        pairs = zip(self.slopes, self._outputs_along(x, v), strict=True)
        return torch.stack([(s * t).reshape(examples, -1).sum(1) for s, t in pairs]).sum(0).detach()

    def _outputs_along(self, x: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        """``v -> J v``, by differentiating ``p -> J^T p . v``, which is linear in p."""
        # Backward twice instead of forward mode, which not all operations have (fused attention).
        probes = [torch.zeros_like(z, requires_grad=True) for z in self.outputs]
        scalar = torch.stack([(z * p).sum() for z, p in zip(self.outputs, probes, strict=True)])
        with explained():
            return derivative(gradients(scalar.sum(), x, graph=True), v, probes)


class _Apart(nn.Module):
    """Stands in for the model, and cuts the loss's graph at its outputs and inner losses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._held = [model]  # in a list: no submodule, so nothing is registered twice
        self.calls = 0
        self.cuts: list[_Cut] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        with _InnerLosses(self):
            value = self._held[0](*args, **kwargs)
        return self._outputs(value)

    def cut(self, value: Tensor, inside: bool) -> Tensor:
        """A leaf that replaces a tensor from here on."""
        self.cuts.append(_Cut(value, value.detach().requires_grad_(True), inside))
        return self.cuts[-1].detached

    def _outputs(self, value: Any) -> Any:
        if isinstance(value, Tensor):  # a scalar is the model's own loss, which was cut inside
            return self.cut(value, False) if value.requires_grad and value.ndim else value
        if isinstance(value, Mapping):
            return type(value)({key: self._outputs(item) for key, item in value.items()})  # type: ignore[call-arg]
        # A named tuple takes its items one by one, so it cannot be rebuilt in this way.
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return type(value)(self._outputs(item) for item in value)
        return value


class _InnerLosses(TorchFunctionMode):
    """Cuts what a model's forward pass passes to ``cross_entropy``."""

    def __init__(self, apart: _Apart) -> None:
        super().__init__()
        self._apart = apart

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is nn.functional.cross_entropy:
            given = args[0] if args else kwargs["input"]
            if given.requires_grad:
                cut = self._apart.cut(given, True)
                args, kwargs = (cut, *args[1:]), {k: v for k, v in kwargs.items() if k != "input"}
        return function(*args, **kwargs)
