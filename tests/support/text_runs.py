"""Small runs of models on texts, for tests of pages: recorded and measured within seconds."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import stagelens
from stagelens.demos import chat
from stagelens.effects.computing import attribute, boundaries
from tests.support import hostile
from tests.support.loops import train
from tests.support.small_texts import CLASSES, TEXTS, classification, language

STAGES = ("general", "habits", "polish")
SHORT_CHAT = [replace(plan, count=24, steps=3, batch_size=8) for plan in chat.PLANS]
"""Of the demo ``chat``: learns nothing, and is made in seconds."""

PROMPTS = ("the cat sat on", "two and two", "a dog", "the rain in the night")
COMPLETIONS = (" the mat", " make four", " barked", " was long and cold")
REJECTED = (" the dog", " make two", None, " sing")


def _record(path: Path, task: stagelens.Task, model: Any, batches: list[Any], name: str) -> None:
    torch.manual_seed(0)
    with closing(stagelens.Recorder(path, task, name=name)) as recorder:
        for number, stage_name in enumerate(STAGES):
            optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
            description = f"small texts, part {number + 1}"
            with recorder.stage(
                stage_name, model=model, optimizer=optimizer, description=description
            ) as stage:
                train(task, model, optimizer, batches[number::3], stage=stage)


def _measured(path: Path, set_name: str, estimators: tuple[str, ...]) -> None:
    run = stagelens.open_run(path)
    boundaries(run, set_name)
    for estimator in estimators:
        attribute(run, set_name, estimator)


def record_comments(path: Path, estimators: tuple[str, ...] = ("replay",)) -> Path:
    """A classifier of texts in three stages, with a labelled set ``test``."""
    task, model = classification()
    labels = [CLASSES[number % 3] for number in range(len(TEXTS))]
    batches = [task.batch(TEXTS[k:] + TEXTS[:k], labels[k:] + labels[:k]) for k in range(5)] * 2
    _record(path, task, model, batches, "comments")
    with closing(stagelens.Recorder(path, task, resume=True)) as recorder:
        recorder.add_set(
            "test",
            texts=[*TEXTS, "birds sing and the cat sat"],
            labels=[*labels, None],
            columns={"group": ["short", "long"] * 3},
            description="Five texts and one without a label",
        )
    _measured(path, "test", estimators)
    return path


def record_prompts(
    path: Path,
    estimators: tuple[str, ...] = ("replay",),
    trained: tuple[str, ...] = COMPLETIONS,
) -> Path:
    """A language model in three stages, with a set ``test`` of prompts and one of whole texts.

    Args:
        path: Of the run.
        estimators: By which its effects are measured.
        trained: What the later two stages learn to answer.
    """
    task, model = language()
    batches = [task.batch([text, TEXTS[0]]) for text in TEXTS] * 2
    batches += [task.batch(prompts=PROMPTS, completions=trained)] * 2
    _record(path, task, model, batches, "prompts")
    with closing(stagelens.Recorder(path, task, resume=True)) as recorder:
        inputs = {"prompt": PROMPTS, "completion": COMPLETIONS, "rejected": REJECTED}
        recorder.add_set("test", inputs=inputs, description="Four prompts")
        recorder.add_set("whole", texts=list(TEXTS), description="Five whole texts")
    _measured(path, "test", estimators)
    _measured(path, "whole", estimators[:1])
    return path


def record_answers(path: Path) -> Path:
    """``prompts`` with answers to the set ``test`` and three scores; ``whole`` has none."""
    from stagelens.effects.answers import answer
    from stagelens.effects.scores import scored
    from stagelens.measuring.generation import Generation
    from stagelens.measuring.scorers import find_scorer

    record_prompts(path)
    run = stagelens.open_run(path)
    how = Generation(max_tokens=6)
    found = answer(run, "test", how)
    habit = {"pattern": "T$|T[^T]", "better": "lower"}
    for name, own in (("contains", {}), ("regex", {"pattern": "se"}), ("regex", habit)):
        scored(run, "test", found, how, find_scorer(name, own))
    return path


def add_hostile_set(path: Path) -> None:
    """Add the set ``hostile``: every hostile text in every place that a set has for one."""
    run = stagelens.open_run(path)
    texts = [*hostile.TEXTS, hostile.EVERYTHING]
    given: dict[str, Any] = {"texts": texts, "labels": ["calm"] * len(texts)}
    if run.task.name == "causal-lm":
        inputs = {"prompt": texts, "completion": texts[::-1], "rejected": [None, *texts[1:]]}
        given = {"inputs": inputs}
    with closing(stagelens.Recorder(path, run.task, resume=True)) as recorder:
        recorder.add_set(
            "hostile",
            ids=[f"{number} {text[:150]}" for number, text in enumerate(texts)],
            columns={
                "note": texts,
                "group": [hostile.MARKUP[number % 3] for number in range(len(texts))],
                "turned": [hostile.DIRECTIONS[0]] * len(texts),
            },
            description=hostile.EVERYTHING,
            **given,
        )
    _measured(path, "hostile", ("task-vector", "replay"))
