"""How adapters begin at the weight beneath them: PiSSA, OLoRA, and DoRA's magnitudes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .boundary_facts import AdapterStart


def row_norms(weight: Tensor, added: Tensor, transposed: bool) -> Tensor:
    """Norms of the rows of a sum, with the arithmetic of ``peft``'s DoRA.

    Args:
        weight: (out, in), (out, in, *kernel), or (in, out) where transposed.
        added: As the weight.
        transposed: Orientation.

    Returns:
        (out,); (1, out, 1, ...) of a convolution.
    """
    if weight.dim() > 2:
        dims = tuple(range(1, weight.dim()))
        return (weight + added).norm(p=2, dim=dims, keepdim=True).transpose(1, 0)
    if transposed:
        weight, added = weight.T, added.T
    return torch.linalg.norm(weight + added, dim=1).to(weight.dtype)


def begun(start: AdapterStart, weight: Tensor, recorded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight, factors and magnitude when an adapter has been added, by ``"weight"`` and name.

    Args:
        start: How it began.
        weight: Before.
        recorded: Tensors at the stage's start; give dtypes, and the factors that are kept.
    """
    term, dtype = start.term, weight.dtype
    a, b = recorded[term.a], recorded[term.b]
    if start.kind == "pissa":
        weight, a, b = _pissa(weight, len(a), term.scaling, term.transposed)
    elif start.kind == "olora":
        weight, a, b = _olora(weight, len(a), term.scaling)
    elif start.kind == "kept":
        weight = (weight.float() - _product(a.float(), b.float(), weight, start)).to(dtype)
    # peft moves factors to the weight's dtype, and only then may it widen them again.
    a, b = a.to(dtype), b.to(dtype)
    found = {"weight": weight}
    if start.kind in ("pissa", "olora"):
        found |= {term.a: a.to(recorded[term.a].dtype), term.b: b.to(recorded[term.b].dtype)}
    if term.magnitude is not None:
        norms = row_norms(
            weight, _product(a, b, weight, start, scaled_first=False), term.transposed
        )
        found[term.magnitude] = norms.to(recorded[term.magnitude].dtype)
    return found


def _product(
    a: Tensor, b: Tensor, weight: Tensor, start: AdapterStart, scaled_first: bool = True
) -> Tensor:
    """``scaling * B A``, as the weight; scaled in the order that ``peft`` does it here."""
    scaling, b, a = start.term.scaling, b.flatten(1), a.flatten(1)
    product = (scaling * b) @ a if scaled_first else scaling * (b @ a)
    return product.T if start.term.transposed else product.reshape(weight.shape)


def _pissa(
    weight: Tensor, rank: int, scaling: float, transposed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The rest of a weight, and A and B of its largest singular values."""
    wide = weight.to(torch.float32)
    wide = wide.T if transposed else wide
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    root = torch.diag(torch.sqrt(values[:rank] / scaling))
    a, b = root @ right[:rank], left[:, :rank] @ root
    rest = (wide - scaling * b @ a).to(weight.dtype)
    return rest.T if transposed else rest, a, b


def _olora(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    """The rest of a weight, and A and B of its QR decomposition."""
    wide = weight.to(torch.float32)
    q, r = torch.linalg.qr(wide)
    a, b = r[:rank].contiguous(), q[:, :rank].contiguous()
    return (wide - scaling * b @ a).to(weight.dtype), a, b
