"""Small trainings of several processes in plain torch, as users write them, for tests to record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import stagelens
from stagelens.runs.states import Weights, model_tensors
from tests.support.launched import as_launched
from tests.support.loops import Batch, make_batches, make_task
from tests.support.sharded import sharded

SIZE = 4
"""Examples in a batch of one process."""


@dataclass(frozen=True)
class Stage:
    """One stage of a training.

    Attributes:
        name: Its name.
        seed: Of its data.
        updates: How many it has.
        accumulation: Micro-batches per update, of each process.
        clip_norm: Where it clips.
        rate: Its learning rate.
        recorder: Further settings of ``Recorder.stage``.
        by_rows: Whether the recorder is given the data set of all processes, and row numbers.
    """

    name: str
    seed: int
    updates: int = 5
    accumulation: int = 1
    clip_norm: float | None = None
    rate: float = 0.05
    recorder: Mapping[str, Any] = field(default_factory=dict)
    by_rows: bool = False


@dataclass(frozen=True)
class Training:
    """A training in stages.

    Attributes:
        stages: In their order.
        model: As ``make_task`` takes it.
        seeds_apart: Whether every process draws numbers of its own.
        wrapper: Settings of DistributedDataParallel.
        frozen: Parameters that are not trained.
    """

    stages: tuple[Stage, ...] = (Stage("first", 1), Stage("second", 2))
    model: Mapping[str, Any] | None = None
    seeds_apart: bool = True
    wrapper: Mapping[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()

    def task(self) -> stagelens.Task:
        return make_task(self.model)

    def fresh(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.task().build_model(None).double()
        for name in self.frozen:
            model.get_parameter(name).requires_grad_(False)
        return model

    def batches(self, stage: Stage, count: int, rank: int) -> list[Batch]:
        """Those of a process, which take turns in one list."""
        made = make_batches(stage.updates * stage.accumulation * count, stage.seed, SIZE)
        return [(images.double(), labels) for images, labels in made[rank::count]]

    def data(self, stage: Stage, count: int) -> TensorDataset:
        """The examples of all batches of ``count`` processes: rows in the order of batches."""
        each = zip(*(self.batches(stage, count, rank) for rank in range(count)), strict=True)
        images, labels = zip(*(batch for step in each for batch in step), strict=True)
        return TensorDataset(torch.cat(images), torch.cat(labels))


def run_stages(
    training: Training,
    model: nn.Module,
    count: int,
    rank: int,
    recorder: stagelens.Recorder | None = None,
    without: str | None = None,
    before_note: Callable[[str, int], None] = lambda *_: None,
) -> None:
    """The usual loop of one of ``count`` processes, around a model that may be wrapped."""
    task = training.task()
    for number, stage in enumerate(training.stages):
        torch.manual_seed(100 * number + rank * training.seeds_apart)
        # An optimiser of its own: what is left out leaves nothing behind.
        optimizer = torch.optim.AdamW(model.parameters(), lr=stage.rate)
        if stage.name == without:
            continue
        around: Any = nullcontext()
        if recorder is not None:
            around = recorder.stage(
                stage.name,
                model=model,
                optimizer=optimizer,
                accumulation=stage.accumulation,
                clip_norm=stage.clip_norm,
                dataset=training.data(stage, count) if stage.by_rows else None,
                **{"on_problem": "raise", **stage.recorder},
            )
        with around as recorded:
            for step, batch in enumerate(training.batches(stage, count, rank), 1):
                due = step % stage.accumulation == 0
                waits = isinstance(model, DistributedDataParallel) and not due
                with model.no_sync() if waits else nullcontext():
                    loss = task.loss(model, batch)
                    (loss / stage.accumulation).backward()
                if due:
                    if stage.clip_norm is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), stage.clip_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                before_note(stage.name, step)
                if recorded is not None:
                    first = SIZE * ((step - 1) * count + rank)
                    rows = range(first, first + SIZE) if stage.by_rows else None
                    recorded.step(batch, loss, rows=rows)


def joined(rank: int, count: int, port: int, folder: Path) -> None:
    """What torchrun and ``init_process_group`` make of a new process."""
    as_launched(rank, count, port, folder)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))


def recording(rank: int, count: int, port: int, folder: Path, training: Training) -> None:
    """One process of a recorded training; saves its model beside the run."""
    joined(rank, count, port, folder)
    model = training.fresh()
    shared = DistributedDataParallel(model, **training.wrapper)
    recorder = stagelens.Recorder(folder / "run", training.task())
    run_stages(training, shared, count, rank, recorder)
    images, labels = make_batches(1, seed=5, size=20)[0]
    recorder.add_set("test", images=images, labels=labels)
    recorder.close()
    torch.save(dict(model_tensors(model)), folder / f"end-{rank}.pt")
    dist.destroy_process_group()


def plain(
    rank: int, count: int, port: int, folder: Path, training: Training, without: str | None
) -> None:
    """The same without a recorder, and without a stage."""
    joined(rank, count, port, folder)
    model = training.fresh()
    run_stages(
        training, DistributedDataParallel(model, **training.wrapper), count, rank, without=without
    )
    torch.save(dict(model_tensors(model)), folder / f"end-{rank}.pt")
    dist.destroy_process_group()


def end_of(folder: Path, rank: int = 0) -> Weights:
    """The model that a process ended with."""
    found: Weights = torch.load(folder / f"end-{rank}.pt", weights_only=True)
    return found


def said(folder: Path, rank: int) -> str:
    """What a process printed as errors."""
    return (folder / f"err-{rank}").read_text()


def farthest(one: Weights, other: Weights) -> float:
    """Largest difference between two models."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def recording_shared_out(
    rank: int, count: int, port: int, folder: Path, training: Training, *names: str
) -> None:
    """As :func:`recording`, each process with a part of the model; once for each name of a run."""
    joined(rank, count, port, folder)
    for name in names:
        model = training.fresh()
        sharded(model, *[n for n, m in model.named_modules() if isinstance(m, nn.Linear)][:1])
        recorder = stagelens.Recorder(folder / name, training.task())
        run_stages(training, model, count, rank, recorder)
        images, labels = make_batches(1, seed=5, size=20)[0]
        recorder.add_set("test", images=images, labels=labels)
        dist.barrier()
        recorder.close()
    dist.destroy_process_group()
