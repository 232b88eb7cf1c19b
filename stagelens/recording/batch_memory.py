"""Memory that copies of batches lie in until they are written, and that is used again then."""

from __future__ import annotations

import contextlib
import threading
import weakref

import numpy as np
import torch
from torch import Tensor

_SMALLEST = 2**16
"""Bytes of tensors from which on it matters; malloc has room for smaller ones at hand."""
_PIECE = 2**23
"""Bytes that are asked for at a time."""
_SPARE = 2**27
"""Most bytes that wait to be used again: two parts as they are written."""
_PAGE, _ALIGNMENT = 2**12, 2**6


class BatchMemory:
    """Makes copies of tensors in pieces of memory of its own.

    To fill memory that is new to a process takes several times as long as to fill it again, as the
    system clears it page by page; and a training whose batches are kept would fill new memory at
    every step. A piece comes back by itself when the last copy in it is gone, that is when its
    steps were written. Until then, a thread gets new pieces ready beside the training.
    """

    def __init__(self) -> None:
        # Others only append to it, so that no lock is needed.
        self._spare: list[np.ndarray] = []
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0
        self._thread: threading.Thread | None = None

    def copy(self, tensor: Tensor) -> Tensor:
        """A contiguous copy on the CPU."""
        size = tensor.nbytes
        if size < _SMALLEST or type(tensor) is not Tensor or tensor.is_quantized:
            kept = tensor.detach().clone(memory_format=torch.contiguous_format)
            return kept if kept.is_cpu else kept.cpu()
        if self._used + size > len(self._piece):
            self._begin(-(-size // _PIECE) * _PIECE)
        begin, end = self._used, self._used + size
        self._used = -(-end // _ALIGNMENT) * _ALIGNMENT
        room = self._piece[begin:end].view(tensor.dtype).view(tensor.shape)
        return room.copy_(tensor.detach())

    def _begin(self, size: int) -> None:
        """Go on in another piece."""
        fitting = [place for place, piece in enumerate(self._spare) if len(piece) == size]
        piece = self._spare.pop(fitting[0]) if fitting else np.empty(size, np.uint8)
        lent = piece.view()  # as long as it lives, a tensor does that lies in it
        weakref.finalize(lent, _take_back, self._spare, piece).atexit = False
        self._piece, self._used = torch.from_numpy(lent), 0
        if len(fitting) < 2 and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=_prepare, args=(self._spare, size), daemon=True)
            self._thread.start()


def _take_back(spare: list[np.ndarray], piece: np.ndarray) -> None:
    if sum(map(len, spare)) + len(piece) <= _SPARE:
        spare.append(piece)


def _prepare(spare: list[np.ndarray], size: int) -> None:
    with contextlib.suppress(MemoryError):  # it may be there when it is needed
        piece = np.empty(size, np.uint8)
        piece[::_PAGE] = 0
        _take_back(spare, piece)
