"""What a loss holds fixed still moves from step to step, and derivatives follow it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stagelens.derivatives.autodiff import derivative, gradients
from stagelens.derivatives.held import Held


def detached(x: Tensor) -> Tensor:
    """A ratio to itself, as losses on samples have it."""
    y = (x**3).cumsum(0)
    return ((y - y.detach()).exp() * x.sin()).sum()


def without_grad(x: Tensor) -> Tensor:
    y = x**2
    with torch.no_grad():
        weights = (y * 2).softmax(0) * x
        total = torch.zeros(()).to(x)
        total.add_(weights.sum())
        total = total * weights.exp().sum()
    return (y * weights).sum() + total * x.prod()


def one_in_another(x: Tensor) -> Tensor:
    first = (x * x).detach()
    second = (first * x).detach()
    return (second * x**3).sum() + (first * x).sum()


def logged(x: Tensor) -> Tensor:
    """Nothing that is held is part of the loss."""
    y = x.tanh()
    with torch.no_grad():
        [float(each.item()) for each in nn.functional.softmax(y, 0)]
    y.detach().cpu().numpy()
    y.detach().clone().add_(1.0)
    return (y * x).sum()


LOSSES = {one.__name__: one for one in (detached, without_grad, one_in_another, logged)}


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_of_a_gradient_are_its_central_differences(name: str) -> None:
    loss: Callable[[Tensor], Tensor] = LOSSES[name]

    def gradient(at: Tensor) -> Tensor:
        x = at.clone().requires_grad_(True)
        return torch.autograd.grad(loss(x), x)[0]

    at, v, w = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-6
    expected = (gradient(at + step * v) - gradient(at - step * v)) / (2 * step)
    x = at.clone().requires_grad_(True)
    held = Held()
    with held:
        value = loss(x)
    held.keep_used(value)
    assert (len(held.values) == 0) == (name == "logged")
    g = gradients(value, [x, *held.leaves], graph=True)
    (forward,) = derivative(g, [v, *held.along([x], [v])], [x])
    assert torch.allclose(g[0], gradient(at), rtol=1e-12)
    assert torch.allclose(forward, expected, rtol=1e-6, atol=1e-8)
    (backward,) = held.back([x], derivative(g[:1], [w], [x, *held.leaves]))
    # The derivative is not symmetric where something is held, so both directions count.
    assert torch.allclose(backward @ v, w @ forward, rtol=1e-9)
    assert torch.is_grad_enabled()
