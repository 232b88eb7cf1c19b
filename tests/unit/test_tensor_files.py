"""Safetensors files whose parts are computed by several threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stagelens.estimators.subtraction import WithoutStage
from stagelens.runs import tensor_files
from stagelens.runs.boundary_facts import Boundary
from stagelens.runs.saved_states import save_tensors
from stagelens.runs.scratch import scratch
from stagelens.runs.streaming import MappedTensors, TensorFacts, computed, reader_of
from stagelens.runs.tensor_files import Source, write_files, write_tensors
from tests.support.loops import differing

Files = dict[Path, dict[str, Tensor]]


def write(files: Files, not_finite: Callable[[], object] = lambda: None) -> list[tuple[int, int]]:
    """Returns what was told of the work."""
    sources = {
        path: {
            name: Source(TensorFacts(t.dtype, tuple(t.shape)), partial(reader_of, tensors, name))
            for name, t in tensors.items()
        }
        for path, tensors in files.items()
    }
    told: list[tuple[int, int]] = []
    write_files(sources, {"format": "pt"}, not_finite, lambda *each: told.append(each))
    return told


@pytest.fixture
def files(tmp_path: Path) -> Files:
    first = {
        "large": torch.randn(31, 7),
        "half": torch.randn(40).bfloat16(),
        "none": torch.empty(0, 3),
        "one": torch.tensor(2.5),
    }
    return {tmp_path / "a": first, tmp_path / "b": {"counts": torch.arange(50)}}


def test_they_hold_the_same_bytes_as_files_written_in_order(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "_PIECE", 16)
    monkeypatch.setattr(tensor_files, "_PART", 5)
    monkeypatch.setattr(tensor_files, "_FLUSHED", 100)
    threads = torch.get_num_threads()
    told = write(files)
    assert torch.get_num_threads() == threads
    for number, (path, tensors) in enumerate(files.items()):
        assert differing(load_file(path), tensors) == []
        with open(tmp_path / "in order", "wb") as file:
            facts = {name: TensorFacts(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
            write_tensors(file, facts, lambda name, own=tensors: [own[name]], {"format": "pt"})
        assert path.read_bytes() == (tmp_path / "in order").read_bytes()
        sizes = [size for where, size in told if where == number]
        assert sum(sizes) == sum(t.nbytes for t in tensors.values())
    assert [where for where, _ in told] == sorted(where for where, _ in told)


def test_values_that_are_not_finite_are_told_of_once(files: Files, tmp_path: Path) -> None:
    calls: list[None] = []
    write(files, lambda: calls.append(None))
    assert calls == []
    tensors = {"a": torch.full((9,), torch.inf), "b": torch.tensor([torch.nan])}
    write({tmp_path / "c": tensors}, lambda: calls.append(None))
    assert calls == [None]
    assert load_file(tmp_path / "c")["a"].isinf().all()


def test_what_goes_wrong_in_a_thread_is_raised(files: Files, tmp_path: Path) -> None:
    def refused() -> None:
        raise KeyError("refused")

    with pytest.raises(KeyError, match="refused"):
        write({tmp_path / "c": {"a": torch.tensor([torch.nan])}}, refused)
    with pytest.raises(FileExistsError):
        write({tmp_path / "c": {}})

    def broken(start: int, out: Tensor) -> None:
        raise OSError("the disk is gone")

    source = Source(TensorFacts(torch.float32, (4,)), lambda: broken)
    with pytest.raises(OSError, match="the disk is gone"):
        write_files({tmp_path / "d": {"a": source}}, {}, refused, lambda *_: None)


def test_a_change_is_subtracted_alike_in_parts_of_any_size(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    states = []
    for number in range(3):
        values = torch.randn(1000, generator=generator).bfloat16()
        values[:3] = -torch.inf  # as in an attention mask
        save_tensors(tmp_path, f"{number}", {"mask": values})
        states.append(MappedTensors(tmp_path / f"{number}"))
    start, end, final = states
    without = WithoutStage(final, start, end, 2 * [Boundary(optimizer="not known")])
    expected = final["mask"].float() - (end["mask"].float() - start["mask"].float())
    expected[:3] = -torch.inf
    read = without.reader("mask")
    for size in (1, 7, 1000):
        found = torch.empty(1000, dtype=torch.bfloat16)
        for begin in range(0, 1000, size):
            read(begin, found[begin : begin + size])
        assert torch.equal(found, expected.bfloat16())
    assert torch.equal(computed(without.facts("mask"), read), expected.bfloat16())


def test_memory_that_is_lent_is_nobody_elses_meanwhile() -> None:
    with scratch(4, torch.float32, torch.bfloat16) as (one, two):
        one.fill_(1.0), two.fill_(2.0)
        with scratch(2**20, torch.float64) as (large,), scratch(4, torch.int64) as (three,):
            large.fill_(3.0), three.fill_(4)
        assert one.tolist() == [1.0] * 4 and two.tolist() == [2.0] * 4
        place = one.data_ptr()
    with scratch(8, torch.float64) as (one,), scratch(8, torch.float64) as (two,):
        assert place in (one.data_ptr(), two.data_ptr())
