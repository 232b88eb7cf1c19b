"""A loss split where it stops depending on the model, for examples' parts and curvature."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stagelens.contracts import NotSeparable
from stagelens.replaying.training_loss import LossFunction

from .autodiff import Linearised, derivative


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


class Split:
    """A loss split where it stops depending on the model: z = f(x), then L(z).

    z are the model's outputs or, where the model computes its loss itself, as those of
    ``transformers`` do, what it passes to ``cross_entropy`` and the like. What the loss holds fixed
    (``detach``) is a constant here.

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
        self._linearised: Linearised | None = None

    @property
    def outputs(self) -> list[Tensor]:
        """z, in the graph of f."""
        return [cut.value for cut in self.cuts]

    @classmethod
    def of(cls, loss: LossFunction, model: nn.Module, batch: Any, divisor: float) -> Split:
        """Run the stage's loss with z cut off from the model.

        Raises:
            NotSeparable: The loss is not a function of z alone.
        """
        parting = _Parting(model)
        with parting:
            value = loss(model, batch) / divisor
        if not parting.entangled and value.requires_grad and parting.cuts:
            # z is cut off, so a gradient left here goes past it, as that of a weight penalty does.
            held = [p for p in model.parameters() if p.requires_grad]
            past = torch.autograd.grad(value, held, retain_graph=True, allow_unused=True)
            split = cls(parting.cuts, value)
            if split.cuts and all(slope is None for slope in past):
                return split
        raise NotSeparable(
            "the stage's loss does not come from what the model returns alone (nor from what it "
            "passes to a loss of torch), so examples' shares and approximate curvature are not "
            "defined; ask for steps and exact curvature"
        )

    def along(self, x: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        """``v -> Jv``, by outputs; what all vectors share is computed once."""
        if self._linearised is None:
            self._linearised = Linearised(self.outputs, x)
        return self._linearised(v)

    def gauss_newton(self, x: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        """``v -> Jv -> H_L J v -> J^T H_L J v``."""
        detached = [cut.detached for cut in self.cuts]
        return derivative(self.outputs, derivative(self.slopes, self.along(x, v), detached), x)

    def outer(
        self, x: list[Tensor], v: list[Tensor], owners: Tensor, factor: float
    ) -> list[Tensor]:
        """``v -> factor sum_i g_i (g_i . v)``, with g_i as :meth:`per_example` has them.

        Args:
            x: What the gradient is in.
            v: A vector over x.
            owners: See :meth:`per_example`, which raises the same.
            factor: See above.
        """
        # What belongs to no example has no slope, whatever it is weighed by.
        dots = factor * nn.functional.pad(self.per_example(x, v, owners), (1, 0))
        bent = []
        for cut, slope in zip(self.cuts, self.slopes, strict=True):
            owner = _owner(cut.value.shape, owners, cut.inside)
            rows = slope.detach().reshape(len(owner), -1)
            bent.append((rows * dots[owner + 1].to(rows)[:, None]).reshape(cut.value.shape))
        return derivative(self.outputs, bent, x)

    def part(self, x: list[Tensor], owners: Tensor, chosen: Collection[int]) -> list[Tensor]:
        """``sum_i J_i^T dL/dz_i`` over some examples: their part of the gradient in x.

        Args:
            x: What the gradient is in.
            owners: As of :meth:`per_example`.
            chosen: The examples.

        Raises:
            NotSeparable: As :meth:`per_example`.
        """
        slopes, wanted = [], torch.tensor(sorted(chosen))
        for cut, slope in zip(self.cuts, self.slopes, strict=True):
            mask = torch.isin(_owner(cut.value.shape, owners, cut.inside), wanted)
            rows = slope.detach().reshape(len(mask), -1)
            slopes.append((rows * mask.to(rows.device)[:, None]).reshape(slope.shape))
        return derivative(self.outputs, slopes, x)

    def per_example(self, x: list[Tensor], v: list[Tensor], owners: Tensor) -> Tensor:
        """``g_i . v = dL/dz_i . (J v)_i`` for every example i; (B,) float64, on the CPU.

        Args:
            x: What the gradient is in.
            v: A vector over x.
            owners: (B,) the example, from 0 to B - 1, that each row of the batch belongs to; or
                (B, T) that of each token, -1 for none. What a language model gives at a token is
                about the next one, and so its example's.

        Raises:
            NotSeparable: z does not have one row, or one per token, for each row of the batch; or
                the loss depends on what belongs to no example.
        """
        every = [_owner(cut.value.shape, owners, cut.inside) for cut in self.cuts]
        total = torch.zeros(int(owners.max()) + 2, dtype=torch.float64)
        for owner, slope, along_v in zip(every, self.slopes, self.along(x, v), strict=True):
            # A language model's rows are tokens, with those of one text next to each other.
            own = (slope * along_v).detach().reshape(len(owner), -1).sum(1)
            total.index_add_(0, owner + 1, own.double().cpu())
        if abs(total[0]) > _NOTHING * total.abs().sum():
            raise NotSeparable(
                "a part of the loss is about tokens that belong to no example, so examples' shares "
                "of a step do not add up to it; ask for steps"
            )
        return total[1:]


_NOTHING = 1e-6
"""Part of a step that rounding leaves to no example."""


def _owner(shape: torch.Size, owners: Tensor, inside: bool) -> Tensor:
    """The example that each row of z belongs to, -1 for none; rows as z is then reshaped to.

    Args:
        shape: Of z.
        owners: See :meth:`Split.per_example`.
        inside: Whether the model itself computes a loss from z.
    """
    count, rows = len(owners), shape[0] if shape else 1
    if rows != count and (not inside or rows % count):
        raise NotSeparable(
            "the model's outputs do not have one row per example, so examples' shares of a step "
            "are not defined; ask for steps"
        )
    if owners.ndim == 1:
        return owners
    about = torch.cat([owners[:, 1:], owners.new_full((count, 1), -1)], 1)
    tokens = rows // count if rows != count or len(shape) < 2 else shape[1]
    if tokens not in (about.shape[1], about.shape[1] - 1):
        raise NotSeparable(
            "the model's outputs do not have one row per token, so the shares of documents that "
            "are packed into a row are not defined; ask for steps"
        )
    return about[:, :tokens].flatten()


class _Parting(TorchFunctionMode):
    """Cuts a loss's graph at what a model returns, and at what it passes to a loss of torch.

    Attributes:
        cuts: Where it was cut.
        entangled: Whether the model was given what depends on it already.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._within = 0
        self._hooks: list[Any] = []
        self.cuts: list[_Cut] = []
        self.entangled = False

    def __enter__(self) -> Any:
        # Hooks of the model itself: an objective may change its forward method, or call parts of
        # it that a module in its place would lack.
        self._hooks = [
            self._model.register_forward_pre_hook(self._before, with_kwargs=True),
            self._model.register_forward_hook(self._after, with_kwargs=True),
        ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _before(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        self._within += 1
        given = [*args, *kwargs.values()]
        self.entangled |= any(isinstance(each, Tensor) and each.requires_grad for each in given)

    def _after(self, _: nn.Module, args: Any, kwargs: Any, value: Any) -> Any:
        self._within -= 1
        return self._outputs(value)

    def _cut(self, value: Tensor, inside: bool) -> Tensor:
        """A leaf that replaces a tensor from here on."""
        self.cuts.append(_Cut(value, value.detach().requires_grad_(True), inside))
        return self.cuts[-1].detached

    def _outputs(self, value: Any) -> Any:
        if isinstance(value, Tensor):  # a scalar is the model's own loss, which was cut inside
            return self._cut(value, False) if value.requires_grad and value.ndim else value
        if isinstance(value, Mapping):
            return type(value)({key: self._outputs(item) for key, item in value.items()})  # type: ignore[call-arg]
        # A named tuple takes its items one by one, so it cannot be rebuilt in this way.
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return type(value)(self._outputs(item) for item in value)
        return value

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self._within and function in _LOSSES:
            given = args[0] if args else kwargs["input"]
            if given.requires_grad:
                cut = self._cut(given, True)
                args, kwargs = (cut, *args[1:]), {k: v for k, v in kwargs.items() if k != "input"}
        return function(*args, **kwargs)


_LOSSES = (
    nn.functional.cross_entropy,
    nn.functional.mse_loss,
    nn.functional.binary_cross_entropy_with_logits,
)
"""What models of ``transformers`` compute their losses by."""
