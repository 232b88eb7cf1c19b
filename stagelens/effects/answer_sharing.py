"""Models that answer shared out over helper processes, one whole model at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from stagelens.compute import devices, helpers
from stagelens.compute.helpers import Item
from stagelens.contracts import Progress, ProgressCallback
from stagelens.estimators.sharing_out import best_count, room
from stagelens.runs.run import Run

Own = Callable[[Mapping[str, Any], ProgressCallback], None]
"""Has one model answer, in this process or in a helper; the answers are stored with the run."""

_COPIES = 3
"""A module, the weights that are copied into it, and what a batch takes, in sizes of the model."""


def share_models(
    run: Run, names: Sequence[str], message: Mapping[str, Any], own: Own, progress: ProgressCallback
) -> None:
    """Have models answer, with helpers where these are allowed and all is sooner done so.

    What failed in a helper is not told here: whoever asks finds no answers, and has them made.

    Args:
        run: The run.
        names: The models that have not answered yet.
        message: What a helper needs to know beside the model's name.
        own: Has one model answer.
        progress: Called for the work of all.
    """
    threads, left = _recorded(run), list(names)
    overall = Progress(progress)
    allowed = helpers.of(run.path)
    # On a GPU, processes would take turns.
    together = allowed is not None and devices.computing().type == "cpu" and len(left) > 1
    asked = allowed.asked if allowed is not None and together else 1
    if asked is None and threads is None:
        asked = 1  # an assembled run's models take all cores, one after another
    seconds, done = 1.0, 0
    if asked is None:
        # What one model takes decides whether helpers are worth their start.
        began = time.monotonic()
        own({**message, "answers": left.pop(0), "threads": threads}, overall.piece(0, len(names)))
        seconds, done = time.monotonic() - began, 1
        most = max(1 + len(allowed.started) if allowed is not None else 1, _most(run, len(left)))
        asked = best_count([seconds] * len(left), most, 1) if left else 1
    count = max(1, min(asked, len(left)))
    if threads is None and count > 1:
        threads = max(1, torch.get_num_threads() // count)
    items = [Item({**message, "answers": name, "threads": threads}, seconds) for name in left]
    if allowed is None or count == 1:
        for number, item in enumerate(items):
            own(item.message, overall.piece(done + number, len(names)))
        return
    allowed.start(count - 1, threads or 1)
    part = overall.part(done / len(names), 1.0)
    allowed.share(items, lambda item, report: own(item.message, report), part)


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Compute with so many threads in the block, so that the last bits do not depend on who does.

    Args:
        threads: Their number; None for as many as before.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _recorded(run: Run) -> int | None:
    """The threads that the run was trained with; None of one that was assembled."""
    known = [s.facts.environment for s in run.stages if s.facts.environment is not None]
    return max((one.threads for one in known), default=None)


def _most(run: Run, models: int) -> int:
    """How many processes the cores and the memory of this machine take."""
    end = run.last.facts.end
    size = sum(file.bytes for file in end.shards) if end is not None else 0
    return min(room(run.stages[-1:], _COPIES * size), models)
