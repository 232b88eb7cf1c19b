"""What recording costs a training loop: the same loop with and without it, step by step in turn."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import stagelens
from stagelens.demos import digits

STEPS = 1000
BLOCK = 20
"""Steps that one loop makes before it is the other's turn: what else the machine does falls on
both alike, and neither pays for the other's caches."""
PAIRS = 7
TARGET = 1.10


def training_loop(batches: list[Any], path: Path | None, **settings: Any) -> Iterator[None]:
    """The training loop of one stage, step by step; the stage is entered and left within it.

    Args:
        batches: What it trains on.
        path: A new folder to record into; None to record nothing.
        settings: Of the stage.
    """
    task = digits.make_task()
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    block: Any = nullcontext()
    if path is not None:
        recorder = stagelens.Recorder(path, task)
        block = recorder.stage("stage", model=model, optimizer=optimizer, **settings)
    yield
    with block as stage:
        for batch in batches:
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if stage is not None:
                stage.step(batch, loss)
            yield


def seconds(loops: list[Iterator[None]]) -> list[float]:
    """What each of the loops takes from its first step to its end, run in turn."""
    taken = [0.0] * len(loops)
    for loop in loops:
        next(loop)  # makes the model and the recorder
    for turn in range(STEPS // BLOCK + 1):
        for which in range(len(loops)) if turn % 2 else reversed(range(len(loops))):
            began = time.perf_counter()
            for _ in islice(loops[which], BLOCK):
                pass
            taken[which] += time.perf_counter() - began
    return taken


@pytest.mark.benchmark
@pytest.mark.parametrize("keep", ["all", "none"])
def test_recording_costs_at_most_a_tenth_of_the_training_loop(keep: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.rand(32, 1, 8, 8, generator=generator),
            torch.randint(10, (32,), generator=generator),
        )
        for _ in range(STEPS)
    ]
    ratios, plain = [], []
    for pair in range(PAIRS + 1):
        recorded_loop = training_loop(batches, tmp_path / str(pair), keep_batches=keep)
        alone, recorded = seconds([training_loop(batches, None), recorded_loop])
        if pair > 0:  # the first is to warm up
            ratios.append(recorded / alone)
            plain.append(alone)
    assert stagelens.open_run(tmp_path / "1").last.steps == STEPS
    print(
        f"\nrecording, keep_batches={keep}: {statistics.median(ratios):.3f} of the plain loop "
        f"({min(ratios):.3f} to {max(ratios):.3f}; {PAIRS} pairs of {STEPS} steps, "
        f"{1e3 * statistics.median(plain) / STEPS:.2f} ms per plain step, "
        f"{torch.get_num_threads()} thread, load {os.getloadavg()[0]:.1f})"
    )
    assert statistics.median(ratios) <= TARGET
