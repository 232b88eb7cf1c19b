"""Measuring models on examples: ordinary forward passes, several models at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .contracts import Example, Task
from .estimators.protocol import Weights
from .runs.batches import to_device
from .runs.states import load_into
from .training.replay import Progress, no_progress

BATCH_SIZE = 256
_CHUNK = 8
"""Batches that stay in memory while every model passes over them: inputs are read once, and
weights are changed once per chunk."""


@dataclass(frozen=True)
class Measured:
    """One model on N examples.

    Attributes:
        values: Behaviour name to (N,) float64.
        answers: (N,) printable predictions.
        confidences: (N,) probability that the model gives to its own prediction.
    """

    values: Mapping[str, np.ndarray]
    answers: np.ndarray
    confidences: np.ndarray


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
    progress: Progress = no_progress,
) -> list[Measured]:
    """Measure several models of one architecture on the same examples, in evaluation mode.

    Args:
        task: Collates, runs and reads the models.
        model: A module of the architecture; its weights are overwritten.
        weights: One entry per model.
        batches: The examples, batch by batch; gone through once.
        count: How many examples there are in all, for ``progress``.
        progress: Told after every chunk of batches.

    Returns:
        One entry per model, examples in order.
    """
    parts: list[list[Measured]] = [[] for _ in weights]
    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    done = 0
    with torch.inference_mode():
        for chunk in _chunks(batches):
            collated = [to_device(task.collate(examples), device) for examples in chunk]
            for number, one in enumerate(weights):
                load_into(model, one)
                parts[number] += [read(task, task.outputs(model, b), b) for b in collated]
            done += sum(map(len, chunk))
            progress(done / max(count, 1), f"measuring {len(weights)} models, {done} of {count}")
    return [_joined(part) for part in parts]


def read(task: Task, outputs: Any, batch: Any) -> Measured:
    """What a forward pass says of the examples of its batch."""
    predictions = task.predictions(outputs)
    return Measured(
        {n: v.double().cpu().numpy() for n, v in task.behaviours(outputs, batch).items()},
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
