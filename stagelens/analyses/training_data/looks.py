"""What the training examples of a stage look like, read from its recorded batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

import pandas as pd

from stagelens.contracts import Example, ProgressCallback, no_progress
from stagelens.runs.run import Run, Stage
from stagelens.runs.sets.images import display_png
from stagelens.runs.training_rows import uses

from .tables import LOOKS, LookFacts, save_looks, stored_looks

_SIDE = 64
"""Pixels on the longer side of a larger image as it is kept."""
_LONGEST = 20_000
"""Characters of a text as it is kept."""


def looks(
    run: Run, stage: Stage, rows: pd.DataFrame, progress: ProgressCallback = no_progress
) -> tuple[LookFacts, pd.DataFrame]:
    """What a stage's training examples are shown as; read from disk where stored.

    Args:
        run: The run.
        stage: One of its stages.
        rows: Its examples, as :func:`stagelens.runs.training_rows.training_rows` lists them.
        progress: Called while batches are read.

    Returns:
        Facts, and rows of ``tables.LOOKS`` in the same order.
    """
    known = stored_looks(run, stage.name)
    if known is not None and len(known[1]) == len(rows):
        return known
    kind: Literal["image", "text"] | None = None
    found: list[tuple[bytes | None, int | None]] = []
    for number, example in enumerate(inputs_of(run, stage, rows)):
        shown, length = (None, None) if example is None else kept(example)
        if example is not None:
            kind = "image" if length is None else "text"
        found.append((shown, length))
        if number % 1_000 == 0:
            progress(number / len(rows), f"looking at the training examples of {stage.name}")
    table = pd.DataFrame(
        {
            "example_id": rows["example_id"].to_numpy(),
            "length": [length for _, length in found],
            "shown": [shown for shown, _ in found],
        }
    ).astype(LOOKS)
    facts = LookFacts(run_digest=run.digest, stage=stage.name, kind=kind)
    save_looks(run, table, facts)
    return facts, table


def inputs_of(run: Run, stage: Stage, rows: pd.DataFrame) -> Iterator[Example | None]:
    """The inputs of training examples, from the batches in which each was seen first.

    Args:
        run: The run.
        stage: One of its stages.
        rows: Some of its examples, in the order in which they were first seen.
    """
    steps = stage.read_steps()
    for step, own in rows.groupby("step", sort=False):
        shown = uses(run, stage, int(step), steps[int(step)].batches or [])
        for name, position in zip(own["example_id"], own["position"], strict=True):
            example = shown[position].example
            yield None if example is None else Example(str(name), example.input, example.label)


def kept(example: Example) -> tuple[bytes, int | None]:
    """What is kept of an input for people, and the length of a text in characters."""
    image = example.input.get("image")
    if image is not None:
        larger = max(image.shape[:2]) > _SIDE
        return display_png(image, _SIDE if larger else None), None
    texts = {name: str(text) for name, text in example.input.items() if text is not None}
    cut = {name: text[:_LONGEST] for name, text in texts.items()}
    return json.dumps(cut).encode(), sum(map(len, texts.values()))
