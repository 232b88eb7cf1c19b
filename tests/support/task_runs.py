"""A small run of each task that comes with StageLens: three stages, recorded within a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

import stagelens
from stagelens.tasks import Regression, RewardModel
from tests.support.loops import train
from tests.support.small_texts import TEXTS, bert, bert_tokenizer

STAGES = ("first", "second", "third")


@dataclass(frozen=True)
class Small:
    """A task with a model of it and what is needed to record and to measure.

    Attributes:
        task: The task.
        model: Of it.
        processor: The tokenizer, or the image processor.
        batches: For training.
        examples: Keywords of ``Recorder.add_set``.
        label: A label as one types it, of the first example; None where examples have none.
        own: Texts of an own example, by their fields; empty for an image.
    """

    task: Any
    model: Any
    processor: Any
    batches: list[Any]
    examples: Mapping[str, Any]
    label: Any = None
    own: Mapping[str, str] = field(default_factory=dict)


def regression() -> Small:
    tokenizer = bert_tokenizer()
    model = bert(tokenizer, id2label={0: "score"})
    task = Regression.from_model(model, tokenizer)
    scores = [0.5, -1, 2.25, None, 0]
    known = [each or 0.0 for each in scores]
    batches = [task.batch(TEXTS[k:] + TEXTS[:k], known[k:] + known[:k]) for k in range(5)]
    return Small(
        task,
        model,
        tokenizer,
        batches,
        {"texts": TEXTS, "labels": scores},
        "0.5",
        {"text": TEXTS[0]},
    )


def reward_model() -> Small:
    tokenizer = bert_tokenizer(eos_token="[SEP]")
    model = bert(tokenizer, id2label={0: "score"})
    task = RewardModel.from_model(model, tokenizer)
    rejected = (*TEXTS[1:], TEXTS[0])
    batches = [task.pairs(TEXTS[k:], TEXTS[: 5 - k], rejected[: 5 - k]) for k in range(4)]
    inputs = {
        "prompt": [*TEXTS[:3], None],
        "completion": TEXTS[1:],
        "rejected": [TEXTS[4], TEXTS[0], TEXTS[0], None],
    }
    own = {"prompt": TEXTS[0], "completion": TEXTS[1], "rejected": TEXTS[4]}
    return Small(task, model, tokenizer, batches, {"inputs": inputs}, "completion", own)


SMALL: Mapping[str, Callable[[], Small]] = {
    "regression": regression,
    "reward-model": reward_model,
}
"""By the tasks' registered names."""


def record(path: Path, small: Small) -> stagelens.Run:
    """The run, with its set ``test``."""
    torch.manual_seed(0)
    small.model.train()
    with closing(stagelens.Recorder(path, small.task)) as recorder:
        for number, name in enumerate(STAGES):
            optimizer = torch.optim.AdamW(small.model.parameters(), lr=2e-3)
            with recorder.stage(
                name, model=small.model, optimizer=optimizer, on_problem="raise"
            ) as stage:
                batches = (small.batches * 2)[number : number + 4]
                train(small.task, small.model, optimizer, batches, stage=stage)
        recorder.add_set("test", **small.examples)
    small.model.eval()
    return stagelens.open_run(path)


def trained(path: Path, stage: str, small: Small, out: Path) -> stagelens.Run:
    """One stage by a Trainer, whose callback is left to find the task."""
    transformers.Trainer(
        small.model,
        transformers.TrainingArguments(
            str(out), max_steps=3, per_device_train_batch_size=1, report_to=[], use_cpu=True,
            save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        ),
        train_dataset=small.batches,
        data_collator=lambda batches: dict(batches[0]),
        processing_class=small.processor,
        callbacks=[stagelens.StageRecorderCallback(path, stage, on_problem="raise")],
    ).train()  # fmt: skip
    return stagelens.open_run(path)
