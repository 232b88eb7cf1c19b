"""One step as a pure function: torch's own optimisers are the reference, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagelens.contracts import Refused
from stagelens.derivatives.step import (
    AdamState,
    ParameterState,
    SGDState,
    adam_update,
    bias_mass,
    clip,
    clip_factor,
    state_from_torch,
    step,
)
from stagelens.replaying.optimizers import group_hyperparameters

STEPS = 50
GROUPS = (("weight", "bias"), ("late", "never", "scale"))  # the second group has its own settings

SETTINGS = [
    ("SGD", {}),
    ("SGD", {"weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("Adam", {}),
    ("Adam", {"betas": (0.8, 0.95), "weight_decay": 0.1}),
    ("Adam", {"eps": 1e-3}),
    ("Adam", {"betas": (0.0, 0.9)}),
    ("AdamW", {}),
    ("AdamW", {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    ("AdamW", {"weight_decay": 0.0}),
]
LOOPS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def constant(_optimizer: torch.optim.Optimizer, _t: int) -> None:
    """Leave everything as it is."""


def scheduled(optimizer: torch.optim.Optimizer, t: int) -> None:
    """Move the learning rate, the momentum, and both betas, at every step."""
    for group in optimizer.param_groups:
        group["lr"] = 0.05 * (1 - t / (2 * STEPS))
        if "betas" in group:
            group["betas"] = (0.95 - 0.2 * t / STEPS, 0.99 - 0.1 * t / STEPS)
        elif group["momentum"]:
            group["momentum"] = 0.95 - 0.2 * t / STEPS


class Training:
    """A small training that torch's optimiser and the pure step both can run."""

    def __init__(self, rule: str, settings: dict[str, Any], loop: str) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = {"weight": (3, 4), "bias": (4,), "late": (5,), "never": (2,), "scale": ()}

        def random(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=generator)

        self.rule = rule
        self.parameters = {n: nn.Parameter(random(s)) for n, s in shapes.items()}
        self.noise = [{n: random(s) for n, s in shapes.items()} for _ in range(STEPS)]
        chosen = [[self.parameters[n] for n in names] for names in GROUPS]
        second = {**settings, "lr": 0.02, "weight_decay": 0.3}
        # torch's fused SGD cannot mix fresh parameters with others in one group.
        self.all_at_once = loop == "fused" and rule == "SGD"
        self.optimizer: torch.optim.Optimizer = getattr(torch.optim, rule)(
            [{"params": chosen[0]}, {"params": chosen[1], **second}],
            lr=0.05,
            **settings,
            **LOOPS[loop],
        )

    def gradients(self, t: int, theta: dict[str, Tensor]) -> dict[str, Tensor | None]:
        """Of step ``t``: none, zero or generic, depending on the parameter and the step."""
        gradients: dict[str, Tensor | None] = {}
        for name, value in theta.items():
            gradients[name] = torch.sin(value) + self.noise[t][name]
            if name == "bias" and t % 7 == 3:
                gradients[name] = torch.zeros_like(value)
            if name == "never" or (name == "weight" and t % 10 == 4):
                gradients[name] = None
            if name == "late" and t < 5 and not self.all_at_once:
                gradients[name] = None
        return gradients

    def torch_step(self, t: int, max_norm: float | None) -> None:
        theta = {n: p.detach().clone() for n, p in self.parameters.items()}
        for name, gradient in self.gradients(t, theta).items():
            self.parameters[name].grad = gradient
        if max_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), max_norm)
        self.optimizer.step()

    def pure_step(
        self, t: int, max_norm: float | None, state: dict[str, ParameterState]
    ) -> dict[str, ParameterState]:
        gradients = self.gradients(t, {n: s.theta for n, s in state.items()})
        if max_norm is not None:
            gradients = clip(gradients, max_norm)
        values = group_hyperparameters(self.optimizer)
        by_name = {n: v for names, v in zip(GROUPS, values, strict=True) for n in names}
        return step(self.rule, state, gradients, by_name)

    def state(self) -> dict[str, ParameterState]:
        return state_from_torch(self.rule, self.parameters, self.entries())

    def entries(self) -> dict[str, dict[str, Tensor]]:
        """What torch's optimiser keeps, by parameter name."""
        return {n: self.optimizer.state.get(p, {}) for n, p in self.parameters.items()}


def deviation(a: dict[str, ParameterState], b: dict[str, ParameterState]) -> float:
    """Largest absolute difference in parameters, moments and counts."""
    largest = 0.0
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            assert (x is None) == (y is None), name
            if x is not None and y is not None:
                largest = max(largest, float((x - y).abs().max()))
    return largest


@pytest.mark.parametrize("max_norm", [None, 2.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("schedule", [constant, scheduled])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("rule", "settings"), SETTINGS, ids=str)
def test_fifty_steps_equal_torchs_optimizer(
    rule: str,
    settings: dict[str, Any],
    loop: str,
    schedule: Callable[[torch.optim.Optimizer, int], None],
    max_norm: float | None,
) -> None:
    training = Training(rule, settings, loop)
    state = training.state()
    for t in range(STEPS):
        schedule(training.optimizer, t)
        state = training.pure_step(t, max_norm, state)
        training.torch_step(t, max_norm)
        if t % 10 in (0, 9):
            assert deviation(state, training.state()) < 1e-12


@pytest.mark.parametrize(("rule", "settings"), SETTINGS, ids=str)
def test_a_state_carried_from_torch_in_mid_run_goes_on_as_torch_does(
    rule: str, settings: dict[str, Any]
) -> None:
    training = Training(rule, settings, "foreach")
    for t in range(20):
        training.torch_step(t, None)
    state = training.state()
    for t in range(20, STEPS):
        state = training.pure_step(t, None, state)
        training.torch_step(t, None)
    assert deviation(state, training.state()) < 1e-12


@pytest.mark.parametrize("rule", ["SGD", "Adam", "AdamW"])
def test_one_cycle_moves_momentum_and_betas_and_is_followed(rule: str) -> None:
    training = Training(rule, {"momentum": 0.9} if rule == "SGD" else {}, "foreach")
    cycle = torch.optim.lr_scheduler.OneCycleLR(training.optimizer, 0.1, total_steps=STEPS)
    state, seen = training.state(), set()
    for t in range(STEPS):
        first = group_hyperparameters(training.optimizer)[0]
        seen.add(first["momentum"] if rule == "SGD" else first["betas"][0])
        state = training.pure_step(t, None, state)
        training.torch_step(t, None)
        if t + 1 < STEPS:
            cycle.step()
    assert len(seen) > 20
    assert deviation(state, training.state()) < 1e-12


def test_in_float32_a_step_equals_torchs_to_rounding() -> None:
    for rule in ("SGD", "Adam", "AdamW"):
        training = Training(rule, {}, "foreach")
        for parameter in training.parameters.values():
            parameter.data = parameter.data.float()
        training.noise = [{n: x.float() for n, x in at.items()} for at in training.noise]
        state = training.pure_step(0, 1.0, training.state())
        training.torch_step(0, 1.0)
        assert all(s.theta.dtype == torch.float32 for s in state.values())
        assert deviation(state, training.state()) < 5e-7


@pytest.mark.parametrize("rule", ["SGD", "Adam", "AdamW"])
def test_no_gradient_leaves_a_parameter_alone_and_a_zero_gradient_does_not(rule: str) -> None:
    training = Training(rule, {"momentum": 0.9} if rule == "SGD" else {}, "foreach")
    training.torch_step(0, None)
    state = {"scale": training.state()["scale"]}
    values = {"scale": group_hyperparameters(training.optimizer)[1]}

    assert step(rule, state, {"scale": None}, values)["scale"] is state["scale"]

    after = step(rule, state, {"scale": torch.zeros((), dtype=torch.float64)}, values)["scale"]
    assert not torch.equal(after.theta, state["scale"].theta)
    if isinstance(after, AdamState):
        assert float(after.t) == 2


def test_the_state_before_is_not_written_to() -> None:
    training = Training("AdamW", {}, "foreach")
    training.torch_step(0, None)
    state, untouched = training.state(), training.state()
    training.pure_step(1, 1.0, state)
    assert deviation(state, untouched) == 0


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e6])
@pytest.mark.parametrize("size", [0.0, 1.0, float("nan")])
def test_clipping_equals_torchs(max_norm: float, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients: dict[str, Tensor | None] = {
        str(n): size * torch.randn(n, dtype=torch.float64, generator=generator) for n in (1, 3, 40)
    }
    parameters = {
        n: nn.Parameter(torch.zeros_like(g)) for n, g in gradients.items() if g is not None
    }
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].clone()  # type: ignore[union-attr]
    nn.utils.clip_grad_norm_(parameters.values(), max_norm)

    clipped = clip({**gradients, "none": None}, max_norm)

    assert clipped.pop("none") is None
    for name, gradient in clipped.items():
        torch.testing.assert_close(
            gradient, parameters[name].grad, rtol=1e-15, atol=0, equal_nan=True
        )


def test_clipping_nothing_is_nothing() -> None:
    assert clip({"a": None}, 1.0) == {"a": None}
    assert float(clip_factor({"a": None}, 1.0)) == 1


def loss(theta: dict[str, Tensor]) -> Tensor:
    """Smooth, with curvature across parameters."""
    hidden = torch.tanh(theta["weight"] @ theta["bias"])
    return (hidden**2).sum() + torch.exp(0.3 * theta["late"]).sum() * torch.cos(theta["scale"])


def whole_step(
    rule: str, max_norm: float, values: dict[str, dict[str, Any]], fresh: bool
) -> Callable[..., dict[str, list[Tensor]]]:
    """The step with its gradient and clipping, as a function of the training state."""

    def advance(state: dict[str, ParameterState]) -> dict[str, list[Tensor]]:
        if fresh:
            state = {n: SGDState(s.theta, None) for n, s in state.items()}
        gradients: dict[str, Tensor | None] = dict(
            torch.func.grad(loss)({n: s.theta for n, s in state.items()})
        )
        after = step(rule, state, clip(gradients, max_norm), values)
        return {n: [x for x in s if x is not None] for n, s in after.items()}

    return advance


def moved(state: dict[str, Any], by: float, direction: dict[str, Any]) -> dict[str, Any]:
    return {
        n: s._make(x + by * d for x, d in zip(s, direction[n], strict=True))
        for n, s in state.items()
    }


@pytest.mark.parametrize("max_norm", [0.5, 1e6], ids=["clipped", "unclipped"])
@pytest.mark.parametrize(
    ("rule", "settings", "fresh"),
    [(rule, settings, False) for rule, settings in SETTINGS]
    + [(rule, settings, True) for rule, settings in SETTINGS if rule == "SGD"],
    ids=str,
)
def test_tangents_under_jvp_are_central_differences(
    rule: str, settings: dict[str, Any], fresh: bool, max_norm: float
) -> None:
    training = Training(rule, settings, "for-loop")
    generator = torch.Generator().manual_seed(1)

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    state: dict[str, ParameterState] = {}
    direction: dict[str, ParameterState] = {}
    for name in ("weight", "bias", "late", "scale"):
        theta = training.parameters[name].detach()
        if rule == "SGD":
            state[name] = SGDState(theta, random(theta))
            direction[name] = SGDState(random(theta), random(theta))
        else:
            t = torch.tensor(3.0, dtype=torch.float64)
            state[name] = AdamState(theta, random(theta), random(theta).square() + 0.1, t)
            direction[name] = AdamState(random(theta), random(theta), random(theta), random(t))
    both = group_hyperparameters(training.optimizer)
    values = {n: v for names, v in zip(GROUPS, both, strict=True) for n in names}
    advance = whole_step(rule, max_norm, values, fresh)

    tangent: dict[str, list[Tensor]] = torch.func.jvp(advance, (state,), (direction,))[1]

    plus, minus = (advance(moved(state, h, direction)) for h in (1e-5, -1e-5))
    for name in state:
        for dx, a, b in zip(tangent[name], plus[name], minus[name], strict=True):
            torch.testing.assert_close(dx, (a - b) / 2e-5, rtol=1e-6, atol=1e-8)


def test_the_tangent_through_a_vanishing_second_moment_is_that_of_the_numerator() -> None:
    zeros, eps, lr = torch.zeros(3, dtype=torch.float64), 1e-8, 0.1
    t = torch.tensor(4.0, dtype=torch.float64)
    dm = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)

    def theta_after(m: Tensor, u: Tensor) -> Tensor:
        return adam_update(
            AdamState(zeros, m, u, t),
            zeros,
            lr=lr,
            betas=(0.9, 0.999),
            eps=eps,
            weight_decay=0.0,
            decoupled=True,
        ).theta

    tangent = torch.func.jvp(theta_after, (zeros, zeros), (dm, torch.ones_like(zeros)))[1]

    expected = -lr * 0.9 * dm / bias_mass(0.9, t + 1) / eps
    torch.testing.assert_close(tangent, expected, rtol=1e-12, atol=0)


def test_masses_given_carry_their_own_tangent() -> None:
    state = Training("AdamW", {}, "foreach").state()["bias"]
    assert isinstance(state, AdamState)
    settings: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    g = torch.ones_like(state.theta)

    def theta_after(w1: Tensor, w2: Tensor) -> Tensor:
        return adam_update(state, g, decoupled=True, masses=(w1, w2), **settings).theta

    masses = bias_mass(0.9, state.t + 1), bias_mass(0.99, state.t + 1)
    torch.testing.assert_close(
        theta_after(*masses), adam_update(state, g, decoupled=True, **settings).theta
    )
    unit = (torch.ones_like(masses[0]), torch.zeros_like(masses[1]))
    tangent = torch.func.jvp(theta_after, masses, unit)[1]
    # theta' = theta - eta (m'/w1') / (sqrt(u'/w2') + eps), where here m'/w1' = sqrt(u'/w2') = 1
    torch.testing.assert_close(tangent, 0.1 * g / masses[0], rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("rule", "options", "says"),
    [
        ("RMSprop", {}, "RMSprop is known by its own step only"),
        ("Adam", {"amsgrad": True}, "Adam with amsgrad is known by its own step only"),
        ("SGD", {"maximize": True}, "negate the loss instead"),
    ],
)
def test_a_step_that_is_not_torchs_plain_one_is_refused(
    rule: str, options: dict[str, Any], says: str
) -> None:
    state: dict[str, ParameterState] = {"a": SGDState(torch.ones(2), None)}
    with pytest.raises(Refused, match=says):
        step(rule, state, {"a": torch.ones(2)}, {"a": {"lr": 0.1, **options}})


def test_amsgrads_state_is_refused() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.Adam([parameter], amsgrad=True)
    optimizer.step()
    with pytest.raises(Refused, match="with amsgrad is known by its own step only"):
        state_from_torch("Adam", {"a": parameter}, {"a": optimizer.state[parameter]})
