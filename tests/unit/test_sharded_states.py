"""States of models that are shared out over processes: on disk as of one, gathered one by one."""

from __future__ import annotations

import contextlib
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from stagelens.runs.checked_files import CheckedFiles
from stagelens.runs.gathering import gathered_state
from stagelens.runs.saved_states import load_state, save_state
from stagelens.runs.shards import is_sharded
from stagelens.runs.states import optimizer_tensors
from tests.support import launched, small_runs
from tests.support.loops import differing_state
from tests.support.sharded import joined, sharded

_alive: list[Any] = []


def counting(most: list[int]) -> Any:
    """``DTensor.full_tensor`` that notes how many of what it gave are alive at a time."""
    whole = DTensor.full_tensor

    def counted(tensor: DTensor) -> Tensor:
        found = whole(tensor)
        # The memory itself: views of it count too.
        _alive.append(weakref.ref(found.untyped_storage()))
        until = time.monotonic() + 5  # gloo's own thread lets go of the last one a moment later
        while (now := sum(e() is not None for e in _alive)) > 1 and time.monotonic() < until:
            time.sleep(1e-3)
        most.append(now)
        return found

    return counted


def trained(model: Any, steps: int = 2) -> tuple[torch.optim.Optimizer, dict[int, str]]:
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    task = small_runs.make_task("batch norm")
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(6, 1, 4, 4, generator=generator).double()
        task.loss(model, (images, torch.arange(6) % 3)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer, {id(p): n for n, p in model.named_parameters()}


def one_by_one(rank: int, count: int, port: int, folder: Path) -> None:
    with joined(rank, count, port, folder):
        torch.manual_seed(0)
        model = small_runs.make_task("batch norm").build_model()
        assert not is_sharded(model)
        sharded(model, "0", "4")
        assert is_sharded(model)
        optimizer, names = trained(model)
        model.eval()
        with torch.no_grad():  # leaves whole parameters in place of the outermost ones
            model(torch.zeros(2, 1, 4, 4).double())
        assert any(not isinstance(p, DTensor) for p in model.parameters())
        most: list[int] = []
        DTensor.full_tensor = counting(most)  # type: ignore[method-assign]
        at = folder if rank == 0 else None
        state = gathered_state(at, model, optimizer_tensors(optimizer, names))
        # Weights and biases of five layers, and two numbers that AdamW keeps of each.
        assert len(most) == 3 * 10 and max(most) == 1, most
        assert all(isinstance(p, DTensor) for p in model.parameters())
        assert bool(state.model) == bool(state.optimizer) == (rank == 0)
        assert max(p.to_local().numel() for p in model.parameters()) < 72  # type: ignore[attr-defined]
        fails = folder / "err-0" if rank == 0 else None
        with pytest.raises(OSError) if rank == 0 else contextlib.nullcontext():
            gathered_state(fails, model, optimizer_tensors(optimizer, names))
        torch.distributed.barrier()  # all came through
        if rank == 0:
            reference = save_state(folder, "end", state)
            assert not list(folder.glob("*.tmp"))
            again = load_state(CheckedFiles(folder), reference)
            assert differing_state(again, state) == []


@pytest.mark.parametrize("count", [2, 4])
def test_tensors_are_gathered_and_written_one_by_one(count: int, tmp_path: Path) -> None:
    ended = launched.run(count, one_by_one, tmp_path)
    assert ended == [0] * count, [(tmp_path / f"err-{n}").read_text() for n in range(count)]
