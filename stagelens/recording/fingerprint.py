"""Telling whether tensors were changed in between, without a copy of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor, nn


class Fingerprint:
    """One sum of squares per tensor, taken at one moment and compared at a later one.

    Args:
        named: Gives the tensors by name, as they are now.
    """

    def __init__(self, named: Callable[[], Mapping[str, Tensor]]) -> None:
        self._named = named
        self._sums: list[float] | None = None
        self._arrays: list[np.ndarray] = []
        self._addresses: list[int] = []
        tensors = named().values()
        self._in_numpy = all(
            t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64) for t in tensors
        )
        # Sums in at least float32: half precision would not see small changes.
        self._dtype = reduce(torch.promote_types, [t.dtype for t in tensors], torch.float32)

    @classmethod
    def of_parameters(cls, model: nn.Module) -> Fingerprint:
        """Of a module's parameters; those that are no floating-point numbers are left out."""
        floating = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        return cls(lambda: floating)

    @classmethod
    def of_buffers(cls, model: nn.Module) -> Fingerprint:
        """Of a module's buffers, each looked up anew: a forward pass may replace it."""
        places = [
            (f"{prefix}.{name}".removeprefix("."), module, name)
            for prefix, module in model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.is_floating_point()
        ]
        return cls(partial(_look_up, places))

    def take(self) -> None:
        """Remember the tensors as they are now."""
        self._sums = self._now()

    def forget(self) -> None:
        """Anything may change until the next :meth:`take`."""
        self._sums = None

    def changed(self) -> str | None:
        """Name of the first tensor that is not as remembered; None where all are."""
        if self._sums is None or (now := self._now()) == self._sums:
            return None
        for name, before, after in zip(self._named(), self._sums, now, strict=True):
            if before != after and not (math.isnan(before) and math.isnan(after)):
                return name
        return None

    def _now(self) -> list[float]:
        tensors = self._named().values()
        if not tensors:
            return []
        if not self._in_numpy:
            with torch.no_grad():
                norms = torch._foreach_norm(list(tensors), 2, dtype=self._dtype)
                return torch.stack(norms).tolist()
        # For the few and small tensors of a small model this is several times faster than torch.
        addresses = [tensor.data_ptr() for tensor in tensors]
        if addresses != self._addresses:
            self._addresses = addresses
            self._arrays = [tensor.detach().numpy() for tensor in tensors]
        return [float(np.vdot(array, array)) for array in self._arrays]


def _look_up(places: list[tuple[str, nn.Module, str]]) -> dict[str, Tensor]:
    found = {full: module._buffers[name] for full, module, name in places}
    return {full: buffer for full, buffer in found.items() if buffer is not None}
