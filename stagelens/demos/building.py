"""What every demo does around its training: build it whole or not at all, and compute effects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from stagelens.compute import helpers
from stagelens.contracts import Progress, ProgressCallback
from stagelens.effects.coalition_measuring import measure_coalitions
from stagelens.effects.computing import attribute, boundaries
from stagelens.estimators.registry import proposed
from stagelens.estimators.stage_trust import REPLAY
from stagelens.runs.files import new_folder
from stagelens.runs.run import Run, open_run
from stagelens.trust.drawing import measure_on_sets

Record = Callable[[Path, int, ProgressCallback], Run]
"""Trains and records a demo into a new folder, from a seed."""

Finish = Callable[[Run, ProgressCallback], None]

_RECORDING = 0.3
"""Share of the progress that training gets."""
_MEASURED = 0.75
"""How far it is when effects are measured, where more follows."""


def build(
    path: Path,
    record: Record,
    seed: int,
    progress: ProgressCallback,
    shared_out: Sequence[str] = (),
    draws: int = 0,
    finish: Finish | None = None,
) -> Run:
    """Record a demo and compute its effects: by task vector, coarse replay and exact replay.

    It is built under a hidden name beside ``path``, and renamed once it is complete.

    Args:
        path: A folder that is empty or does not exist yet.
        record: Trains it.
        seed: Makes it reproducible.
        progress: Called for every step.
        shared_out: Sets on which every coalition of stages is measured too, by replay.
        draws: How many draws of its recipe are made too, on every set; their models answer too,
            where ``finish`` has scored answers.
        finish: Computes what only this demo has, from its recorded run.

    Raises:
        StageLensError: The folder holds something already.
    """
    # A draw takes about as long as all the rest.
    rest = Progress(progress).part(1 / (1 + draws), 1.0)
    overall = Progress(progress).part(0.0, 1 / (1 + draws))
    with _one_thread(), new_folder(path) as whole:
        run = record(whole, seed, overall.part(0.0, _RECORDING))
        with helpers.allowed(run.path, helpers.command(run.path)):
            _measure(run, overall.part(_RECORDING, _MEASURED if shared_out or finish else 1.0))
            if finish is not None:
                finish(run, overall.part(_MEASURED, 1.0))
            for number, name in enumerate(shared_out):
                part = overall.part(_MEASURED, 1.0).piece(number, len(shared_out))
                measure_coalitions(run, name, REPLAY, progress=part)
            if draws:
                measure_on_sets(run, run.set_names, draws, rest, answers=True)
    # Opened again, because ``run`` still points at the hidden name.
    return open_run(path, run.task)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Record with one thread: such small models gain nothing by two.

    Replays compute with as many threads as were recorded, so that helpers find a core of their own.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(run: Run, progress: Progress) -> None:
    jobs = [(s, e) for s in run.set_names for e in (*proposed(), REPLAY)]
    for number, (set_name, estimator) in enumerate(jobs):
        attribute(run, set_name, estimator, progress=progress.piece(number, len(jobs)))
        boundaries(run, set_name)
