"""Boundary operations on named tensors: new names, merged adapters, casts, added and cut rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stagelens.contracts import Refused

from .boundary_facts import Boundary, DType, LowRank


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

    Weight and factors are cast first where the term says so.
    """
    a, b = (as_dtype(tensors[factor], term.factors_as) for factor in (term.a, term.b))
    weight = as_dtype(weight, term.weight_as)
    # As peft's in-place addition does it: in the wider of both dtypes, rounded once.
    return (weight + low_rank_product(term, a, b)).to(weight.dtype)


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
        value = before[boundary.source(name)]
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
        return None
    own = carry(boundary.source(name), earlier, tensors)
    if (term := boundary.merged.get(name)) is not None:
        a, b = (carry(factor, earlier, tensors) for factor in (term.a, term.b))
        # Factors that are younger than the stage have the same product in both states. float64,
        # because a difference of products would lose what they have in common to rounding.
        if a is not None and b is not None:
            product = low_rank_product(term, a.double(), b.double())
            if own is not None:  # rows that it gained before are new, and cancel
                product[: len(own)] += own.double()
            own = product
    if own is None:
        return None
    if (kept := boundary.trimmed.get(name)) is not None:
        own = own[:kept]
    if (added := boundary.averaged.get(name)) is not None:
        own = torch.cat([own, mean_rows(own, added)])
    return own
