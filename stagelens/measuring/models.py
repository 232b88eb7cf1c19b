"""Measuring models on examples: ordinary forward passes, several models at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stagelens.compute import devices, memory, processes
from stagelens.contracts import Example, ProgressCallback, Task, no_progress
from stagelens.runs.batches import to_device
from stagelens.runs.run import Run, Stage
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.states import Weights

from .partial_results import Shards
from .placed import Placed

BATCH_SIZE = 256
_CHUNK = 8
"""Batches kept in memory while every model passes over them: inputs are read once, and weights are
swapped once per chunk."""

SHARD = _CHUNK * BATCH_SIZE
"""The most examples that one process measures before it stores its results."""


@dataclass(frozen=True)
class Measured:
    """The measurements of one model on N examples.

    Attributes:
        values: Behaviour name to (N,) float64; NaN where the value is unknown or not finite.
        answers: (N,) printable predictions.
        confidences: (N,) probability that the model gives its own prediction.
    """

    values: Mapping[str, np.ndarray]
    answers: np.ndarray
    confidences: np.ndarray


def empty_model(run: Run) -> nn.Module:
    """A module of a run's final architecture, to measure models with.

    Raises:
        StageLensError: One model does not fit into memory.
    """
    end = run.last.facts.end
    if end is not None and devices.computing().type == "cpu":
        memory.check(sum(file.bytes for file in end.shards), "measuring this run's models")
    return run.task.build_empty(run.last.facts.build_config)


def _chunks(batches: Iterable[list[Example]]) -> Iterator[list[list[Example]]]:
    chunk: list[list[Example]] = []
    for batch in batches:
        chunk.append(batch)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def measure(
    task: Task,
    model: nn.Module,
    weights: Sequence[Weights],
    batches: Iterable[list[Example]],
    count: int,
    progress: ProgressCallback = no_progress,
) -> list[Measured]:
    """Measure several models of one architecture on the same examples, in evaluation mode.

    Args:
        task: Collates examples, runs the models and reads their outputs.
        model: A module of the architecture; its weights are overwritten.
        weights: One entry per model.
        batches: The examples, batch by batch; consumed once.
        count: The total number of examples, for ``progress``.
        progress: Called after every chunk of batches.

    Returns:
        One entry per model, examples in order.
    """
    parts: list[list[Measured]] = [[] for _ in weights]
    placed = Placed(model)
    done = 0
    # Effects are small differences between models, in which the rounding of TF32 would show.
    with torch.inference_mode(), devices.full_precision(placed.device):
        for chunk in _chunks(batches):
            ordered, back = _ordered(task, chunk)
            collated = [to_device(task.collate(examples), placed.device) for examples in ordered]
            for number, one in enumerate(weights):
                placed.load(one)
                found = [read(task, task.outputs(model, b), b) for b in collated]
                parts[number] += found if back is None else [_taken(_joined(found), back)]
            done += sum(map(len, chunk))
            progress(done / max(count, 1), f"measuring {len(weights)} models, {done} of {count}")
    return [_joined(part) for part in parts]


def _ordered(
    task: Task, chunk: list[list[Example]]
) -> tuple[list[list[Example]], np.ndarray | None]:
    """Batches as the task likes them best, and where each example of the chunk is in them."""
    every = [example for batch in chunk for example in batch]
    order = task.evaluation_order(every)
    if order is None:
        return chunk, None
    moved = iter([every[number] for number in order])
    return [list(islice(moved, len(batch))) for batch in chunk], np.argsort(order)


def _taken(one: Measured, rows: np.ndarray) -> Measured:
    values = {name: own[rows] for name, own in one.values.items()}
    return Measured(values, one.answers[rows], one.confidences[rows])


def read(task: Task, outputs: Any, batch: Any) -> Measured:
    """What a forward pass says about the examples of its batch."""
    predictions = task.predictions(outputs)
    # Wide before any is subtracted from another; infinite values would turn means into NaN or inf.
    values = {n: v.double().cpu().numpy() for n, v in task.behaviours(outputs, batch).items()}
    return Measured(
        {name: np.where(np.isfinite(value), value, np.nan) for name, value in values.items()},
        np.asarray(predictions.answers, dtype=object),
        np.asarray(predictions.confidences, dtype=float),
    )


def _joined(parts: Sequence[Measured]) -> Measured:
    names = parts[0].values
    return Measured(
        {name: np.concatenate([part.values[name] for part in parts]) for name in names},
        np.concatenate([part.answers for part in parts]),
        np.concatenate([part.confidences for part in parts]),
    )


def measure_set(
    run: Run,
    examples: EvaluationSet,
    model: nn.Module,
    weights: Sequence[Weights],
    key: str,
    progress: ProgressCallback = no_progress,
) -> list[Measured]:
    """:func:`measure` on a whole set, shared out over the processes of the job.

    If it takes more than one shard, finished ones are stored with the run until all are complete.

    Args:
        run: The run.
        examples: The set.
        model: A module of the architecture; its weights are overwritten.
        weights: One entry per model.
        key: Identifies the models and the set.
        progress: Called after every shard of this process.
    """
    # Small enough that every process gets a shard of a small set.
    size = min(SHARD, math.ceil(examples.count / processes.count()))
    spans = [(at, min(at + size, examples.count)) for at in range(0, examples.count, max(size, 1))]
    if len(spans) < 2:
        batches = examples.batches(BATCH_SIZE)
        return measure(run.task, model, weights, batches, examples.count, progress)
    shards = Shards(run, key)
    names = {span: f"{span[0]}-{span[1]}" for span in spans}
    # One list for all, which sharing relies on: processes may not see the same files at once.
    left = processes.by_main(lambda: [span for span in spans if names[span] not in shards])

    def measured(start: int, stop: int) -> pd.DataFrame:
        batches = examples.batches(BATCH_SIZE, start, stop)
        return _as_frame(measure(run.task, model, weights, batches, stop - start))

    def work() -> None:
        mine = processes.share_of_work(left, lambda span: span[1] - span[0])
        total = sum(stop - start for start, stop in mine)
        done = 0
        for start, stop in mine:
            shards.keep(names[start, stop], partial(measured, start, stop))
            done += stop - start
            progress(done / total, f"measuring {len(weights)} models, {done} of {total}")

    processes.together(work)
    parts = [_from_frame(shards.load(name), len(weights)) for name in names.values()]
    processes.wait()  # the shards are deleted next, so all must have read them
    processes.by_main(shards.clear)
    return [_joined([part[number] for part in parts]) for number in range(len(weights))]


def _as_frame(models: Sequence[Measured]) -> pd.DataFrame:
    """One row per model and example."""
    blocks = [
        pd.DataFrame(
            {"model": number, "answer": one.answers, "confidence": one.confidences}
            | {f"value/{name}": values for name, values in one.values.items()}
        )
        for number, one in enumerate(models)
    ]
    return pd.concat(blocks, ignore_index=True)


def _from_frame(frame: pd.DataFrame, count: int) -> list[Measured]:
    """The inverse of :func:`_as_frame`."""
    return [
        Measured(
            {
                name.removeprefix("value/"): rows[name].to_numpy()
                for name in rows.columns
                if name.startswith("value/")
            },
            rows["answer"].to_numpy(dtype=object),
            rows["confidence"].to_numpy(),
        )
        for rows in (frame[frame["model"] == number] for number in range(count))
    ]


def answers_as_the_final_model(run: Run, stage: Stage, examples: EvaluationSet) -> bool:
    """Whether a stage's model has outputs of the same shapes as the final model."""
    configs = stage.facts.build_config, run.last.facts.build_config
    if configs[0] == configs[1]:
        return True
    batch = run.task.collate(next(examples.batches(1)))
    shapes = []
    for config in configs:  # one model at a time
        model = run.task.build_model(config).eval()
        with torch.inference_mode():
            shapes.append(_shapes(run.task.outputs(model, batch)))
        del model
    return shapes[0] == shapes[1]


def _shapes(outputs: Any) -> list[tuple[int, ...]]:
    if isinstance(outputs, Tensor):
        return [tuple(outputs.shape)]
    parts = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    nested = isinstance(parts, tuple | list)
    return [shape for part in parts for shape in _shapes(part)] if nested else []
