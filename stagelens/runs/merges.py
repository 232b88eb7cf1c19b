"""Which linear combination of its parents a merged model is: weights by least squares.

With m the merged model and p_0, ..., p_k its parents, the weights w minimise |m - sum w_i p_i| over
all floating values but running statistics, which belong to the data that passed and not to the
merging. Parents that come from one base are nearly the same vector, so the normal equations are
those of m - p_0 in p_0 and the differences p_i - p_0, whose columns are scaled to length 1: they
have the same solution, and lose nothing to rounding. A second pass over the tensors refines it
once and measures what is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from stagelens.contracts import RunError

from .boundary_facts import Merge
from .states import Weights
from .streaming import facts_of, flat_blocks

EXACT = 1e-5
"""What a merge may leave, relative to the distance to the nearest parent, beside rounding."""

_STATISTICS = ("running_mean", "running_var")


def fit(merged: Weights, parents: Mapping[str, Weights]) -> Merge:
    """The linear combination of the parents that comes nearest to a model.

    Rounding is that of the model, and of parents that were rounded after the merge was made of
    them: a twelfth of the square of a unit in the last place of each value. Twice that is allowed,
    because a sum is rounded once or a few times.

    Args:
        merged: The model, M tensors.
        parents: Name to parent, at least two.

    Raises:
        RunError: A parent lacks a tensor of the model, or has another shape there.
    """
    given = list(parents.values())
    names = list(_compared(merged, parents))
    if not names:
        raise RunError("the merged model has no floating tensor, so it is a merge of nothing")
    k = len(given)
    gram, moment = torch.zeros(k, k).double(), torch.zeros(k).double()
    nearest, units = torch.zeros(k).double(), torch.zeros(k + 1).double()
    for target, columns, rounding in _passes(merged, given, names):
        gram += columns @ columns.T
        moment += columns @ target
        # Of m - p_i = (m - p_0) - (p_i - p_0).
        apart = torch.stack([target, *(target - each for each in columns[1:])])
        nearest += (apart**2).sum(1)
        units += rounding
    solution = _solved(gram, moment)
    left, slope = 0.0, torch.zeros(k).double()
    for target, columns, _ in _passes(merged, given, names):
        rest = target - solution @ columns
        left += float(rest @ rest)
        slope += columns @ rest
    step = _solved(gram, slope)
    left = max(left - float(2 * step @ slope - step @ gram @ step), 0.0)
    solution = solution + step
    # m - p_0 = c p_0 + sum w_i (p_i - p_0), so w_0 = 1 + c - sum w_i.
    others = solution[1:].tolist()
    weights = [1 + float(solution[0]) - sum(others), *others]
    scale = float(nearest.min())
    squares = torch.tensor([1.0, *(weight**2 for weight in weights)]).double()
    rounded = 2 * float(units @ squares) / 12
    return Merge(
        weights=dict(zip(parents, weights, strict=True)),
        residual=math.sqrt(left / scale) if scale else 0.0,
        allowed=math.sqrt(EXACT**2 + (rounded / scale if scale else 0.0)),
    )


def _solved(gram: Tensor, moment: Tensor) -> Tensor:
    """The shortest solution of the normal equations; columns of zeros take no part."""
    lengths = gram.diagonal().sqrt()
    scale = torch.where(lengths > 0, 1 / lengths, 0.0)
    scaled = gram * scale[:, None] * scale
    return scale * (torch.linalg.pinv(scaled, rtol=1e-14, hermitian=True) @ (scale * moment))


def _compared(merged: Weights, parents: Mapping[str, Weights]) -> Iterator[str]:
    for name in merged:
        facts = facts_of(merged, name)
        if not facts.dtype.is_floating_point or name.endswith(_STATISTICS):
            continue
        for label, parent in parents.items():
            if name not in parent or facts_of(parent, name).shape != facts.shape:
                raise RunError(
                    f"{name} of the merged model is not there, or of another shape, in its parent "
                    f"{label!r}, so it can be no weighted average of its parents; give the models "
                    "that it was made of"
                )
        yield name


def _passes(
    merged: Weights, parents: Sequence[Weights], names: Sequence[str]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of n values in float64, and the sums of squares of their units in the last place.

    Yields:
        (n,) m - p_0; (k, n) p_0 and the p_i - p_0; (k + 1,) units of m and of the parents.
    """
    for name in names:
        blocks = (flat_blocks(each, name) for each in (merged, *parents))
        for values in zip(*blocks, strict=True):
            rounding = torch.stack([_units(each) for each in values])
            target, first, *rest = (each.double() for each in values)
            yield target - first, torch.stack([first, *(each - first for each in rest)]), rounding


def _units(values: Tensor) -> Tensor:
    """The sum of squares of a unit in the last place of each value; 0 has none."""
    epsilon = torch.finfo(values.dtype).eps
    wide = values.double()
    unit = epsilon * torch.exp2(torch.frexp(wide).exponent - 1.0)
    return torch.where(wide == 0, 0.0, unit**2).sum()
