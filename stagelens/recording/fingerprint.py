"""Noticing whether tensors were changed, without keeping a copy of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import attrgetter, call, itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stagelens.runs.shards import is_shared_out, own_part

_ALL_EVERY = 16
"""A sampled fingerprint reads all values once in this many times."""
_AT_FIRST, _THEN_EVERY = 64, 4
"""Parameters that nobody wrote to are compared every time at first, then once in so many times."""
_VERSION = attrgetter("_version")

Values = float | tuple[float, ...]
"""What is remembered of a tensor."""
Sampler = Callable[[Any], tuple[float, ...]]
"""Picks some values of a tensor out of its memory, seen as one row."""


class Fingerprint:
    """One sum of squares per tensor, taken at one moment and compared at a later one.

    Args:
        named: Gives the tensors by name, as they are now.
    """

    def __init__(self, named: Callable[[], Mapping[str, Tensor]]) -> None:
        self._named = named
        self._remembered: list[float] | None = None
        self._last: list[float] | None = None
        self._arrays: list[np.ndarray] = []
        self._addresses: list[int] = []
        tensors = named().values()
        # NumPy only shares CPU memory and has no bfloat16; squares overflow in its float16.
        self.in_numpy = all(
            t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64) for t in tensors
        )
        # Sums in at least float32: half precision would not see small changes.
        self._dtype = reduce(torch.promote_types, [t.dtype for t in tensors], torch.float32)

    @classmethod
    def of_buffers(
        cls, model: nn.Module, without: tuple[type[nn.Module], ...] = ()
    ) -> Fingerprint | None:
        """Of a module's buffers, looked up every time because a forward pass may replace them.

        None if it has no buffer of floating-point numbers.

        Args:
            model: The module.
            without: Kinds of modules whose buffers are left out.
        """
        places = [
            (f"{prefix}.{name}".removeprefix("."), module, name)
            for prefix, module in model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.is_floating_point()
            if not isinstance(module, without)
        ]
        return cls(partial(_look_up, places)) if places else None

    def take(self) -> None:
        """Remember the tensors as they are now."""
        self._remembered = self._sums()

    def retake(self) -> bool:
        """As :meth:`take`; whether anything differs from the values remembered last."""
        before = self._last
        self.take()
        self._last = self._remembered
        return before is not None and self._differing(before, self._last or []) is not None

    def forget(self) -> None:
        """Anything may change until the next :meth:`take`."""
        self._last = self._remembered or self._last
        self._remembered = None

    def changed(self) -> str | None:
        """Name of the first tensor that is not as remembered; None where all are."""
        return None if self._remembered is None else self._differing(self._remembered, self._sums())

    def _differing(self, before: Sequence[Values], now: Sequence[Values]) -> str | None:
        """Name of the first tensor whose values differ; NaN equals NaN."""
        # The usual case; NaN, which does not equal itself, needs the comparison below.
        if before == now:
            return None
        named = zip(self._named(), before, now, strict=True)
        return next((name for name, own, other in named if not _same(own, other)), None)

    def _sums(self) -> list[float]:
        if self.in_numpy:
            # Several times faster than torch for the few, small tensors of a small model.
            return [float(np.vdot(array, array)) for array in self._own_memory()]
        with torch.no_grad():
            # One transfer for all: reading each norm by itself would wait for the accelerator.
            norms = torch._foreach_norm(list(self._named().values()), 2, dtype=self._dtype)
            return torch.stack(norms).tolist()

    def _own_memory(self) -> list[np.ndarray]:
        """The tensors as arrays that share their memory."""
        tensors = self._named().values()
        addresses = [tensor.data_ptr() for tensor in tensors]
        if addresses != self._addresses:
            self._addresses = addresses
            self._arrays = [tensor.detach().numpy() for tensor in tensors]
        return self._arrays


class SampledFingerprint(Fingerprint):
    """A fingerprint of parameters that mostly reads four values of each: cheap at every update.

    These are the first, the last, the smallest and the largest (as of the last time that all were
    read), so weights that are averaged, scaled, clamped, loaded or redrawn are noticed at once, as
    are most changes of single values: torch counts in ``Tensor._version`` how often a parameter was
    written to, and samples are compared where that changed. They are also compared the first 64
    times, and every 4th time from then on, for what torch does not count: ``p.data = ...``, and
    writes through ``p.data`` or NumPy. All values are compared every 16th time, and every time once
    a parameter has been written to without a change in its sampled values, as happens where
    averaged weights are swapped in for an evaluation and out again.

    It may miss a change of a few values, none of them sampled, that is made in place, the first
    time; and, after the first 64 times, one that torch does not count and that does not recur. A
    run with such a change is not replayed bit for bit, and its trust says so.

    On an accelerator, in half precision, or where a parameter is not contiguous in memory, all
    values are compared every time.

    Args:
        model: Its parameters; those that hold no floating-point numbers are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        named = model.named_parameters()
        # Of one that is shared out over processes, each looks at its own part.
        floating = {n: p for n, p in named if p.is_floating_point() and own_part(p).numel()}
        shared = any(map(is_shared_out, floating.values()))
        super().__init__(
            (lambda: {name: own_part(p) for name, p in floating.items()})
            if shared
            else (lambda: floating)
        )
        self._parameters = list(floating.values())
        self._taken = 0
        self._samplers: list[Sampler] = []
        self._memory: list[Any] = []
        self._sampled: list[tuple[float, ...]] = []
        self._versions: list[int] = []
        # Otherwise reshape(-1) makes a copy, which does not show later changes.
        self._always_all = not (self.in_numpy and all(p.is_contiguous() for p in self._own()))

    def take(self) -> None:
        """Remember the parameters as they are now."""
        if self._always_all or self._taken % _ALL_EVERY == 0:
            super().take()
            self._samplers = []
        else:
            if self._remembered is not None:
                self.forget()
            if not self._samplers:
                # Once between two full comparisons: finding extremes reads all values.
                self._samplers = [_telling_values(array) for array in self._own_memory()]
                self._look_at_memory()
            self._sampled = self._samples()
            self._versions = list(map(_VERSION, self._parameters))
        self._taken += 1

    def changed(self) -> str | None:
        """Name of the first parameter that is not as remembered, as far as it can be seen."""
        if self._remembered is not None:
            return super().changed()
        written = self._versions != list(map(_VERSION, self._parameters))
        if not written and self._taken > _AT_FIRST and self._taken % _THEN_EVERY:
            return None
        moved = [parameter.data_ptr() for parameter in self._own()] != self._addresses
        # After ``p.data = ...`` the views still show the old memory.
        if moved:
            self._look_at_memory()
        found = self._differing(self._sampled, self._samples())
        if moved or written:
            self._always_all = True
        return found

    def _own(self) -> list[Tensor]:
        return [*self._named().values()]

    def _look_at_memory(self) -> None:
        arrays = self._own_memory()
        self._memory = [memoryview(array.reshape(-1)) for array in arrays]  # type: ignore[arg-type]

    def _samples(self) -> list[tuple[float, ...]]:
        # One call into C for each parameter: this runs between passes that evict Python's own code
        # from the processor's caches, where every operation takes ten times as long.
        return list(map(call, self._samplers, self._memory))


def _telling_values(array: np.ndarray) -> Sampler:
    """Picks the first, the last, and what are now the smallest and the largest value."""
    return itemgetter(0, array.size - 1, int(array.argmin()), int(array.argmax()))


def _same(a: Values, b: Values) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return all(map(_same, a, b))
    return a == b or (a != a and b != b)


def _look_up(places: list[tuple[str, nn.Module, str]]) -> dict[str, Tensor]:
    found = {full: module._buffers[name] for full, module, name in places}
    return {full: buffer for full, buffer in found.items() if buffer is not None}
