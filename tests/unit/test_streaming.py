"""Safetensors files in blocks: the same format, without holding a file in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from stagelens.contracts import RunError
from stagelens.runs.streaming import MappedTensors, TensorFacts, read_header
from stagelens.runs.tensor_files import write_tensors
from tests.support.loops import differing

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]


def write(path: Path, tensors: Mapping[str, Tensor], block: int = 7, **metadata: str) -> None:
    facts = {name: TensorFacts(t.dtype, tuple(t.shape)) for name, t in tensors.items()}

    def blocks(name: str) -> Iterator[Tensor]:
        yield from tensors[name].reshape(-1).split(block)

    with open(path, "wb") as file:
        write_tensors(file, facts, blocks, metadata)


@given(
    shapes=st.lists(
        st.tuples(
            st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
            st.lists(st.integers(0, 5), max_size=3),
            st.sampled_from(DTYPES),
        ),
        max_size=6,
        unique_by=lambda tensor: tensor[0],
    ),
    block=st.integers(1, 40),
)
@settings(deadline=None, max_examples=60)
def test_what_is_written_in_blocks_is_what_safetensors_reads(
    shapes: list[tuple[str, list[int], torch.dtype]], block: int, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("file") / "a.safetensors"
    tensors = {
        name: (100 * torch.randn(shape)).to(dtype).reshape(shape) for name, shape, dtype in shapes
    }
    write(path, tensors, block, format="pt")
    assert differing(bits(load_file(path)), bits(tensors)) == []
    assert differing(bits(MappedTensors(path)), bits(tensors)) == []
    assert list(read_header(path).tensors) == list(tensors)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As bytes, which numpy knows for every dtype, with shape and dtype in the name."""
    return {
        f"{name} {tuple(t.shape)} {t.dtype}": t.contiguous().view(-1).view(torch.uint8)
        for name, t in tensors.items()
    }


def test_what_safetensors_writes_is_mapped_as_it_reads_it(tmp_path: Path) -> None:
    tensors = {f"{n}": torch.randn(n, 3).to(dtype) for n, dtype in enumerate(DTYPES, 1)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert differing(bits(MappedTensors(tmp_path / "a.safetensors")), bits(tensors)) == []


@pytest.mark.parametrize("name", ["a", "ab", "abc", "abcd", "ä", "日本"])
def test_tensors_begin_at_a_multiple_of_eight_bytes(name: str, tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {name: torch.ones(3)})
    header = read_header(tmp_path / "a.safetensors")
    assert header.size % 8 == 0
    assert (tmp_path / "a.safetensors").stat().st_size == header.size + 12


def test_a_mapped_tensor_can_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, {"a": torch.ones(4)})
    before = path.read_bytes()
    mapped = MappedTensors(path)["a"]
    mapped.mul_(3)
    assert mapped.tolist() == [3.0] * 4
    assert path.read_bytes() == before
    assert MappedTensors(path)["a"].tolist() == [1.0] * 4


def test_a_file_larger_than_memory_can_be_mapped(tmp_path: Path) -> None:
    count = 10**11
    header = {"a": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}
    path = tmp_path / "a.safetensors"
    put_header(path, header)
    with open(path, "r+b") as file:
        file.truncate(read_size(path) + 4 * count)  # sparse: it takes no room
    assert MappedTensors(path)["a"][count // 2].item() == 0.0


def put_header(path: Path, content: Any, data: bytes = b"") -> None:
    header = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def read_size(path: Path) -> int:
    return 8 + int(struct.unpack("<Q", path.read_bytes()[:8])[0])


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        {"a": 3},
        entry(dtype="F33"),
        entry(shape=(3,)),
        entry(shape=(-2,)),
        entry(shape=(2**62, 4)),
        entry(offsets=(0, 2**63)),
        entry(offsets=(4, 12)),
        entry(offsets=(-8, 0)),
        {**entry(), "b": entry()["a"]},
    ],
    ids=str,
)
def test_a_header_that_lies_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    put_header(path, content, bytes(8))
    with pytest.raises(RunError, match=r"a\.safetensors is damaged or not a safetensors file"):
        MappedTensors(path)


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_a_truncated_file_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(4)}, path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(RunError, match="is damaged or not a safetensors file"):
        read_header(path)


def test_numbers_that_torch_has_not_are_refused(tmp_path: Path) -> None:
    put_header(tmp_path / "a", entry(dtype="F8_E8M0", shape=(8,)), bytes(8))
    with pytest.raises(RunError, match="holds numbers of kind 'F8_E8M0'"):
        read_header(tmp_path / "a")


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([torch.ones(3)], "a takes 16 bytes, but its pieces have 12"),
        ([torch.ones(3), torch.ones(2)], "a takes 16 bytes, but its pieces have 20"),
        ([torch.ones(4).half()], r"a is torch\.float32, but a piece of it is torch\.float16"),
    ],
)
def test_pieces_that_do_not_make_the_tensor_are_refused(
    pieces: list[Tensor], says: str, tmp_path: Path
) -> None:
    facts = {"a": TensorFacts(torch.float32, (4,))}
    with open(tmp_path / "a", "wb") as file, pytest.raises(ValueError, match=says):
        write_tensors(file, facts, lambda _name: pieces, {})
