"""Values that a loss computes from the model and holds fixed, by ``detach`` or ``no_grad``.

Backward passes take them for constants, yet they move with the parameters from step to step. With c
for what is held, c = f(x), a step's gradient is g(x) = dL/dx (x, c(x)), and its derivative is

    dg/dx = d2L/dx dx + d2L/dx dc . dc/dx

so a second backward pass alone, which sees the first term only, would be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from .autodiff import along, derivative, is_used


class Held(TorchFunctionMode):
    """Notes within the block what is held: by ``detach``, or by computing it under ``no_grad``.

    Attributes:
        values: What was held, in the graph of x and of what was held before it.
        leaves: What stands for it in the graph of the loss.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []
        self.leaves: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (Tensor.numpy, Tensor.__array__):  # refused to what has a graph
            return function(args[0].detach(), *args[1:], **kwargs)
        if function is Tensor.detach and args[0].requires_grad:
            return self._hold(args[0])
        if torch.is_grad_enabled() or _switches(function):
            args, kwargs = tree_map_only(Tensor, self._entering, (args, kwargs))
            return function(*args, **kwargs)
        # As if outside of no_grad. What it computes is held where it is used outside of it.
        with nullcontext() if _changes_leaf(function, args) else torch.enable_grad():
            return tree_map_only(Tensor, _without_grad, function(*args, **kwargs))

    def _entering(self, tensor: Tensor) -> Tensor:
        return self._hold(tensor) if getattr(tensor, _MARK, False) else tensor

    def _hold(self, value: Tensor) -> Tensor:
        self.values.append(value)
        self.leaves.append(value.detach().requires_grad_(True))
        # A copy, since nothing may write to a leaf.
        return self.leaves[-1].clone()

    def keep_used(self, scalar: Tensor) -> None:
        """Forget what a scalar does not depend on; most is held for a log only."""
        kept: list[int] = []
        for number in range(len(self.leaves) - 1, -1, -1):
            sources = [scalar, *(self.values[k] for k in kept)]
            if any(is_used(self.leaves[number], source) for source in sources):
                kept.append(number)
        self.values = [self.values[number] for number in sorted(kept)]
        self.leaves = [self.leaves[number] for number in sorted(kept)]

    def along(self, x: Sequence[Tensor], v: Sequence[Tensor]) -> list[Tensor]:
        """``v -> dc/dx v``, for each c in turn."""
        tangents: list[Tensor] = []
        for value in self.values:
            before = self.leaves[: len(tangents)]
            tangents += along([value], [*x, *before], [*v, *tangents])
        return tangents

    def back(self, x: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
        """``(w_x, w_c) -> w_x + (dc/dx)^T w_c``, the transpose of :meth:`along`."""
        found = list(cotangents)
        for number in range(len(self.values) - 1, -1, -1):
            last = found.pop()
            into = [*x, *self.leaves[:number]]
            through = derivative([self.values[number]], [last], into)
            found = [a + b for a, b in zip(found, through, strict=True)]
        return found


_MARK = "stagelens_held"
"""Set on what was computed under ``no_grad``."""


def _without_grad(tensor: Tensor) -> Tensor:
    if tensor.requires_grad and not tensor.is_leaf:
        setattr(tensor, _MARK, True)
    return tensor


def _changes_leaf(function: Any, args: Any) -> bool:
    """Whether a function may change a leaf in place, which torch allows under ``no_grad`` only."""
    name = getattr(function, "__name__", "")
    named = name == "__set__" or (name.endswith("_") and not name.endswith("__"))
    target = args[0] if named and args else None
    return isinstance(target, Tensor) and target.is_leaf and target.requires_grad


def _switches(function: Any) -> bool:
    """Whether a function turns gradients on or off."""
    return getattr(function, "__name__", "") == "_set_grad_enabled"
