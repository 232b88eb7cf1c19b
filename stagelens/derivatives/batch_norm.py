"""BatchNorm written out, so that its running statistics have derivatives.

Torch updates running statistics in place, outside autograd: their derivative would silently be 0.
Nor does it differentiate with respect to them in evaluation mode. So while derivatives are taken,
every BatchNorm is computed here, with the same numbers up to rounding: in training mode it returns
the batch statistics that its running statistics average, in evaluation mode it is plain arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Statistics:
    """The batch statistics of one call of one BatchNorm in training mode.

    Attributes:
        module: Its name in the model.
        mean: (C,) of the batch.
        variance: (C,) of the batch, unbiased.
    """

    module: str
    mean: Tensor
    variance: Tensor

    def detached(self) -> Statistics:
        """The same numbers without their graph."""
        return Statistics(self.module, self.mean.detach(), self.variance.detach())


def tracking(model: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorm modules that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def coupling(model: nn.Module) -> list[str]:
    """BatchNorm modules that normalise by the batch, so that its examples see each other."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    ]


class ExplicitBatchNorm(AbstractContextManager[list[Statistics]]):
    """Write out every BatchNorm of ``model`` within the block; yields the list of statistics.

    It can be entered again; the list starts empty every time.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = tracking(model)
        self._statistics: list[Statistics] = []
        self._hidden: dict[str, Any] = {}

    def __enter__(self) -> list[Statistics]:
        self._statistics = []
        self._hidden = {name: m.__dict__.get("forward") for name, m in self._modules.items()}
        for name, module in self._modules.items():
            module.forward = self._written_out(name, module)  # type: ignore[method-assign,assignment]
        return self._statistics

    def __exit__(self, *_: object) -> None:
        # The function set on the instance only hides the class's own, which is back without it.
        for name, module in self._modules.items():
            del module.__dict__["forward"]
            if self._hidden[name] is not None:  # a wrapper's, as accelerate sets one
                module.forward = self._hidden[name]  # type: ignore[method-assign]

    def _written_out(self, name: str, module: _BatchNorm) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            if not module.training:
                return _evaluated(module, x)
            if module.track_running_stats:
                over = [d for d in range(x.ndim) if d != 1]
                # Unbiased, as torch averages it, although it normalises by the biased variance.
                self._statistics.append(Statistics(name, x.mean(over), x.var(over)))
            # Without running statistics nothing is updated in place: the step map averages them.
            return functional.batch_norm(
                x, None, None, module.weight, module.bias, True, 0.0, module.eps
            )

        return forward


def _evaluated(module: _BatchNorm, x: Tensor) -> Tensor:
    assert module.running_mean is not None
    assert module.running_var is not None
    shape = [1, -1] + [1] * (x.ndim - 2)
    scale = torch.rsqrt(module.running_var + module.eps)
    y = (x - module.running_mean.view(shape)) * scale.view(shape)
    if module.weight is not None:
        y = y * module.weight.view(shape)
    return y if module.bias is None else y + module.bias.view(shape)
