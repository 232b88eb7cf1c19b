"""What first order leaves out, estimated along the path: the neglected second-order term.

First order carries a displacement d of the training state along the recorded steps,
``d_{t+1} = J_t d_t + f_t``, where J_t is the derivative of the step's map F_t and f_t what is
changed at the step itself. The state without it is ``s_t - d_t - e_t``, and as both are stepped by
the same map::

    e_{t+1} = J_t e_t - r_t,    r_t = G_t(s_t - d_t) - F_t(s_t) + d_{t+1}

up to third order in d, where G_t is the changed step (F_t where f_t = 0). The *defect* r_t takes
one more gradient, at the displaced state, and holds all that the step's map adds beyond its
derivative: the curvature of the gradient, of Adam's quotient and of clipping, and, where examples
are left out (g' in place of g), the write-in of Adam's second moment, whose part
``(1 - beta2) (g' - g)^2`` is no part of the derivative. It is taken at a few steps, each of which
stands for its neighbours, and carried on by the same linear map as d.

Nothing here is a replay: e tells how much to expect first order to be off, and is itself of use
only while it is small beside d.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from stagelens.runs.run import Stage
from stagelens.runs.step_records import StepRecord

from .curvature import Evaluated
from .step import AdamState, ParameterState, SGDState
from .step_map import State, StateVectors, StepMap, difference
from .tangent import Blocks
from .trajectory import LinearStage

PROBES = 48
"""Steps of a stage whose defects are taken. One costs a gradient, where carrying d and e on costs
four at every step: with 16 a tenth of the work was saved, and estimates were up to twice as far off
(digits under SGD, stretches of 61 and 192 steps)."""

_KEPT = 0.5
"""Second moments are displaced exactly by up to this share of themselves."""


def probes(sizes: Sequence[float], count: int) -> dict[int, float]:
    """Which of T steps are looked at, and how many like itself each stands for.

    Steps are parted into strata of equal summed size, since defects grow with the learning rate;
    of each the middle one is looked at.

    Args:
        sizes: (T,) learning rates.
        count: How many steps to look at; all of them where there are no more.

    Returns:
        Number of the step to its weight; weights times sizes sum to the sum of the sizes.
    """
    if len(sizes) <= count:
        return dict.fromkeys(range(len(sizes)), 1.0)
    own = np.asarray(sizes, float)
    if not own.sum() > 0:
        return {}  # nothing moves, so nothing is neglected
    ends = np.cumsum(own)
    middles = ends - own / 2
    stratum = np.minimum((middles / ends[-1] * count).astype(int), count - 1)
    found = {}
    bounds = [0, *(np.flatnonzero(np.diff(stratum)) + 1), len(own)]
    for first, last in pairwise(bounds):
        total = own[first:last].sum()
        if total > 0:
            middle = ends[first] - own[first] + total / 2
            chosen = min(first + int(np.searchsorted(ends[first:last], middle)), last - 1)
            found[int(chosen)] = float(total / own[chosen])
    return found


def stage_probes(stage: Stage, first: int, last: int, count: int = PROBES) -> dict[int, float]:
    """:func:`probes` of the steps of a stage from ``first`` to before ``last``."""
    steps = stage.read_steps()
    # The largest of its groups: one may be held still, or go slowly, while the others train.
    groups = (steps.facts(number).groups for number in range(first, last))
    rates = [max(float(group["lr"]) for group in own) for own in groups]
    return {first + number: weight for number, weight in probes(rates, count).items()}


def displaced(state: State, vectors: StateVectors, lane: int) -> State:
    """``s - d`` for one lane of d, with second moments and variances kept above zero.

    Beyond half of itself, a second moment is displaced by less than d, and stays positive.
    """
    optimised: dict[str, ParameterState] = {}
    for name, kept in state.optimised.items():
        if name not in vectors.values:
            optimised[name] = kept
            continue
        theta = kept.theta - vectors.values[name][lane]
        blocks = {block: tensor[lane] for block, tensor in vectors.moments[name].items()}
        if isinstance(kept, AdamState):
            u, count = _above(kept.u, blocks["u"]), _count(kept, blocks, state.betas.get(name))
            optimised[name] = AdamState(theta, kept.m - blocks["m"], u, count)
        else:
            v = None if kept.v is None else kept.v - blocks["v"]
            optimised[name] = SGDState(theta, v)
    fixed = dict(state.fixed)
    for name in fixed.keys() & vectors.values.keys():
        moved = vectors.values[name][lane]
        variance = name.rpartition(".")[2] == "running_var"
        fixed[name] = _above(fixed[name], moved) if variance else fixed[name] - moved
    return State(optimised, fixed, dict(state.integers), dict(state.betas))


def _above(kept: Tensor, moved: Tensor) -> Tensor:
    """``kept - moved``, bent towards zero where it would fall below half of ``kept``."""
    share = moved / kept.clamp(min=torch.finfo(kept.dtype).tiny)
    bent = kept * _KEPT * torch.exp(1 - share.clamp(min=_KEPT) / _KEPT)
    return torch.where(share > _KEPT, bent, kept - moved)


def _count(kept: AdamState, blocks: Blocks, betas: tuple[float, float] | None) -> Tensor:
    """The number of updates whose bias mass is smaller by the tangent's: ``b^t' = b^t + dw``."""
    for beta, mass in zip(betas[::-1] if betas else (), ("w2", "w1"), strict=False):
        moved = float(blocks[mass])
        if moved and 0 < beta < 1:
            rest = min(beta ** float(kept.t) + moved, 1.0)
            return torch.tensor(np.log(rest) / np.log(beta), dtype=torch.float64)
    return kept.t


def defect(
    own: LinearStage,
    record: StepRecord,
    step: StepMap,
    before: StateVectors,
    after: StateVectors,
    lane: int,
    left_out: Collection[int] = (),
) -> StateVectors:
    """r_t of one lane, by one gradient at the displaced state; K = 1.

    Args:
        own: The stage.
        record: The step.
        step: The same, at the recorded state.
        before: d_t.
        after: d_{t+1}, to first order.
        lane: Which of the K displacements.
        left_out: Positions of examples that the changed step lacks, the divisor kept.
    """
    state = displaced(step.before, before, lane)
    evaluated = own.loss.gradient(state.values, record)
    if left_out:
        part = own.loss.part(state.values, record, left_out)
        gradient = {name: g - part[name] for name, g in evaluated.gradient.items()}
        evaluated = Evaluated(gradient, evaluated.statistics, {}, [])
    moved = StepMap(own.stage, own.loss, state, record, evaluated)
    found = difference(moved.after, step.after, own.layout, step.after.betas)
    linear = row(after, lane)
    for name, tensor in found.values.items():
        found.values[name] = tensor + linear.values[name]
    for name, blocks in found.moments.items():
        for block, tensor in blocks.items():
            blocks[block] = tensor + linear.moments[name][block]
    bent = _bent(own, record, step, state, before, lane)
    return found if bent is None else add(found, 0, bent, -1.0)


def _bent(
    own: LinearStage,
    record: StepRecord,
    step: StepMap,
    state: State,
    before: StateVectors,
    lane: int,
) -> StateVectors | None:
    """``J (d - d^)`` where d^ was taken in place of d; None where it is d that was taken.

    So the defect is that of the displacement that was taken, to second order the same.
    """
    gap, moments, variances = own.layout.zeros(1), False, False
    for name, blocks in gap.moments.items():
        kept, moved = step.before.optimised[name], state.optimised[name]
        if isinstance(kept, AdamState) and isinstance(moved, AdamState):
            u = before.moments[name]["u"][lane] - (kept.u - moved.u)
            if _is_more(u, kept.u):
                blocks["u"], moments = u[None], True
    for name in state.fixed.keys() & gap.values.keys():
        if name.rpartition(".")[2] == "running_var":
            own_value = step.before.fixed[name]
            left = before.values[name][lane] - (own_value - state.fixed[name])
            if _is_more(left, own_value):
                gap.values[name], variances = left[None], True
    if variances:  # which outputs depend on in evaluation mode, as they do not on second moments
        return step.push(gap, own.loss.push(step.before.values, record, gap.values))
    if not moments:
        return None
    still = [(0 * s.mean[None], 0 * s.variance[None]) for s in step.statistics]
    return step.push(gap, Evaluated({}, [], gap.values, still))


def _is_more(gap: Tensor, kept: Tensor) -> bool:
    """Whether it is more than rounding."""
    return bool((gap.abs() > torch.finfo(gap.dtype).eps * kept).any())


def row(vectors: StateVectors, lane: int) -> StateVectors:
    """One of K vectors; K = 1."""
    own = slice(lane, lane + 1)
    return rows(vectors, own)


def rows(vectors: StateVectors, own: slice) -> StateVectors:
    """Some of K vectors."""
    return StateVectors(
        {name: tensor[own] for name, tensor in vectors.values.items()},
        {n: {b: t[own] for b, t in blocks.items()} for n, blocks in vectors.moments.items()},
    )


def stacked(vectors: Sequence[StateVectors]) -> StateVectors:
    """All vectors of several, one after the other."""
    one = vectors[0]
    if len(vectors) == 1:
        return one
    return StateVectors(
        {name: torch.cat([v.values[name] for v in vectors]) for name in one.values},
        {
            name: {block: torch.cat([v.moments[name][block] for v in vectors]) for block in blocks}
            for name, blocks in one.moments.items()
        },
    )


def add(to: StateVectors, lane: int, other: StateVectors, weight: float = 1.0) -> StateVectors:
    """K vectors, one of which has the only vector of ``other`` added to it, times a weight."""

    def sums(own: Tensor, more: Tensor) -> Tensor:
        found = own.clone()  # vectors may share memory with those before the step
        found[lane] += weight * more[0].to(found)
        return found

    return StateVectors(
        {n: sums(t, other.values[n]) if n in other.values else t for n, t in to.values.items()},
        {
            n: {b: sums(t, other.moments[n][b]) for b, t in blocks.items()}
            if n in other.moments
            else blocks
            for n, blocks in to.moments.items()
        },
    )
