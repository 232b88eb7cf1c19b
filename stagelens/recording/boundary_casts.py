"""Casts that explain the values at the start of a stage."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stagelens.runs.boundaries import cast_through, merged_weight
from stagelens.runs.boundary_facts import DType, LowRank
from stagelens.runs.states import same_tensor

_HALF: tuple[DType, ...] = ("bfloat16", "float16")


@dataclass(frozen=True)
class Casting:
    """Casts that may have happened: to everything, to adapters, and to everything after a merge."""

    weights: DType | None = None
    factors: DType | None = None
    after: tuple[DType, ...] = ()

    def term(self, term: LowRank) -> LowRank:
        """What a merge adds, after these casts."""
        cast = {"weight_as": self.weights, "factors_as": self.factors}
        return term.model_copy(update={k: dtype for k, dtype in cast.items() if dtype is not None})

    def value(
        self, known: Tensor, term: LowRank | None, before: Mapping[str, Tensor]
    ) -> Tensor | None:
        """What they make of a tensor, merged where ``term`` is given."""
        if not known.is_floating_point():
            return known
        if term is not None:
            return cast_through(merged_weight(known, self.term(term), before), self.after)
        return cast_through(known, self.casts(term))

    def casts(self, term: LowRank | None) -> list[DType]:
        """The casts of one tensor, beside those of its merge."""
        first = [self.weights] if self.weights is not None and term is None else []
        return [*first, *self.after]


def choose_casts(
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    merged: Mapping[str, LowRank],
    before: Mapping[str, Tensor],
) -> dict[str, tuple[Casting, float]]:
    """The casts that explain most, and how far from them each name is.

    One and the same happened to the whole model, so far as its values allow: a tensor that a cast
    leaves as it is was cast like the others.
    """

    def gap(name: str, casting: Casting) -> float:
        known, tensor = pairs[name]
        return gap_of(casting.value(known, merged.get(name), before), tensor)

    chosen = {}
    for name, (known, tensor) in pairs.items():
        direct = direct_cast(known.dtype, tensor.dtype)
        chosen[name] = direct, gap(name, direct)
    # Integers are not cast, and neither are parts that are quantised.
    missed = [n for n, (_, least) in chosen.items() if least and pairs[n][0].is_floating_point()]
    explained: dict[Casting, list[str]] = {}
    for casting in _castings(pairs, missed, merged) if missed else ():
        explained[casting] = [name for name in missed if not gap(name, casting)]
        for name in explained[casting]:
            if chosen[name][1]:
                chosen[name] = casting, 0.0
        if len(explained[casting]) == len(missed):
            break
    usual = max(explained, key=lambda casting: len(explained[casting]), default=None)
    # Casts that explain nothing to the bit are no explanation of what is merely near.
    if usual is not None and explained[usual]:
        for name, (known, _) in pairs.items():
            own = gap(name, usual) if known.is_floating_point() else math.inf
            if not own or own < chosen[name][1]:
                chosen[name] = usual, own
    return chosen


def _castings(
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    missed: Collection[str],
    merged: Mapping[str, LowRank],
) -> Iterator[Casting]:
    """Casts that people make between stages, the likeliest first."""
    now = {dtype_name(pairs[name][1]) for name in missed}
    dtypes = sorted(now | {*_HALF, "float32"})
    for last in sorted(now):
        for half in _HALF:
            yield Casting(after=(half,) if half == last else (half, last))
        if not any(name in merged for name in missed):
            continue
        for weights in dtypes:
            for factors in (None, *dtypes):
                # The merge itself ends in the dtype of the weights.
                yield Casting(weights, factors, () if weights == last else (last,))


def direct_cast(old: torch.dtype, now: torch.dtype) -> Casting:
    """The one cast, if any, from a dtype to another."""
    return Casting() if old == now or not old.is_floating_point else Casting(after=(_named(now),))


def dtype_name(tensor: Tensor) -> DType:
    """A tensor's dtype by its name."""
    return _named(tensor.dtype)


def _named(dtype: torch.dtype) -> DType:
    name: DType = str(dtype).removeprefix("torch.")  # type: ignore[assignment]
    return name


def gap_of(value: Tensor | None, tensor: Tensor) -> float:
    """How far two tensors' common rows are apart; 0 if they are the same bit for bit."""
    if value is None or value.dtype != tensor.dtype:
        return math.inf
    if value.dim():
        rows = min(len(value), len(tensor))
        value, tensor = value[:rows], tensor[:rows]
    if same_tensor(value, tensor):
        return 0.0
    # float64, as the gap is compared to 1e-6 of the norm.
    size = float(value.double().norm())
    gap = float((value.double() - tensor.double()).norm())
    # The same numbers in other bits, as 0.0 and -0.0, are a difference too.
    return max(gap / size if size else math.inf, math.ulp(0.0))
