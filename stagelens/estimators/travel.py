"""How the twins of a coarse replay travelled through one later stage, in a few numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stagelens.runs.run import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from stagelens.runs.states import Weights

_TINY = 1e-30  # keeps ratios to a length of 0 finite


@dataclass(frozen=True)
class Travel:
    """The twins' way through one later stage, over the parameters that it trained.

    The factual twin starts where the recorded stage started; the difference is the factual twin
    minus the counterfactual one. A direction that does not exist has cosine 0.

    Attributes:
        missed: Distance from the factual twin's end to the recorded end, in recorded movements.
        direction: Cosine between the factual twin's movement and the recorded one, -1 to 1.
        progress: The factual twin's movement along the recorded one, in recorded movements.
        growth: Length of the difference at the end, in lengths of that at the start.
        kept: Cosine between the differences at the end and at the start, -1 to 1.
        gap: Distance from the factual twin's end to the recorded end, in lengths of the difference
            at the end.
    """

    missed: float
    direction: float
    progress: float
    growth: float
    kept: float
    gap: float


def travelled(stage: Stage, without: Weights, factual: Weights, twin: Weights) -> Travel:
    """How the twins travelled through a stage, in weights.

    Args:
        stage: The later stage that they passed.
        without: The counterfactual twin at its start.
        factual: The factual twin at its end.
        twin: The counterfactual twin at its end.
    """
    from stagelens.runs.streaming import facts_of, side_by_side  # torch

    start, end = stage.start().model, stage.end().model
    # Sums over parameters, block by block: no second copy of the model is held.
    products = [
        _products(*(block.double() for block in blocks))
        for name in stage.facts.trainable
        if facts_of(end, name).dtype.is_floating_point
        for blocks in side_by_side(name, start, end, without, factual, twin)
    ]
    moved, own, along, miss, before, after, common = _sums(products)
    return Travel(
        missed=_ratio(math.sqrt(miss), math.sqrt(moved)),
        direction=_ratio(along, math.sqrt(moved * own)),
        progress=_ratio(along, moved),
        growth=_ratio(math.sqrt(after), math.sqrt(before)),
        kept=_ratio(common, math.sqrt(before * after)),
        gap=_ratio(math.sqrt(miss), math.sqrt(after)),
    )


def relative_error(stage: Stage, cheap: Weights, exact: Weights) -> float:
    """Length of ``cheap - exact`` in lengths of ``recorded - exact``, over what a stage trained.

    Args:
        stage: All are models at its end.
        cheap: Without an earlier stage, by cheap replay.
        exact: Without it, by replay.
    """
    from stagelens.runs.streaming import facts_of, side_by_side  # torch

    recorded = stage.end().model
    miss = away = 0.0
    for name in stage.facts.trainable:
        if not facts_of(recorded, name).dtype.is_floating_point:
            continue
        for block, other, known in side_by_side(name, cheap, exact, recorded):
            true = other.double()
            miss += float((block.double() - true).square().sum())
            away += float((known.double() - true).square().sum())
    return _ratio(math.sqrt(miss), math.sqrt(away))


def _products(
    start: Tensor, end: Tensor, without: Tensor, factual: Tensor, twin: Tensor
) -> tuple[float, ...]:
    """Scalar products of (P,) movements and differences of parameters; see :func:`travelled`."""
    moved, own, miss = end - start, factual - start, factual - end
    before, after = start - without, factual - twin
    pairs = [
        (moved, moved),
        (own, own),
        (moved, own),
        (miss, miss),
        (before, before),
        (after, after),
        (before, after),
    ]
    return tuple(float(a @ b) for a, b in pairs)


def _sums(products: Iterable[tuple[float, ...]]) -> list[float]:
    return [math.fsum(column) for column in zip(*products, strict=True)] or [0.0] * 7


def _ratio(part: float, whole: float) -> float:
    return part / max(whole, _TINY)
