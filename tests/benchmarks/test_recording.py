"""What recording costs a training loop: the same loop with and without it, in turn."""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import stagelens
from stagelens.demos import digits

STEPS = 400
PAIRS = 9
TARGET = 1.10


def run_loop(batches: list[Any], path: Path | None, **settings: Any) -> float:
    """Seconds that the training loop of one stage takes, entering and leaving the stage included.

    Args:
        batches: What it trains on.
        path: A new folder to record into; None to record nothing.
        settings: Of the stage.
    """
    task = digits.make_task()
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    recorder = stagelens.Recorder(path, task) if path is not None else None
    began = time.perf_counter()
    block: Any = nullcontext()
    if recorder is not None:
        block = recorder.stage("stage", model=model, optimizer=optimizer, **settings)
    with block as stage:
        for batch in batches:
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if stage is not None:
                stage.step(batch, loss)
    return time.perf_counter() - began


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
    run_loop(batches, tmp_path / "warm-up", keep_batches=keep)
    ratios, plain = [], []
    for pair in range(PAIRS):
        path = tmp_path / str(pair)
        # In turn, so that what else the machine does falls on both alike.
        if pair % 2:
            recorded, alone = run_loop(batches, path, keep_batches=keep), run_loop(batches, None)
        else:
            alone, recorded = run_loop(batches, None), run_loop(batches, path, keep_batches=keep)
        ratios.append(recorded / alone)
        plain.append(alone)
    print(
        f"\nrecording, keep_batches={keep}: {statistics.median(ratios):.3f} of the plain loop "
        f"(from {min(ratios):.3f} to {max(ratios):.3f}, {PAIRS} pairs of {STEPS} steps, "
        f"{1e3 * statistics.median(plain) / STEPS:.2f} ms per plain step)"
    )
    assert statistics.median(ratios) <= TARGET
