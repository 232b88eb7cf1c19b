"""Copies of batches lie in memory that is used again once they are gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from stagelens.recording import batch_memory
from stagelens.recording.batch_memory import BatchMemory
from stagelens.runs.batches import flatten, unflatten


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_memory, "_SMALLEST", 64)
    monkeypatch.setattr(batch_memory, "_PIECE", 4096)


def many() -> Iterator[Tensor]:
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64):
        yield torch.arange(91).reshape(7, 13).to(dtype)
    yield torch.rand(8, 6).t()
    yield torch.rand(1, 5).expand(9, 5)
    yield torch.rand(3000)  # more than a piece
    yield torch.rand(2)
    yield torch.rand(0, 40)
    yield torch.rand(30, requires_grad=True)


def test_copies_are_those_of_clone() -> None:
    memory = BatchMemory()
    tensors = [*many()] * 5
    kept = [memory.copy(tensor) for tensor in tensors]
    for own, tensor in zip(kept, tensors, strict=True):
        assert own.is_contiguous() and not own.requires_grad
        assert (own.dtype, own.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(own, tensor)


def test_a_batch_is_described_as_before() -> None:
    batch: dict[str, Any] = {"x": [*many()][:-1], "y": ("text", 3)}
    description, tensors = flatten(batch, BatchMemory().copy)
    assert description == flatten(batch)[0]
    again = unflatten(description, tensors)
    assert all(map(torch.equal, again["x"], batch["x"]))


def test_memory_is_used_again_and_only_when_nobody_reads_it() -> None:
    memory = BatchMemory()
    batch = torch.rand(256)
    seen: set[int] = set()
    held = [memory.copy(batch * number) for number in range(8)]  # of the step that stays
    for _ in range(20):
        part = [memory.copy(batch) for _ in range(40)]
        seen |= {tensor.data_ptr() for tensor in part}
        time.sleep(0)
        del part
    assert len(seen) <= 3 * 40
    assert all(torch.equal(own, batch * number) for number, own in enumerate(held))


def test_not_more_is_kept_than_two_parts_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_memory, "_SPARE", 3 * 4096)
    memory = BatchMemory()
    part = [memory.copy(torch.rand(256)) for _ in range(100)]
    del part
    assert sum(map(len, memory._spare)) <= 3 * 4096


def test_where_memory_is_short_none_is_got_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(batch_memory.np, "empty", full)
    spare: list[object] = []
    batch_memory._prepare(spare, 4096)  # type: ignore[arg-type]
    assert spare == []
