"""One optimiser step as a pure function of the training state.

Replay uses torch's own optimisers, so that it can be bitwise. The functions here serve what torch's
cannot: tangents (they run under ``torch.func.jvp``) and merged steps (no value range is enforced,
so a learning rate may be a sum and a beta a power). They equal torch's loops up to rounding: to
1e-12 over 50 steps in float64, and to about 2e-7 per step in float32. Nothing is written in place;
results may share memory with the arguments.

Symbols, elementwise in one parameter: theta parameter, g gradient of the loss, eta learning rate,
lam weight decay. A step goes *down* the gradient.

The training state holds everything that an update reads or writes, so Adam's step counts too: a
counterfactual has to rewind them together with the moments (rewound moments with unrewound counts
make a first update up to 3 times too large). Counts are kept rather than bias masses
w' = b w + 1 - b, because torch computes w = 1 - b_now**t from the beta of the *current* step. The
two are equal for constant betas; where a schedule moves them (``OneCycleLR``), torch is followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stagelens.contracts import SUPPORTED_OPTIMIZERS, Refused
from stagelens.replaying.optimizers import refusal
from stagelens.runs.optimizer_kinds import no_formula


class SGDState(NamedTuple):
    """What SGD keeps for one parameter.

    Attributes:
        theta: The parameter.
        v: Momentum buffer, as theta; None before the first update with momentum
            (``torch.func.jvp`` takes tensors only: leave a None out of its inputs and outputs).
    """

    theta: Tensor
    v: Tensor | None


class AdamState(NamedTuple):
    """What Adam and AdamW keep for one parameter.

    Attributes:
        theta: The parameter.
        m: Mean of gradients, as theta.
        u: Mean of squared gradients, as theta, >= 0.
        t: () float64, how many updates this parameter has had: steps without a gradient for it do
            not count. It need not be whole.
    """

    theta: Tensor
    m: Tensor
    u: Tensor
    t: Tensor


ParameterState = SGDState | AdamState


def bias_mass(beta: float, t: Tensor) -> Tensor:
    """Total weight of the updates in a mean that started at zero: ``w = 1 - beta**t``."""
    return 1 - beta**t


def step(
    rule_name: str,
    state: Mapping[str, ParameterState],
    gradients: Mapping[str, Tensor | None],
    hyperparameters: Mapping[str, Mapping[str, Any]],
) -> dict[str, ParameterState]:
    """The state after one update, ``s' = F(s)``.

    Args:
        rule_name: ``"SGD"``, ``"Adam"`` or ``"AdamW"``.
        state: Parameter name to state.
        gradients: Parameter name to gradient, after clipping. None leaves the parameter entirely
            unchanged: no decay, no moments, no count. A zero gradient is a gradient.
        hyperparameters: Parameter name to its group's values, as ``torch`` names them; other keys
            of the group are not read.

    Raises:
        Refused: The optimiser, or an option that is switched on, has no step here.
    """
    after = {}
    for name, before in state.items():
        gradient = gradients[name]
        after[name] = before  # torch skips a parameter without a gradient: not even decay
        if gradient is not None:
            after[name] = _update(rule_name, before, gradient, hyperparameters[name])
    return after


def _update(
    rule_name: str, state: ParameterState, gradient: Tensor, options: Mapping[str, Any]
) -> ParameterState:
    why = no_formula(rule_name, options) or refusal(rule_name, options)
    if why is not None:
        raise Refused(why)
    read = {key: options[key] for key in SUPPORTED_OPTIMIZERS[rule_name].hyperparameters or ()}
    if isinstance(state, SGDState):
        return sgd_update(state, gradient, **read)
    return adam_update(state, gradient, decoupled=rule_name == "AdamW", **read)


def sgd_update(
    state: SGDState,
    gradient: Tensor,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> SGDState:
    """One update of SGD, with coupled weight decay.

    With mu momentum::

        g~     = g + lam theta
        v'     = mu v + (1 - dampening) g~         a fresh parameter: v' = g~
        theta' = theta - eta v'                    Nesterov: theta - eta (g~ + mu v')

    At mu = 0 the buffer is neither read nor written, and ``theta' = theta - eta g~``.

    Args:
        state: Before the update.
        gradient: g, as theta.
        lr: eta.
        momentum: mu.
        dampening: Share of g~ that the buffer does not take; negative for merged steps.
        weight_decay: lam.
        nesterov: Whether momentum is Nesterov's.
    """
    theta, v = state
    g = gradient + weight_decay * theta if weight_decay else gradient
    if not momentum:
        return SGDState(theta - lr * g, v)
    v = g if v is None else momentum * v + (1 - dampening) * g
    direction = g + momentum * v if nesterov else v
    return SGDState(theta - lr * direction, v)


def adam_update(
    state: AdamState,
    gradient: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    masses: tuple[Tensor, Tensor] | None = None,
) -> AdamState:
    """One update of Adam, or with ``decoupled`` weight decay of AdamW.

    ::

        m'     = b1 m + (1 - b1) g                 Adam: g + lam theta for g
        u'     = b2 u + (1 - b2) g^2
        theta' = (1 - eta lam) theta - eta (m'/w1') / (sqrt(u'/w2') + eps)    Adam: lam = 0 here

    The quotient is computed in float64, because its tangent needs it.

    Args:
        state: Before the update.
        gradient: g, as theta.
        lr: eta.
        betas: b1, b2.
        eps: Added to the root.
        weight_decay: lam.
        decoupled: False for Adam, True for AdamW.
        masses: w1', w2', the bias masses *after* the update; by default those of the count. Passed
            where masses carry their own tangent: removing a stage is a finite step in them.
    """
    theta, m, u, t = state
    b1, b2 = betas
    t = t + 1
    w1, w2 = masses or (bias_mass(b1, t), bias_mass(b2, t))
    g = gradient + weight_decay * theta if weight_decay and not decoupled else gradient
    m = b1 * m + (1 - b1) * g
    u = b2 * u + (1 - b2) * g * g
    quotient = (m.double() / w1) / (_root(u.double() / w2) + eps)
    kept = (1 - lr * weight_decay) * theta if decoupled else theta
    return AdamState(kept - lr * quotient.to(theta.dtype), m, u, t)


def _root(x: Tensor) -> Tensor:
    """sqrt(x) whose tangent is 0, not 0/0, where x = 0."""
    zero = x == 0
    # Replaced before the root: masking afterwards would leave an infinite slope times zero, NaN.
    return torch.where(zero, 1.0, x).sqrt().masked_fill(zero, 0.0)


def clip_factor(gradients: Mapping[str, Tensor | None], max_norm: float) -> Tensor:
    """``min(1, max_norm / (|g| + 1e-6))``, () with |g| the 2-norm over all gradients present.

    As ``torch.nn.utils.clip_grad_norm_`` computes it: a norm of norms.
    """
    norms = [torch.linalg.vector_norm(g) for g in gradients.values() if g is not None]
    if not norms:
        return torch.tensor(1.0)
    # Torch's own order of sums and its constant, so that replay and derivatives clip alike.
    total = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    return torch.clamp(max_norm / (total + 1e-6), max=1.0)


def clip(gradients: Mapping[str, Tensor | None], max_norm: float) -> dict[str, Tensor | None]:
    """All gradients times :func:`clip_factor`; those that are None stay None."""
    factor = clip_factor(gradients, max_norm)
    return {n: None if g is None else g * factor.to(g.device) for n, g in gradients.items()}


def state_from_torch(
    rule_name: str,
    parameters: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, ParameterState]:
    """The training state, copied, from parameters and the entries that torch keeps for them.

    Args:
        rule_name: ``"SGD"``, ``"Adam"`` or ``"AdamW"``.
        parameters: Parameter name to value.
        optimizer_state: Parameter name to ``optimizer.state[parameter]``; a parameter that never
            had a gradient has no entry, or an empty one.

    Raises:
        Refused: The optimiser has no step here, or the state is amsgrad's.
    """
    state: dict[str, ParameterState] = {}
    for name, parameter in parameters.items():
        entry = optimizer_state.get(name, {})
        if (why := no_formula(rule_name, {"amsgrad": "max_exp_avg_sq" in entry})) is not None:
            raise Refused(why)
        theta = parameter.detach().clone()
        if rule_name == "SGD":
            v = entry.get("momentum_buffer")
            state[name] = SGDState(theta, None if v is None else v.detach().clone())
        elif not entry:
            # Torch computes 1 - beta**t from a Python float; a float32 count would round it.
            zero = torch.zeros((), dtype=torch.float64)
            state[name] = AdamState(theta, torch.zeros_like(theta), torch.zeros_like(theta), zero)
        else:
            m, u = entry["exp_avg"].detach().clone(), entry["exp_avg_sq"].detach().clone()
            t = torch.tensor(float(entry["step"]), dtype=torch.float64)
            state[name] = AdamState(theta, m, u, t)
    return state
