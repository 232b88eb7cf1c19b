"""Noticing that an optimiser's state was changed between two updates."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from stagelens.runs.optimizer_set import AnyOptimizer, members
from stagelens.runs.shards import own_part

_VERSION = attrgetter("_version")
_COPY_EVERY = 8
"""Updates between two of which the values of one parameter's state are compared."""


class OptimizerStateWatch:
    """Compares which tensors an optimiser keeps, and how often each was written to.

    Torch counts writes in ``Tensor._version``, so little is copied. It does not count those through
    ``.data``: for them values are compared, of another parameter each time.

    Args:
        optimizer: The optimiser.
        names: ``id(parameter)`` to name.
    """

    def __init__(self, optimizer: AnyOptimizer, names: dict[int, str]) -> None:
        self._members, self._names = members(optimizer), names
        self._only = self._members[0] if len(self._members) == 1 else None
        self._taken = 0
        self.take()

    def take(self) -> None:
        """Remember the state as it is now."""
        self._values = self._now()
        self._versions = _versions(self._values)
        self._copied: list[tuple[Tensor, Tensor]] = []
        if self._taken % _COPY_EVERY == 0 and (states := [*self._states()]):
            state = states[(self._taken // _COPY_EVERY) % len(states)]
            # Only plain ones: those of other classes need not be comparable.
            tensors = [part for v in state.values() if type(part := own_part(v)) is Tensor]
            self._copied = [(tensor, tensor.clone()) for tensor in tensors]
        self._taken += 1

    def changed(self) -> str | None:
        """Name of a parameter whose state is not as remembered; None where all are."""
        now = self._now()
        same = len(now) == len(self._values) and all(map(is_, now, self._values))
        written = [t for t, copy in self._copied if not equal_or_nan(t, copy)]
        if same and not written and _versions(now) == self._versions:
            return None
        known = {id(v): n for v, n in zip(self._values, self._versions, strict=True)}
        known.update((id(tensor), -1) for tensor in written)
        for parameter, state in self._items():
            if _versions(state.values()) != [known.get(id(value)) for value in state.values()]:
                return self._names.get(id(parameter), "a parameter")
        return "a parameter"  # whose state is gone

    def _now(self) -> list[Any]:
        # All in C: this runs at every step.
        return list(chain.from_iterable(map(dict.values, self._states())))

    def _states(self) -> Iterable[dict[str, Any]]:
        if self._only is not None:
            return self._only.state.values()
        return chain.from_iterable(one.state.values() for one in self._members)

    def _items(self) -> Iterable[tuple[Tensor, dict[str, Any]]]:
        return chain.from_iterable(one.state.items() for one in self._members)


def _versions(values: Iterable[Any]) -> list[int]:
    try:
        return list(map(_VERSION, values))
    except AttributeError:  # a value that is no tensor, such as None
        return [getattr(value, "_version", 0) for value in values]


def equal_or_nan(a: Tensor, b: Tensor) -> bool:
    """Whether tensors are equal; where a training diverges, NaN on both sides is no change."""
    return torch.equal(a, b) or (bool(a.isnan().any()) and bool(b.isnan().any()))
