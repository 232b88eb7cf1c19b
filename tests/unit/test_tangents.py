"""One update's derivative: forward against autodiff of the pure step, backward its transpose."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stagelens.derivatives.step import (
    AdamState,
    ParameterState,
    SGDState,
    adam_update,
    clip,
    clip_factor,
    sgd_update,
)
from stagelens.derivatives.tangent import (
    AdamOperator,
    Blocks,
    ClipOperator,
    SGDOperator,
    UpdateOperator,
    linearise_update,
    rebased_mass,
)

SGD: list[dict[str, Any]] = [
    {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.1, "nesterov": False},
    {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "nesterov": False},
    {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1, "nesterov": True},
]
ADAM: list[dict[str, Any]] = [
    {"betas": (0.9, 0.99), "weight_decay": 0.0},
    {"betas": (0.9, 0.99), "weight_decay": 0.1},
    {"betas": (0.0, 0.9), "weight_decay": 0.1},
]
COUNTS = [0.0, 1.0, 7.0]
K = 3


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tangents(names: tuple[str, ...], seed: int = 50) -> Blocks:
    """K vectors over a (2, 4) parameter."""
    return {
        name: random(seed + i, K) if name.startswith("w") else random(seed + i, K, 2, 4)
        for i, name in enumerate(names)
    }


def dot(a: Blocks, b: Blocks) -> Tensor:
    return torch.stack(
        [(a[n] * b[n]).flatten(1).sum(1) if a[n].ndim > 1 else a[n] * b[n] for n in a]
    ).sum(0)


def sgd_case(options: dict[str, Any], fresh: bool) -> tuple[SGDOperator, Any]:
    options = {"lr": 0.1, **options}
    before = SGDState(random(0, 2, 4), None if fresh else random(1, 2, 4))
    gradient = random(2, 2, 4)

    def update(theta: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        after = sgd_update(SGDState(theta, None if fresh else v), g, **options)
        return after.theta, v if after.v is None else after.v

    after = sgd_update(before, gradient, **options)
    operator = linearise_update("SGD", before, gradient, after, options)
    assert isinstance(operator, SGDOperator)
    point = (before.theta, torch.zeros(2, 4).double() if fresh else before.v, gradient)
    return operator, (update, point)


def adam_case(options: dict[str, Any], count: float, decoupled: bool) -> tuple[AdamOperator, Any]:
    options = {"lr": 0.1, "eps": 1e-8, **options}
    zero = torch.zeros(2, 4, dtype=torch.float64)
    m, u = (zero, zero) if count == 0 else (random(1, 2, 4), random(3, 2, 4).square())
    before = AdamState(random(0, 2, 4), m, u, torch.tensor(count, dtype=torch.float64))
    gradient = random(2, 2, 4)
    b1, b2 = options["betas"]

    def update(*point: Tensor) -> tuple[Tensor, ...]:
        theta, m, u, w1, w2, g = point
        w1, w2 = b1 * w1 + 1 - b1, b2 * w2 + 1 - b2
        after = adam_update(
            AdamState(theta, m, u, before.t), g, decoupled=decoupled, masses=(w1, w2), **options
        )
        return after.theta, after.m, after.u, w1, w2

    after = adam_update(before, gradient, decoupled=decoupled, **options)
    rule = "AdamW" if decoupled else "Adam"
    operator = linearise_update(rule, before, gradient, after, options)
    assert isinstance(operator, AdamOperator)
    masses = [torch.tensor(1 - b**count, dtype=torch.float64) for b in (b1, b2)]
    return operator, (update, (before.theta, m, u, *masses, gradient))


def check_forward(
    operator: UpdateOperator, names: tuple[str, ...], update: Any, point: tuple[Tensor, ...]
) -> None:
    before, gradient = tangents(names), random(90, K, 2, 4)
    pushed = operator.push(before, gradient)
    for k in range(K):
        vector = (*(before[name][k] for name in names), gradient[k])
        _, expected = torch.func.jvp(update, point, vector)
        for name, tensor in zip(names, expected, strict=True):
            torch.testing.assert_close(pushed[name][k], tensor, rtol=1e-9, atol=1e-12)


def check_transpose(operator: UpdateOperator, names: tuple[str, ...]) -> None:
    before, gradient, after = tangents(names), random(90, K, 2, 4), tangents(names, 70)
    forward = dot(after, operator.push(before, gradient))
    pulled, through = operator.pull(after)
    backward = dot(pulled, before) + (through * gradient).flatten(1).sum(1)
    torch.testing.assert_close(forward, backward, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "later"])
@pytest.mark.parametrize("options", SGD, ids=str)
def test_sgd(options: dict[str, Any], fresh: bool) -> None:
    operator, (update, point) = sgd_case(options, fresh)
    check_forward(operator, ("theta", "v"), update, point)
    check_transpose(operator, ("theta", "v"))


@pytest.mark.parametrize("decoupled", [False, True], ids=["Adam", "AdamW"])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("options", ADAM, ids=str)
def test_adam(options: dict[str, Any], count: float, decoupled: bool) -> None:
    names = ("theta", "m", "u", "w1", "w2")
    operator, (update, point) = adam_case(options, count, decoupled)
    check_forward(operator, names, update, point)
    check_transpose(operator, names)


def every_operator() -> list[UpdateOperator]:
    sgd = [sgd_case(options, fresh)[0] for options in SGD for fresh in (True, False)]
    adam = [adam_case(o, t, w)[0] for o in ADAM for t in COUNTS for w in (True, False)]
    return [*sgd, *adam]


@pytest.mark.parametrize("operator", every_operator(), ids=lambda o: type(o).__name__)
def test_the_change_is_what_the_update_did(operator: Any) -> None:
    before: ParameterState = operator.before
    change = operator.change()
    torch.testing.assert_close(change["theta"][0], operator.after.theta - before.theta)
    if isinstance(before, AdamState):
        for block, beta in (("w1", operator.b1), ("w2", operator.b2)):
            expected = beta ** float(before.t) - beta ** (float(before.t) + 1)
            assert float(change[block]) == pytest.approx(expected)


def test_a_parameter_whose_gradient_was_always_zero_has_a_finite_derivative() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    before = AdamState(zero, zero, zero, torch.tensor(4.0, dtype=torch.float64))
    options = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    after = adam_update(before, zero, decoupled=True, **options)
    operator = linearise_update("AdamW", before, zero, after, options)
    blocks = {"theta": torch.ones(1, 3).double(), "m": zero[None], "u": torch.ones(1, 3).double()}
    masses = {"w1": torch.ones(1).double(), "w2": torch.ones(1).double()}
    pushed = operator.push({**blocks, **masses}, zero[None])
    assert torch.equal(pushed["theta"], blocks["theta"])


def test_denominators_are_taken_in_float64() -> None:
    """Where (sqrt(u) + eps) w underflows in float32, coefficients are still right."""
    u = torch.full((1,), 1e-30)
    before = AdamState(torch.zeros(1), torch.full((1,), 1e-16), u, torch.tensor(5.0))
    options = {"lr": 1.0, "betas": (0.9, 0.999), "eps": 0.0, "weight_decay": 0.0}
    gradient = torch.full((1,), 1e-15)
    after = adam_update(before, gradient, decoupled=True, **options)
    single = linearise_update("AdamW", before, gradient, after, options)
    double_before = AdamState(*(t.double() for t in before))
    double_after = adam_update(double_before, gradient.double(), decoupled=True, **options)
    double = linearise_update("AdamW", double_before, gradient.double(), double_after, options)
    assert isinstance(single, AdamOperator)
    assert isinstance(double, AdamOperator)
    torch.testing.assert_close(single.c.double(), double.c, rtol=1e-5, atol=0)


@pytest.mark.parametrize("max_norm", [0.5, 100.0], ids=["active", "inactive"])
def test_clipping(max_norm: float) -> None:
    gradients = {"a": random(0, 2, 3), "b": random(1, 4)}
    operator = ClipOperator(gradients, max_norm, float(clip_factor(gradients, max_norm)))
    vectors = {"a": random(2, K, 2, 3), "b": random(3, K, 4)}
    pushed = operator.apply(vectors)

    def clipped(a: Tensor, b: Tensor) -> tuple[Tensor | None, Tensor | None]:
        after = clip({"a": a, "b": b}, max_norm)
        return after["a"], after["b"]

    for k in range(K):
        vector = (vectors["a"][k], vectors["b"][k])
        _, (a, b) = torch.func.jvp(clipped, (gradients["a"], gradients["b"]), vector)
        torch.testing.assert_close(pushed["a"][k], a, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(pushed["b"][k], b, rtol=1e-10, atol=1e-12)


def test_a_mass_keeps_its_count_when_betas_move() -> None:
    """d(1 - b^t)/dt rebased is the same derivative for the new beta."""
    old, new, count = 0.9, 0.95, 6.0
    derivative = {b: -math.log(b) * b**count for b in (old, new)}
    assert rebased_mass(old, new, count) == pytest.approx(derivative[new] / derivative[old])
    assert rebased_mass(old, old, 1e9) == 1.0
    assert rebased_mass(0.0, 0.9, 3.0) == 0.0
