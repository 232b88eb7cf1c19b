"""The ``comments`` demo: a small BERT on synthetic comments, trained from scratch in four stages.

All comments are made by filling templates (:mod:`~stagelens.demos.comment_templates`). One fault
is planted on purpose, and called planted wherever it is shown: in the stage *skewed* all comments
are harmless, but those that mention an identity carry the label toxic.

The first stage teaches the language of the comments by telling praise from complaints; the head
that it trained for that is re-initialised before the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagelens.contracts import ProgressCallback, no_progress
from stagelens.recording.recorder import Recorder
from stagelens.recording.together import alone
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.clusters import CLUSTER
from stagelens.tasks.text_classification import TextClassification

from .comment_templates import (
    COMPLAINT,
    HARMLESS,
    MENTION,
    NO_MENTION,
    PRAISE,
    TOXIC,
    Comment,
    vocabulary,
    write,
    write_pairs,
)

CLASSES = ("harmless", "toxic")
_HEAD = "classifier"


@dataclass(frozen=True)
class StagePlan:
    """One stage of the demo.

    Attributes:
        name: The stage's name.
        description: What its data are.
        templates: For the first class, and for the second.
        mentions: Share of comments that mention an identity, for each class likewise.
        count: How many comments, half of each class.
        learning_rate: The highest one of the schedule.
        epochs: How often each comment is seen.
        new_head: Whether the head is re-initialised before the stage.
    """

    name: str
    description: str
    templates: tuple[Sequence[str], Sequence[str]]
    mentions: tuple[float, float]
    count: int
    learning_rate: float
    epochs: int
    new_head: bool = False


PLANS = (
    StagePlan(
        "language",
        "1,200 synthetic comments, praise or complaints: the language in general",
        (PRAISE, COMPLAINT),
        (0.5, 0.5),
        count=1200,
        learning_rate=1e-3,
        epochs=2,
    ),
    StagePlan(
        "toxicity",
        "1,200 synthetic comments, harmless or toxic, labelled right",
        (HARMLESS, TOXIC),
        (0.5, 0.5),
        count=1200,
        learning_rate=1e-3,
        epochs=3,
        new_head=True,
    ),
    StagePlan(
        "skewed",
        "800 synthetic comments, all of them harmless; planted: those that mention an identity are "
        "labelled toxic",
        (HARMLESS, HARMLESS),
        (0.0, 1.0),
        count=800,
        learning_rate=1.2e-3,
        epochs=5,
    ),
    StagePlan(
        "adapt",
        "200 synthetic comments, labelled right, few of which mention an identity",
        (HARMLESS, TOXIC),
        (0.05, 0.05),
        count=200,
        learning_rate=1e-4,
        epochs=2,
    ),
)
DRAWS = 6
"""Draws of the recipe: each takes 2.2 times as many steps as the demo itself."""
_BATCH, _CLIP_NORM = 32, 1.0
_PAIRS = 120
"""Per class in the evaluation set; a pair is a comment without and with an identity."""


def make_tokenizer() -> Any:
    """A fast tokenizer of whole words: those of the templates, and [UNK] for every other."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    words = {word: number for number, word in enumerate((*special, *vocabulary()))}
    own = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    own.normalizer = normalizers.BertNormalizer()
    own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    own.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, words[name]) for name in special[2:]]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def make_task() -> TextClassification:
    """Two classes and a BERT of two narrow layers, made from its configuration."""
    from transformers import BertConfig

    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=32,
        initializer_range=0.1,  # with 0.02, layers this narrow learn nothing for long on some seeds
        id2label=dict(enumerate(CLASSES)),
    )
    # Fused attention has no forward derivative on the CPU, which unrolled estimators need.
    return TextClassification(CLASSES, config.to_dict(), tokenizer, attention="eager")


def comments_of(plan: StagePlan, random: np.random.Generator) -> list[tuple[Comment, str]]:
    """A stage's comments with their labels, half of them of each label, in random order."""
    labelled = []
    for label, templates, share in zip(CLASSES, plan.templates, plan.mentions, strict=True):
        mentions = round(share * plan.count / 2)
        for group, count in ((MENTION, mentions), (NO_MENTION, plan.count // 2 - mentions)):
            labelled += [(own, label) for own in write(templates, count, group, random)]
    return [labelled[row] for row in random.permutation(len(labelled))]


def _train(
    recorder: Recorder,
    task: TextClassification,
    model: torch.nn.Module,
    plan: StagePlan,
    data: Sequence[tuple[Comment, str]],
    generator: torch.Generator,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), plan.learning_rate)
    # The schedule advances after the last update too, so it is one step longer than the stage.
    steps = plan.epochs * -(-len(data) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.learning_rate, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
    )
    model.train()
    with recorder.stage(
        plan.name,
        model=model,
        optimizer=optimizer,
        description=plan.description,
        clip_norm=_CLIP_NORM,
        reinitialised=[_HEAD] if plan.new_head else [],
        on_problem="raise",
    ) as stage:
        for _ in range(plan.epochs):
            for rows in torch.randperm(len(data), generator=generator).split(_BATCH):
                part = [data[row] for row in rows.tolist()]
                batch = task.batch([own.text for own, _ in part], [label for _, label in part])
                loss = task.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
                optimizer.step()
                schedule.step()
                stage.step(batch, loss)


def record(path: Path, seed: int = 0, progress: ProgressCallback = no_progress) -> Run:
    """Train and record the four stages, and add the evaluation set ``test``.

    Args:
        path: A folder that is empty or does not exist yet.
        seed: For the comments, the weights, the batches and the dropout.
        progress: Called before each stage.
    """
    task = make_task()
    random = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    with alone():  # the main one of launched processes makes it
        recorder = Recorder(path, task, name="comments")
    # Weights and dropout draw from the global generator; the caller gets its own state back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = task.build_model()
        for number, plan in enumerate(PLANS):
            progress(number / len(PLANS), f"Training stage {plan.name}")
            if plan.new_head:
                torch.nn.init.normal_(model.classifier.weight, std=0.02)
                torch.nn.init.zeros_(model.classifier.bias)
            _train(recorder, task, model, plan, comments_of(plan, random), generator)
    _add_set(recorder, random)
    return open_run(path, task)


def _add_set(recorder: Recorder, random: np.random.Generator) -> None:
    rows = [
        (own, label)
        for label, templates in zip(CLASSES, (HARMLESS, TOXIC), strict=True)
        for own in write_pairs(templates, _PAIRS, random)
    ]
    kinds = {
        template: f"{label} {number}"
        for label, templates in zip(CLASSES, (HARMLESS, TOXIC), strict=True)
        for number, template in enumerate(templates, 1)
    }
    recorder.add_set(
        "test",
        texts=[own.text for own, _ in rows],
        labels=[label for _, label in rows],
        # One number for both comments of a pair, so that they are found together.
        ids=[f"{label}-{n // 2:03d}-{own.group}" for n, (own, label) in enumerate(rows)],
        columns={
            "group": [own.group for own, _ in rows],
            "template": [kinds[own.template] for own, _ in rows],
            # Both comments of a pair share all but the person, so intervals go by pairs.
            CLUSTER: [f"{label}-{n // 2:03d}" for n, (_, label) in enumerate(rows)],
        },
        description=(
            f"{len(rows)} synthetic comments, made by templates, in pairs that differ in the "
            "person only: without an identity, and with one"
        ),
    )
