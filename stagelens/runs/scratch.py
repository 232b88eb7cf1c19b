"""Memory for intermediate values, used again and again.

To allocate it each time may take longer than to compute in it: what is freed at the end of the heap
goes back to the system, which then has to give it anew, page by page.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local

import torch
from torch import Tensor

_BYTES = 1 << 21
"""The most that is kept of one buffer: parts of a tensor are computed in fewer bytes."""


class _Free(local):
    """Buffers of one thread that are not lent."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []


_free = _Free()


@contextmanager
def scratch(count: int, *dtypes: torch.dtype) -> Iterator[list[Tensor]]:
    """Lend a flat tensor of ``count`` values per dtype to a block of code; they hold anything."""
    buffers = []
    for dtype in dtypes:
        size = count * dtype.itemsize
        if size > _BYTES:
            buffers.append(torch.empty(size, dtype=torch.uint8))
        else:
            free = _free.buffers
            buffers.append(free.pop() if free else torch.empty(_BYTES, dtype=torch.uint8))
    try:
        yield [
            buffer[: count * dtype.itemsize].view(dtype)
            for buffer, dtype in zip(buffers, dtypes, strict=True)
        ]
    finally:
        _free.buffers += [buffer for buffer in buffers if len(buffer) == _BYTES]
