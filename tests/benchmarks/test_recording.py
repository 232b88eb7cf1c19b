"""What recording costs a training loop: the same loop with and without it, step by step in turn."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import stagelens
from stagelens.demos import digits

PAIRS = 5


@dataclass(frozen=True)
class Case:
    """A training loop to record.

    Attributes:
        name: For the output.
        task: What is trained.
        shape: Of a batch of images; (N, channels, height, width).
        steps: How many.
        block: Steps that one loop makes before it is the other's turn: what else the machine does
            falls on both alike, and neither pays for the other's caches.
        target: Most that the median step may cost, as a multiple of the plain one.
    """

    name: str
    task: stagelens.Task
    shape: tuple[int, int, int, int]
    steps: int
    block: int
    target: float


def classifier(shape: tuple[int, int, int], **model: Any) -> stagelens.Task:
    return stagelens.tasks.ImageClassification([str(n) for n in range(10)], shape, model=model)


CASES = [
    Case("1.2 ms", digits.make_task(), (32, 1, 8, 8), 1000, 20, 1.08),
    Case(
        "5.7 ms, images",
        classifier((3, 32, 32), kind="cnn", channels=[8, 8], hidden=32),
        (32, 3, 32, 32),
        500,
        10,
        1.08,
    ),
    Case(
        "20 ms",
        classifier((1, 28, 28), kind="mlp", hidden=[512] * 3),
        (256, 1, 28, 28),
        200,
        5,
        1.03,
    ),
]


def training_loop(
    task: stagelens.Task, batches: list[Any], path: Path | None, **settings: Any
) -> Iterator[None]:
    """The training loop of one stage, step by step; the stage is entered and left within it.

    Args:
        task: What is trained.
        batches: What it trains on.
        path: A new folder to record into; None to record nothing.
        settings: Of the stage.
    """
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


def seconds(loops: list[Iterator[None]], steps: int, block: int) -> list[list[float]]:
    """What each step of the loops takes, and their end, run in turn."""
    taken: list[list[float]] = [[] for _ in loops]
    for loop in loops:
        next(loop)  # makes the model and the recorder
    for turn in range(steps // block + 1):
        for which in range(len(loops)) if turn % 2 else reversed(range(len(loops))):
            for _ in range(block):
                began = time.perf_counter()
                for _ in islice(loops[which], 1):
                    pass
                taken[which].append(time.perf_counter() - began)
    return taken


@pytest.mark.benchmark
@pytest.mark.parametrize("keep", ["all", "none"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_recording_costs_the_median_step(case: Case, keep: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    few = [  # in turn: a data set fits into memory, and its batches are copied all the same
        (
            torch.rand(case.shape, generator=generator),
            torch.randint(10, case.shape[:1], generator=generator),
        )
        for _ in range(50)
    ]
    batches = [few[number % len(few)] for number in range(case.steps)]
    medians, whole, plain = [], [], []
    for pair in range(PAIRS + 1):
        recorded_loop = training_loop(case.task, batches, tmp_path / str(pair), keep_batches=keep)
        loops = [training_loop(case.task, batches, None), recorded_loop]
        alone, recorded = seconds(loops, case.steps, case.block)
        if pair > 0:  # the first is to warm up
            medians.append(statistics.median(recorded) / statistics.median(alone))
            whole.append(sum(recorded) / sum(alone))
            plain.append(statistics.median(alone))
    assert stagelens.open_run(tmp_path / "1", case.task).last.steps == case.steps
    print(
        f"\nrecording, {case.name}, keep_batches={keep}: median step "
        f"{statistics.median(medians):.3f} of the plain one ({min(medians):.3f} to "
        f"{max(medians):.3f}), whole loop {statistics.median(whole):.3f} ({min(whole):.3f} to "
        f"{max(whole):.3f}); {PAIRS} pairs of {case.steps} steps, "
        f"{1e3 * statistics.median(plain):.2f} ms per plain step, {torch.get_num_threads()} "
        f"threads, load {os.getloadavg()[0]:.1f}"
    )
    assert statistics.median(medians) <= case.target
