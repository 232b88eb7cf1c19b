"""Finding how adapters began at the weight beneath them, from the values on both sides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from stagelens.runs.adapter_starts import begun
from stagelens.runs.boundaries import low_rank_product
from stagelens.runs.boundary_facts import AdapterStart, LowRank
from stagelens.runs.states import same_tensor

from .adapters import Added
from .boundary_casts import gap_of

Kind = Literal["pissa", "olora", "kept", "plain"]

_OF_DATA = ("eva", "corda", "lora_ga")
"""Initial values that ``peft`` computes from what the model makes of data."""

_ROUNDING = 1e-6
"""See ``boundary_fit.ROUNDING``."""


class Starts:
    """Explains the weights beneath added adapters.

    A decomposition that does not give one weight's bits is not computed for the next ones, which
    may be large: another device computed it, or another rule.

    Args:
        start: Tensors at the stage's start.
    """

    def __init__(self, start: Mapping[str, Tensor]) -> None:
        self._start = start
        self._failed: set[str] = set()

    def explain(
        self, name: str, values: Sequence[Tensor], added: Sequence[Added]
    ) -> tuple[int, list[AdapterStart], float]:
        """How adapters began at a weight, and how far its value is from what that gives.

        Args:
            name: The weight's.
            values: What it may have been before them, the likeliest first.
            added: The adapters, in order.

        Returns:
            Which of the values it was; what depends on the weight (an adapter may be missing); and
            the gap, relative to the weight's norm: 0 bit for bit, infinite where nothing explains
            the value.
        """
        best: tuple[int, list[AdapterStart], float] = 0, [], math.inf
        for kind in ("plain", "pissa", "olora", "kept"):
            for number, value in enumerate(values):
                starts = self._candidate(kind, name, value, added)
                if starts is None:
                    continue
                own, gap = self._applied(name, value, starts)
                if gap < best[2]:
                    best = number, own, gap
                if not gap:
                    return best
            # Asked for by another rule, or computed by another device.
            self._failed |= {kind} if kind in ("pissa", "olora") else set()
        return best

    def _candidate(
        self, kind: Kind, name: str, value: Tensor, added: Sequence[Added]
    ) -> list[AdapterStart] | None:
        """The adapters, all having begun in a way; None where they cannot have."""
        terms, inits = zip(*added, strict=True)
        if kind == "plain":
            if not same_tensor(value, self._start[name]):
                return None
            # A product that is not zero beside an unchanged weight is an adapter from elsewhere.
            of_data = [i in _OF_DATA and not self._does_something(t) for t, i in added]
            kinds: list[Kind] = ["kept" if each else "plain" for each in of_data]
        elif not any(self._does_something(term) for term in terms):
            return None
        elif kind == "kept":
            kinds = [kind] * len(terms)
        else:
            may_be = kind not in self._failed and inits[0] in (kind, "True")
            if not may_be or len(terms) > 1 or value.dim() != 2:
                return None
            kinds = [kind]
        return [AdapterStart(kind=k, term=t) for k, t in zip(kinds, terms, strict=True)]

    def _does_something(self, term: LowRank) -> bool:
        a, b = self._start[term.a], self._start[term.b]
        return bool(a.any() and b.any() and low_rank_product(term, a, b).any())

    def _applied(
        self, name: str, value: Tensor, starts: Sequence[AdapterStart]
    ) -> tuple[list[AdapterStart], float]:
        told, gap = [], 0.0
        for start in starts:
            after = begun(start, value, self._start)
            value = after.pop("weight")
            term = start.term
            factors = {n: tensor for n, tensor in after.items() if n != term.magnitude}
            if any(not same_tensor(self._start[n], tensor) for n, tensor in factors.items()):
                return [], math.inf
            if term.magnitude is not None:
                own = gap_of(after[term.magnitude], self._start[term.magnitude])
                if own > rounding(self._start[name].dtype):  # it was trained elsewhere
                    term = term.model_copy(update={"magnitude": None})
                else:
                    gap = max(gap, own)
            if start.kind != "plain" or term.magnitude is not None:
                told.append(start.model_copy(update={"term": term}))
        own = gap_of(value, self._start[name])
        if own > rounding(self._start[name].dtype):
            return [], own
        return told, max(gap, own)


def rounding(dtype: torch.dtype) -> float:
    """The largest distance that rounding explains: factors may be rounded after their product."""
    eps = torch.finfo(dtype).eps
    return max(_ROUNDING, eps / 2 if eps > 1e-4 else 0.0)
