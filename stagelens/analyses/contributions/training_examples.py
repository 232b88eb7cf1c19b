"""The training examples behind a stage's contributions, from its recorded batches.

An example that several steps used is one row: its contributions add up. The same input under
another label is another row, and each names the labels of the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from stagelens.contracts import Example, Task
from stagelens.runs.batches import to_device
from stagelens.runs.example_content import content_digest
from stagelens.runs.run import Run, Stage
from stagelens.runs.sets.images import display_png
from stagelens.runs.states import load_into
from stagelens.runs.step_records import MicroBatch
from stagelens.runs.training_rows import examples_in

from .batch_terms import BatchTerms, places_of
from .contribution_table import SHOWN


@dataclass
class _Used:
    """A training example of a stage.

    Attributes:
        content: Identifies the input: equal for equal inputs.
        label: As it was trained on.
        step: Of its first use.
        position: Its place in that step, counted over micro-batches.
        answers: Of the final model (``answer``) and of the one ``before`` the stage.
        value: Its contributions so far.
        steps: Of its uses.
        slopes: The derivative in its weight at each of them.
        micros: Which micro-batch of the step each is in.
        counts: How many terms of its loss it has there.
        uses: How many contributions that is.
        shown: The bytes of a PNG, or texts as JSON.
    """

    content: str
    label: str | None
    step: int
    position: int
    answers: dict[str, str] = field(default_factory=dict)
    value: float = 0.0
    steps: list[int] = field(default_factory=list)
    slopes: list[float] = field(default_factory=list)
    micros: list[int] = field(default_factory=list)
    counts: list[float] = field(default_factory=list)
    uses: int = 0
    shown: bytes | None = None


def training_examples(
    run: Run,
    stage: Stage,
    shares: pd.DataFrame,
    counted: Sequence[Sequence[BatchTerms]] | None,
) -> list[dict[str, Any]]:
    """The training examples of a stage, those that raised the behaviour most first, and batches.

    Args:
        run: The run.
        stage: One of its stages.
        shares: ``step``, ``position``, ``contribution`` and ``slope`` of every use of an example
            in it.
        counted: Every step's micro-batches; None where these have no mean over the rest.

    Returns:
        Rows of ``contribution_table.COLUMNS``: examples by contribution, then micro-batches.
    """
    every_batch: list[dict[str, Any]] = []
    found: dict[tuple[str, str | None], _Used] = {}
    steps, models = stage.read_steps(), _models(run, stage)
    for number, own in shares.groupby("step", sort=True):
        step = int(number)
        batches = steps[step].batches or []
        new = []
        values = own.set_index("position")
        micros, counts = (None, None) if counted is None else places_of(counted[step])
        for position, example in enumerate(_of_step(run.task, stage, batches)):
            # What the task cannot show cannot be compared either, so each use counts by itself.
            content = f"{step} {position}" if example is None else content_digest(example)
            label = None if example is None else example.label
            if (content, label) not in found:
                found[content, label] = _Used(content, label, step, position)
                new.append(found[content, label])
            used = found[content, label]
            used.value += float(values["contribution"][position])
            used.steps.append(step)
            used.slopes.append(float(values["slope"][position]))
            used.uses += 1
            if micros is not None and counts is not None:
                used.micros.append(int(micros[position]))
                used.counts.append(float(counts[position]))
        # Only where an example is first used: later uses would give the same answers.
        _answer(run.task, models, batches, [used for used in new if used.label is not None])
        if micros is not None and counted is not None:
            slopes = values["slope"].sort_index().to_numpy(float)
            sums = np.bincount(micros, slopes, len(counted[step]))
            every_batch += _batch_rows(stage, step, counted[step], sums)
    rows = sorted(found.values(), key=lambda used: -used.value)
    # With few rows the two ends would overlap; the second then begins behind the first.
    for used in [*rows[:SHOWN], *rows[max(len(rows) - SHOWN, SHOWN) :]]:
        # Read again: to hold every input until now would take the memory of all training data.
        example = _of_step(run.task, stage, steps[used.step].batches or [])[used.position]
        used.shown = None if example is None else shown_content(example)
    labels: dict[str, list[str]] = {}
    for used in rows:
        labels.setdefault(used.content, []).append(used.label or "")
    every = [
        {
            "part": "example",
            "stage": stage.name,
            "step": used.step,
            "value": used.value,
            "slope": sum(used.slopes),
            "steps": used.steps,
            "slopes": used.slopes,
            "micros": used.micros if counted is not None else None,
            "counts": used.counts if counted is not None else None,
            "position": used.position,
            "uses": used.uses,
            "label": used.label,
            "other_labels": ", ".join(o for o in labels[used.content] if o != used.label) or None,
            "content": used.shown,
            **used.answers,
        }
        for used in rows
    ]
    return every + every_batch


def _batch_rows(
    stage: Stage, step: int, batches: Sequence[BatchTerms], slopes: np.ndarray
) -> list[dict[str, Any]]:
    return [
        {
            "part": "batch",
            "stage": stage.name,
            "step": step,
            "position": number,
            "kind": batch.terms.kind,
            "terms": batch.terms.total,
            "share": batch.share,
            "denominator": batch.denominator,
            "slope": float(slope),
        }
        for number, (batch, slope) in enumerate(zip(batches, slopes, strict=True))
    ]


def _of_step(task: Task, stage: Stage, batches: Sequence[MicroBatch]) -> list[Example | None]:
    """The examples of a step over its micro-batches; None for those that cannot be shown."""
    return [example for micro in batches for example in examples_in(stage, task, micro.batch)]


def shown_content(example: Example) -> bytes:
    """An input as it is kept for people: an image as PNG in its own size, texts as JSON."""
    image = example.input.get("image")
    if image is not None:
        return display_png(image)
    return json.dumps(dict(example.input)).encode()


def _models(run: Run, stage: Stage) -> Mapping[str, nn.Module]:
    """The final model and the one before the stage, in evaluation mode."""
    final = run.task.build_model(run.last.facts.build_config)
    load_into(final, run.last.end().model)
    before = run.task.build_model(stage.facts.build_config)
    load_into(before, stage.start().model)
    return {"answer": final.eval(), "before": before.eval()}


def _answer(
    task: Task,
    models: Mapping[str, nn.Module],
    batches: Sequence[MicroBatch],
    wanted: Sequence[_Used],
) -> None:
    """Let the models answer the examples of a step, in evaluation mode."""
    if not wanted:
        return
    for name, model in models.items():
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        answers: list[str] = []
        with torch.inference_mode():
            for micro in batches:
                outputs = task.outputs(model, to_device(micro.batch, device))
                answers += task.predictions(outputs).answers
        for used in wanted:
            used.answers[name] = answers[used.position]
