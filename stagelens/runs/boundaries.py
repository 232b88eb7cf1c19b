"""Boundary operations on named tensors: new names, merged adapters, casts, added and cut rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stagelens.contracts import Refused

from .adapter_starts import begun, row_norms
from .boundary_facts import Boundary, DType, LowRank
from .quantised import is_quantised, pack, unpack
from .states import same_tensor

_AS_RECORDED = 1e-3
"""The largest distance, relative to its norm, of a factor computed again."""


def low_rank_product(term: LowRank, a: Tensor, b: Tensor) -> Tensor:
    """``scaling * B A``, linear in each factor, with the arithmetic of ``peft``.

    Args:
        term: Scaling and orientation.
        a: (r, in), or (r, in, *kernel) of a convolution.
        b: (out, r), or (out, r, 1, ...).

    Returns:
        (out, in), (out, in, *kernel), or (in, out) where transposed.
    """
    dtype = a.dtype
    if dtype in (torch.bfloat16, torch.float16):
        # As peft merges on the CPU, so that its result is repeated bit for bit.
        a, b = a.float(), b.float()
    product = b.flatten(1) @ a.flatten(1)
    product = product.T if term.transposed else product.reshape(b.shape[0], *a.shape[1:])
    return (product * term.scaling).to(dtype)


def merged_weight(weight: Tensor, term: LowRank, tensors: Mapping[str, Tensor]) -> Tensor:
    """``weight + scaling * B A`` in the weight's own dtype; ``tensors`` holds the factors.

    Weight and factors are cast first where the term says so. Of several adapters, one is merged
    after the other; DoRA divides by the norms of the weight without the others.
    """
    alone = weight = as_dtype(weight, term.weight_as)
    for each in term.terms:
        factors = [as_dtype(tensors[factor], each.factors_as) for factor in (each.a, each.b)]
        product = low_rank_product(each, *factors)
        # As peft's in-place addition does it: in the wider of both dtypes, rounded once.
        total = weight + product
        if each.magnitude is not None:
            magnitude = as_dtype(tensors[each.magnitude], each.factors_as)
            total = _rescaled(total, magnitude / row_norms(alone, product, each.transposed), each)
        weight = total.to(weight.dtype)
    return weight


def _rescaled(weight: Tensor, factors: Tensor, term: LowRank) -> Tensor:
    """A weight with its rows, which are columns where transposed, times factors."""
    if term.transposed:
        return factors.view(1, -1) * weight
    return factors.view(-1, *[1] * (weight.dim() - 1)) * weight


def as_dtype(tensor: Tensor, dtype: DType | None) -> Tensor:
    """A tensor cast to a dtype by its name; None for as it is."""
    return tensor if dtype is None else tensor.to(getattr(torch, dtype))


def cast_through(tensor: Tensor, dtypes: Sequence[DType]) -> Tensor:
    """A tensor cast to one dtype after the other."""
    for dtype in dtypes:
        tensor = as_dtype(tensor, dtype)
    return tensor


def mean_rows(tensor: Tensor, count: int) -> Tensor:
    """Rows that a vocabulary gains, at the mean of those that it has.

    Args:
        tensor: (rows, ...).
        count: How many.

    Returns:
        (count, ...), with the arithmetic of ``transformers``.
    """
    wide = tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)
    mean = torch.mean(wide, dim=0, keepdim=True)
    return mean.to(tensor.dtype).expand(count, *tensor.shape[1:])


def check_crossable(stage: str, boundary: Boundary) -> None:
    """Refuse to carry a counterfactual over a boundary at which not all that happened is known.

    Raises:
        Refused: Says what is not known.
    """
    if boundary.problem is not None:
        raise Refused(
            f"what stage {stage!r} would have started from without an earlier stage is not known: "
            f"{boundary.problem}"
        )


def started_names(boundary: Boundary) -> set[str]:
    """Weights, factors and magnitudes whose values follow from the weights beneath."""
    names = set(boundary.started) - set(boundary.packed)
    for start in (start for starts in boundary.started.values() for start in starts):
        term = start.term
        names |= {term.a, term.b} if start.kind in ("pissa", "olora") else set()
        names |= {term.magnitude} if term.magnitude is not None else set()
    return names


def check_started(
    stage: str, boundary: Boundary, factual: Mapping[str, Tensor], recorded: Mapping[str, Tensor]
) -> None:
    """Refuse a machine on which an adapter's initial values, or packed weights, come out otherwise.

    Singular vectors have no sign of their own, and near ones mix: where they are others, how they
    move with the weights is not that of the recording.

    Args:
        stage: Its name.
        boundary: Its boundary.
        factual: The start that the recorded end gives here.
        recorded: The recorded one.

    Raises:
        Refused: Says which adapter.
    """
    for weight, starts in boundary.started.items():
        for term in (start.term for start in starts if start.kind in ("pissa", "olora")):
            gap = float((factual[term.a].double() - recorded[term.a].double()).norm())
            if not gap <= _AS_RECORDED * float(recorded[term.a].double().norm()):
                raise Refused(
                    f"the adapter of stage {stage!r} began with values computed from {weight} "
                    "beneath it, and computing them on this machine gives others; replay on a "
                    "machine like the one that recorded them, or use --estimator task-vector"
                )
    for name in boundary.packed:
        if not same_tensor(factual[name], recorded[name]):
            raise Refused(
                f"{name} was packed into 4 bits before stage {stage!r}, and packing it on this "
                "machine gives other bits; replay with the version of bitsandbytes, and on a "
                "machine like the one, that recorded it"
            )


def apply_boundary(
    boundary: Boundary, before: Mapping[str, Tensor], recorded: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Parameters and buffers after a boundary.

    Args:
        boundary: The operation.
        before: The end of the previous stage, factual or not.
        recorded: The start of the stage after it; gives the names, and the values of new ones.
    """
    new = set(boundary.new)
    after = {}
    for name, tensor in recorded.items():
        if name in new:
            after[name] = tensor
            continue
        source = boundary.source(name)
        value = unpack(source, before) if name in boundary.unpacked else before[source]
        if (term := boundary.merged.get(name)) is not None:
            value = merged_weight(value, term, before)
        value = cast_through(value, boundary.casts.get(name, ()))
        if (kept := boundary.trimmed.get(name)) is not None:
            value = value[:kept]
        if (rows := boundary.grown.get(name)) is not None:
            averaged = name in boundary.averaged
            added = mean_rows(value, len(tensor) - rows) if averaged else tensor[rows:]
            value = torch.cat([value, added])
        after[name] = value
    for name in boundary.packed:
        after.update(pack(name, after[name], recorded, name))
    for name, starts in boundary.started.items():
        for start in starts:
            whole = is_quantised(name, after)
            found = begun(start, unpack(name, after) if whole else after[name], recorded)
            weight = found.pop("weight")
            # Of what is packed, only norms are read.
            after.update(found if whole else {name: weight, **found})
    return after


def carry(name: str, later: Sequence[Boundary], tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The part of a final tensor that comes from a stage's state, across the later boundaries.

    Values that enter at those boundaries are left out: they do not depend on the stage's state,
    so they cancel in the difference of two states.

    Args:
        name: In the final model.
        later: Boundaries after the stage, in order.
        tensors: Floating tensors of the stage, at its start or its end.

    Returns:
        (*shape), without rows that were added with values of their own; float64 if an adapter was
        merged into it; None if nothing of the stage's state is left in it.
    """
    if not later:
        return tensors.get(name)
    *earlier, boundary = later
    if name in boundary.new:
        return _norms(name, later, tensors)
    own = carry(boundary.source(name), earlier, tensors)
    if own is not None and not own.is_floating_point():
        own = None  # packed, and so never trained
    alone = own
    for term in boundary.merged[name].terms if name in boundary.merged else ():
        own = _with_term(own, alone, term, earlier, tensors)
    if own is None:
        return None
    if (kept := boundary.trimmed.get(name)) is not None:
        own = own[:kept]
    if (added := boundary.averaged.get(name)) is not None:
        own = torch.cat([own, mean_rows(own, added)])
    return own


def _with_term(
    own: Tensor | None,
    alone: Tensor | None,
    term: LowRank,
    earlier: Sequence[Boundary],
    tensors: Mapping[str, Tensor],
) -> Tensor | None:
    """What is carried of a weight once an adapter was merged into it; see :func:`carry`."""
    a, b = (carry(factor, earlier, tensors) for factor in (term.a, term.b))
    # Factors that are younger than the stage have the same product in both states. float64,
    # because a difference of products would lose what they have in common to rounding.
    if a is None or b is None:
        return own
    product = low_rank_product(term, a.double(), b.double())
    total = product.clone()
    if own is not None:  # rows that it gained before are new, and cancel
        total[: len(own)] += own.double()
    if term.magnitude is None or own is None or alone is None or own.shape != product.shape:
        return total
    magnitude = carry(term.magnitude, earlier, tensors)
    if magnitude is None:
        return total
    norms = row_norms(alone.double(), product, term.transposed)
    return _rescaled(total, magnitude.double() / norms, term)


def magnitudes(boundary: Boundary) -> dict[str, tuple[str, LowRank]]:
    """DoRA's magnitudes that began at a boundary, to the weight beneath and the adapter."""
    return {
        start.term.magnitude: (weight, start.term)
        for weight, starts in boundary.started.items()
        for start in starts
        if start.term.magnitude is not None
    }


def _norms(name: str, later: Sequence[Boundary], tensors: Mapping[str, Tensor]) -> Tensor | None:
    """A magnitude of DoRA, which began at the norms of a weight; None if the name is no such."""
    if (found := magnitudes(later[-1]).get(name)) is None:
        return None
    # The adapter starts as what is taken out of the weight, if anything: the sum is what it was.
    weight = carry(found[0], later, tensors)
    if weight is None:
        return None
    wide = weight.double()
    return row_norms(wide, torch.zeros_like(wide), found[1].transposed)
