"""Boundary operations on named tensors: new names, and what a merged adapter adds to a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .schema import Boundary, LowRank


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
    """``weight + scaling * B A`` in the weight's own dtype; ``tensors`` holds the factors."""
    return (weight + low_rank_product(term, tensors[term.a], tensors[term.b])).to(weight.dtype)


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
        after[name] = before[boundary.source(name)]
        if (term := boundary.merged.get(name)) is not None:
            after[name] = merged_weight(after[name], term, before)
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
        (*shape), float64 if an adapter was merged into it; None if nothing of the stage's state
        is left in it.
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
            return product if own is None else own.double() + product
    return own
