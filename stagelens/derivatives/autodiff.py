"""Gradients through a retained graph, and what to do where torch has no derivative."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from stagelens.contracts import Refused


def gradients(
    scalar: Tensor, x: Sequence[Tensor], graph: bool, keep: bool = False
) -> Sequence[Tensor]:
    """Gradient in x; zero where the scalar does not depend on x.

    Args:
        scalar: What is differentiated.
        x: In what.
        graph: Whether the gradient has a graph of its own.
        keep: Whether the scalar's graph is needed again; it is kept where the gradient has one.
    """
    with explained() if graph else nullcontext():  # a backward of one's own may have no graph
        return torch.autograd.grad(
            *(scalar, x),
            retain_graph=graph or keep,
            create_graph=graph,
            allow_unused=True,
            materialize_grads=True,
        )


def derivative(
    outputs: Sequence[Tensor], vector: Sequence[Tensor], x: Sequence[Tensor]
) -> list[Tensor]:
    """Gradient in x of ``outputs . vector``, retaining the graph; zero without dependence on x."""
    # Torch refuses outputs without a graph, as gradients of a loss that is linear in x are.
    pairs = [(o, v) for o, v in zip(outputs, vector, strict=True) if o.requires_grad]
    if not pairs:
        return [torch.zeros_like(t) for t in x]
    grads = torch.autograd.grad(
        [o for o, _ in pairs],
        x,
        [v for _, v in pairs],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return [grad.detach() for grad in grads]


class Linearised:
    """``v -> J v`` for the outputs' J in x, for any number of vectors.

    It differentiates ``p -> J^T p . v``, which is linear in p: backward twice in place of forward
    mode, which not all operations have (fused attention).
    """

    def __init__(self, outputs: Sequence[Tensor], x: Sequence[Tensor]) -> None:
        self._probes = [torch.zeros_like(z, requires_grad=True) for z in outputs]
        parts = [(z * p).sum() for z, p in zip(outputs, self._probes, strict=True)]
        with explained():
            self._transposed = gradients(torch.stack(parts).sum(), x, graph=True)

    def __call__(self, v: Sequence[Tensor]) -> list[Tensor]:
        """``J v``, for each of the outputs."""
        with explained():
            return derivative(self._transposed, v, self._probes)


def along(outputs: Sequence[Tensor], x: Sequence[Tensor], v: Sequence[Tensor]) -> list[Tensor]:
    """``v -> J v`` for a single vector; see :class:`Linearised`."""
    return Linearised(outputs, x)(v)


def is_used(x: Tensor, output: Tensor) -> bool:
    """Whether an output depends on x."""
    if not output.requires_grad:
        return False
    (found,) = torch.autograd.grad(output.sum(), [x], retain_graph=True, allow_unused=True)
    return found is not None


@contextmanager
def explained() -> Iterator[None]:
    """Turn torch's error about a missing derivative into a refusal that says what to do."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        found = re.search(r"derivative for '?(?:aten::)?(\w+)'? is not implemented", text)
        # First: the next pattern matches these too, but for them there is a remedy to name.
        if "attention" in text:
            raise Refused(
                "the model uses fused attention, which has no second derivative; load it with "
                'attn_implementation="eager" (in your own module, compute softmax(q k^T) v), or '
                "use coarse-replay or replay"
            ) from error
        if "out=... arguments don't support automatic differentiation" in text:
            raise Refused(
                "the loss is computed by an operation of its own (as fused heads are), which has "
                "no second derivative; use coarse-replay or replay"
            ) from error
        if found or "once_differentiable" in text or "double backward" in text.lower():
            operation = found.group(1) if found else "an operation"
            raise Refused(
                f"the model uses {operation}, which has no second derivative in torch; use "
                "coarse-replay or replay"
            ) from error
        raise
