"""Weights that are in 4 bits on one side of a boundary, or merged into while they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stagelens.runs.boundaries import cast_through, low_rank_product, merged_weight
from stagelens.runs.boundary_facts import DType, LowRank
from stagelens.runs.quantised import is_quantised, pack, packing, unpack
from stagelens.runs.states import same_tensor

from .boundary_casts import dtype_name

_OTHER = {False: (1e-3, 5e-3), True: (2e-2, 5e-2)}
"""Share of a weight's packed bytes, and of its norm, by which packing it again may miss the packed
one: rounding moves a few. By whether it was rounded to half precision."""


@dataclass(frozen=True)
class Packing:
    """How a weight was packed or unpacked.

    Attributes:
        unpacked: Whether it was in 4 bits before.
        packed: Whether it is now.
        term: What was merged between; None for nothing.
        casts: What it was cast to between.
        gap: How far the recorded value is from this, relative to its norm.
    """

    unpacked: bool
    packed: bool
    term: LowRank | None
    casts: tuple[DType, ...] = ()
    gap: float = 0.0


def explain_packing(
    name: str,
    source: str,
    term: LowRank | None,
    before: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
) -> Packing | None:
    """What happened to a weight that is in 4 bits on a side; None if that is not known.

    Args:
        name: At the stage's start.
        source: At the end of the stage before.
        term: What was merged into it.
        before: Tensors of that end.
        start: Tensors of the start.
    """
    was, now = is_quantised(source, before), is_quantised(name, start)
    known = unpack(source, before) if was else before[source]
    if now and known.is_floating_point():
        own: DType = packing(name, start)["dtype"]
        for casts in _ways(known.dtype, own):
            for wide in (None, own):
                merging = None if term is None else term.model_copy(update={"weight_as": wide})
                value = known if merging is None else merged_weight(known, merging, before)
                packed = pack(name, cast_through(value, casts), start, name)
                if all(part in start and same_tensor(t, start[part]) for part, t in packed.items()):
                    return Packing(was, True, merging, casts)
        return None
    tensor = start[name]
    if not was or known.shape != tensor.shape or not tensor.is_floating_point():
        return None
    value = known if term is None else merged_weight(known, term, before)
    ways: list[tuple[DType, ...]] = _ways(value.dtype, dtype_name(tensor))
    for casts in ways:
        if same_tensor(cast_through(value, casts), tensor):
            return Packing(True, False, term, casts)
    return _unquantised(source, term, before, tensor, value, ways[0])


def _unquantised(
    source: str,
    term: LowRank | None,
    before: Mapping[str, Tensor],
    tensor: Tensor,
    value: Tensor,
    casts: tuple[DType, ...],
) -> Packing | None:
    """Where the weights that were packed before the run are loaded again, and merged into.

    What quantisation rounded away comes back; it is no change that a stage made.
    """
    wide = tensor.float()
    if term is not None:
        for each in term.terms:
            if each.magnitude is not None:
                return None
            wide = wide - low_rank_product(each, before[each.a].float(), before[each.b].float())
    again = pack(source, wide, before, source)
    known = unpack(source, before)
    bytes_off = float((again[source] != before[source]).double().mean())
    # Scales are packed apart: of weights times a number, the bytes are the same.
    off = float((unpack(source, again) - known).double().norm() / known.double().norm())
    largest_share, largest = _OTHER[tensor.dtype in (torch.bfloat16, torch.float16)]
    if bytes_off > largest_share or not off <= largest:
        return None
    size = float(tensor.double().norm())
    gap = float((value.double() - tensor.double()).norm()) / size if size else 0.0
    return Packing(True, False, term, casts, gap)


def _ways(old: torch.dtype, now: DType) -> list[tuple[DType, ...]]:
    """Casts from one dtype to another, the likeliest first."""
    direct: tuple[DType, ...] = () if str(old) == f"torch.{now}" else (now,)
    halves: tuple[DType, ...] = ("bfloat16", "float16")
    return [direct, *((half, now) for half in halves if half != now)]
