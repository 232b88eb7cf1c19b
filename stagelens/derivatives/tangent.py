"""The exact derivative of one parameter's update, as a linear operator: forward and transposed.

Autodiff of an update is not enough: it gives 0/0 where a unit never had a gradient, and a removed
stage is a finite step in the bias masses. So the derivatives are written out as formulas, once per
rule, with coefficients that all vectors of a step share: they are computed in float64 and used in
the dtype of the parameter. :meth:`push` maps tangents forward (``v -> Jv``), :meth:`pull` maps
cotangents backward (``w -> J^T w``); both take K vectors at once, along a leading dimension.

An update acts on blocks, named as in :mod:`~.derivatives.step`: ``theta``, and ``v`` for SGD
or ``m, u, w1, w2`` for Adam, where w1, w2 are the bias masses (K,), float64. Masses replace the
step count because a removed stage changes them by a finite, exactly known amount:
w' = b w + 1 - b, so dw' = b dw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .step import AdamState, ParameterState, SGDState

Blocks = dict[str, Tensor]
"""Block name to K vectors, (K, *shape) or, for masses, (K,) float64."""

MOMENTS: Mapping[str, tuple[str, ...]] = {
    "SGD": ("v",),
    "Adam": ("m", "u", "w1", "w2"),
    "AdamW": ("m", "u", "w1", "w2"),
}
"""Blocks that an optimiser keeps beside theta."""

MASSES = ("w1", "w2")


class UpdateOperator(Protocol):
    """One parameter's update, linearised at one state and gradient.

    Attributes:
        after: The state that the update leads to.
    """

    after: ParameterState

    def push(self, before: Blocks, gradient: Tensor) -> Blocks:
        """``(ds, dg) -> ds'`` for K tangents of the state and of the (clipped) gradient."""
        ...

    def pull(self, after: Blocks) -> tuple[Blocks, Tensor]:
        """``lambda' -> (lambda_s, lambda_g)``, the transpose of :meth:`push`."""
        ...

    def change(self) -> Blocks:
        """``s' - s`` in all blocks, K = 1: what the update did."""
        ...

    def share(self, after: Blocks) -> Tensor:
        """What one example's gradient is multiplied by in its additive part of the update.

        Example i's part of ``lambda' . (s' - s)`` is ``share . g_i``, where the g_i sum to the
        (clipped) gradient, denominators are held, and g^2 is split as g g_i.
        """
        ...


def linearise_update(
    rule: str,
    before: ParameterState,
    gradient: Tensor,
    after: ParameterState,
    options: Mapping[str, Any],
    rebase: tuple[float, float] = (1.0, 1.0),
) -> UpdateOperator:
    """The derivative of one update.

    Args:
        rule: ``"SGD"``, ``"Adam"`` or ``"AdamW"``.
        before: State before it.
        gradient: g, after clipping.
        after: State after it, as :func:`stagelens.derivatives.step.step` gives it.
        options: The parameter group's hyperparameters at this step.
        rebase: From :func:`rebased_mass`, where betas changed since the previous update.
    """
    if isinstance(before, SGDState) and isinstance(after, SGDState):
        return SGDOperator(before, gradient, after, options)
    if isinstance(before, AdamState) and isinstance(after, AdamState):
        return AdamOperator(before, gradient, after, options, rule == "AdamW", rebase)
    raise TypeError(f"{rule} has no operator on {type(before).__name__}")


def rebased_mass(beta: float, new_beta: float, count: float) -> float:
    """Factor on a mass's tangent where the beta that masses are computed from changes.

    Torch computes w = 1 - b^t from the beta of the current step, so with dt the change of the count
    ``dw = -ln(b) b^t dt``, and the factor is ``ln(b_new) b_new^t / (ln(b) b^t)``; 1 for constant
    betas.

    Args:
        beta: Of the previous update.
        new_beta: Of the next update.
        count: t, updates so far.
    """
    if beta == new_beta:
        return 1.0
    # At beta 0 the mass is 1 whatever the count: its tangent is 0, and ln(0) does not exist.
    if not 0 < beta < 1 or not 0 < new_beta < 1:
        return 0.0
    ratio = math.log(new_beta) / math.log(beta)
    # One exponential of the difference: each power alone underflows in long stages.
    return ratio * math.exp(count * (math.log(new_beta) - math.log(beta)))


def _over(factor: Tensor, like: Tensor) -> Tensor:
    """(K,) shaped so that it multiplies (K, *shape), in its dtype."""
    return factor.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def _dots(row: Tensor, vectors: Tensor) -> Tensor:
    """``row . v_k`` for (K, *shape) vectors; (K,) float64."""
    return (vectors * row).flatten(1).sum(1).double()


class SGDOperator:
    """SGD with momentum mu, dampening, coupled decay lam, learning rate eta.

    ::

        dg~     = dg + lam dtheta
        dv'     = mu dv + (1 - dampening) dg~          a fresh parameter: dv' = dg~
        dtheta' = dtheta - eta dv'                     Nesterov: dtheta - eta (dg~ + mu dv')

    At mu = 0 the buffer is left unchanged and ``dtheta' = dtheta - eta dg~``.
    """

    def __init__(
        self, before: SGDState, gradient: Tensor, after: SGDState, options: Mapping[str, Any]
    ) -> None:
        self.before = before
        self.after: ParameterState = after
        self.lr = float(options["lr"])
        self.mu = float(options["momentum"])
        self.decay = float(options["weight_decay"])
        self.nesterov = bool(options["nesterov"])
        fresh = before.v is None  # torch's first buffer is g~ itself, not dampened
        self.kept = 0.0 if fresh else self.mu
        self.taken = 1.0 if fresh else 1.0 - float(options["dampening"])

    def push(self, before: Blocks, gradient: Tensor) -> Blocks:
        """See :class:`UpdateOperator`."""
        theta, v = before["theta"], before["v"]
        g = gradient + self.decay * theta if self.decay else gradient
        if not self.mu:
            return {"theta": theta - self.lr * g, "v": v}
        v = self.kept * v + self.taken * g
        direction = g + self.mu * v if self.nesterov else v
        return {"theta": theta - self.lr * direction, "v": v}

    def pull(self, after: Blocks) -> tuple[Blocks, Tensor]:
        """See :class:`UpdateOperator`."""
        direction = -self.lr * after["theta"]
        if not self.mu:
            v, g = after["v"], direction
        else:  # Nesterov's direction g~ + mu v' passes lambda to g~ a second time
            new_v = after["v"] + (self.mu * direction if self.nesterov else direction)
            g = self.taken * new_v + direction if self.nesterov else self.taken * new_v
            v = self.kept * new_v
        return {"theta": after["theta"] + self.decay * g, "v": v}, g

    def change(self) -> Blocks:
        """See :class:`UpdateOperator`."""
        before, after = self.before, self.after
        assert isinstance(after, SGDState)
        theta = after.theta - before.theta
        v = torch.zeros_like(theta) if after.v is None else after.v
        return {
            "theta": theta[None],
            "v": (v if before.v is None else v - before.v)[None],
        }

    def share(self, after: Blocks) -> Tensor:
        """See :class:`UpdateOperator`; the update is linear in g, so this is lambda_g."""
        return self.pull(after)[1]


class AdamOperator:
    """Adam with coupled decay, or AdamW; betas b1, b2, learning rate eta, decay lam.

    With q = mhat / (sqrt(uhat) + eps)::

        dg~     = dg                               Adam: dg + lam dtheta
        dm'     = b1 dm + (1 - b1) dg~
        du'     = b2 du + 2 (1 - b2) g~ dg~
        dw'     = b dw
        dtheta' = (1 - eta lam) dtheta - eta dq    Adam: lam = 0 here
        dq      = a dm' - c du' - (q / w1') dw1' + (c uhat) dw2'
        a       = 1 / (w1' (sqrt(uhat) + eps))
        c       = q / (2 sqrt(uhat) (sqrt(uhat) + eps) w2'),    0 where uhat = 0
    """

    def __init__(
        self,
        before: AdamState,
        gradient: Tensor,
        after: AdamState,
        options: Mapping[str, Any],
        decoupled: bool,
        rebase: tuple[float, float],
    ) -> None:
        self.before = before
        self.after: ParameterState = after
        self.lr = float(options["lr"])
        self.b1, self.b2 = (float(beta) for beta in options["betas"])
        decay = float(options["weight_decay"])
        self.kept = 1 - self.lr * decay if decoupled else 1.0
        self.decay = 0.0 if decoupled else decay
        self.gradient = gradient + self.decay * before.theta if self.decay else gradient
        self.rebase = rebase
        dtype, count = before.theta.dtype, float(after.t)
        w1, w2 = 1 - self.b1**count, 1 - self.b2**count
        uhat = after.u.double() / w2
        root = uhat.sqrt()
        denominator = root + float(options["eps"])
        q = after.m.double() / (w1 * denominator)
        # A unit that never had a gradient, where the root has no slope: c is 0, not 0/0.
        dead = root == 0
        c = q / (2 * torch.where(dead, 1.0, root) * denominator * w2)
        c = c.masked_fill(dead, 0.0)
        # Narrowed last: products like (sqrt(uhat) + eps) w underflow in float32.
        self.a = (1 / (w1 * denominator)).to(dtype)
        self.c = c.to(dtype)
        self.q_over_w1 = (q / w1).to(dtype)
        self.c_uhat = (c * uhat).to(dtype)

    def push(self, before: Blocks, gradient: Tensor) -> Blocks:
        """See :class:`UpdateOperator`."""
        theta = before["theta"]
        g = gradient + self.decay * theta if self.decay else gradient
        m = self.b1 * before["m"] + (1 - self.b1) * g
        u = self.b2 * before["u"] + 2 * (1 - self.b2) * self.gradient * g
        w1 = self.b1 * self.rebase[0] * before["w1"]
        w2 = self.b2 * self.rebase[1] * before["w2"]
        dq = self.a * m - self.c * u
        # Most often zero (an optimiser that is new, a large count): saves two full products.
        if bool(w1.any()) or bool(w2.any()):
            dq = dq - self.q_over_w1 * _over(w1, dq) + self.c_uhat * _over(w2, dq)
        return {"theta": self.kept * theta - self.lr * dq, "m": m, "u": u, "w1": w1, "w2": w2}

    def pull(self, after: Blocks) -> tuple[Blocks, Tensor]:
        """See :class:`UpdateOperator`."""
        dq = -self.lr * after["theta"]
        m = after["m"] + self.a * dq
        u = after["u"] - self.c * dq
        w1 = after["w1"] - _dots(self.q_over_w1, dq)
        w2 = after["w2"] + _dots(self.c_uhat, dq)
        g = (1 - self.b1) * m + 2 * (1 - self.b2) * self.gradient * u
        before = {
            "theta": self.kept * after["theta"] + self.decay * g,
            "m": self.b1 * m,
            "u": self.b2 * u,
            "w1": self.b1 * self.rebase[0] * w1,
            "w2": self.b2 * self.rebase[1] * w2,
        }
        return before, g

    def change(self) -> Blocks:
        """See :class:`UpdateOperator`; masses of the current betas, w' - w = (1 - b) b^t."""
        before, after = self.before, self.after
        assert isinstance(after, AdamState)
        count = float(before.t)
        return {
            "theta": (after.theta - before.theta)[None],
            "m": (after.m - before.m)[None],
            "u": (after.u - before.u)[None],
            "w1": self._mass((1 - self.b1) * self.b1**count),
            "w2": self._mass((1 - self.b2) * self.b2**count),
        }

    def _mass(self, value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64, device=self.before.theta.device)

    def share(self, after: Blocks) -> Tensor:
        """See :class:`UpdateOperator`."""
        # u' acts on theta' through the denominator only, which is held, so -c du' is left out; and
        # (1 - b2) g^2 is split as (1 - b2) g g_i, without the 2 of a derivative.
        m = after["m"] - self.lr * self.a * after["theta"]
        return (1 - self.b1) * m + (1 - self.b2) * self.gradient * after["u"]


class PlainSGDOperator:
    """Any update as if it were plain SGD: ``dtheta' = dtheta - eta dg``, change ``-eta g``.

    This is what attribution that ignores the optimiser computes (arXiv 2605.18814 warns of it). It
    serves the benchmark only, and keeps the true ``after``, so the trajectory is the real one.
    """

    def __init__(self, gradient: Tensor, after: ParameterState, options: Mapping[str, Any]) -> None:
        self.gradient = gradient
        self.after = after
        self.lr = float(options["lr"])

    def push(self, before: Blocks, gradient: Tensor) -> Blocks:
        """See :class:`UpdateOperator`."""
        return {**before, "theta": before["theta"] - self.lr * gradient}

    def pull(self, after: Blocks) -> tuple[Blocks, Tensor]:
        """See :class:`UpdateOperator`."""
        return after, -self.lr * after["theta"]

    def change(self) -> Blocks:
        """See :class:`UpdateOperator`; moments are left out."""
        return {"theta": -self.lr * self.gradient[None]}

    def share(self, after: Blocks) -> Tensor:
        """See :class:`UpdateOperator`."""
        return -self.lr * after["theta"]


class ClipOperator:
    """Clipping by total norm, f = min(1, c / (|g| + 1e-6)).

    ::

        d(f g) = f dg + df g,    df = -c / (|g| + 1e-6)^2 (g . dg) / |g|   where f < 1, else 0

    The map is symmetric, so it is its own transpose.

    Args:
        gradients: Parameter name to g before clipping, without missing gradients.
        max_norm: c.
        factor: f.
    """

    def __init__(self, gradients: Mapping[str, Tensor], max_norm: float, factor: float) -> None:
        self.gradients = gradients
        self.factor = factor
        square = sum(float(g.double().square().sum()) for g in gradients.values())
        norm = math.sqrt(square)
        self.slope = max_norm / ((norm + 1e-6) ** 2 * norm) if factor < 1 and norm > 0 else 0.0

    def apply(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``dg -> d(f g)``, or the same for cotangents."""
        scaled = {name: self.factor * vector for name, vector in vectors.items()}
        if not self.slope:
            return scaled
        dots: Tensor = torch.stack([_dots(self.gradients[n], v) for n, v in vectors.items()]).sum(0)
        return {
            name: vector - _over(self.slope * dots, vector) * self.gradients[name]
            for name, vector in scaled.items()
        }
