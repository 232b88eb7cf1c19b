"""A small run of each task that comes with StageLens: three stages, recorded within a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import stagelens
from stagelens.contracts import Example
from stagelens.tasks import (
    MaskedLM,
    MultiLabelClassification,
    Regression,
    RewardModel,
    SentenceEmbeddings,
    Seq2Seq,
    TokenClassification,
    TransformersImageClassification,
)
from tests.support import small_texts
from tests.support.loops import train
from tests.support.small_texts import CLASSES, TEXTS, bert, bert_tokenizer

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


def multi_label() -> Small:
    tokenizer = bert_tokenizer()
    model = bert(tokenizer, problem_type="multi_label_classification")
    task = MultiLabelClassification.from_model(model, tokenizer)
    labels = [["calm"], ["loud", "odd"], [], None, "calm, odd"]
    known = [each or [] for each in labels]
    batches = [task.batch(TEXTS[k:] + TEXTS[:k], known[k:] + known[:k]) for k in range(5)]
    examples = {"texts": TEXTS, "labels": labels}
    return Small(task, model, tokenizer, batches, examples, "calm", {"text": TEXTS[0]})


def tagging() -> Small:
    tokenizer = bert_tokenizer()
    model = bert(tokenizer, auto=transformers.AutoModelForTokenClassification)
    task = TokenClassification.from_model(model, tokenizer)
    labels = [[CLASSES[len(word) % 3] for word in text.split()] for text in TEXTS]
    batches = [task.batch(TEXTS[k : k + 3], labels[k : k + 3]) for k in range(3)] * 2
    examples = {"texts": [text.split() for text in TEXTS], "labels": [*labels[:4], None]}
    typed = " ".join(labels[0])
    return Small(task, model, tokenizer, batches, examples, typed, {"text": TEXTS[0]})


def masked_lm() -> Small:
    tokenizer = bert_tokenizer(mask_token="[MASK]")
    model = bert(tokenizer, auto=transformers.AutoModelForMaskedLM)
    task = MaskedLM.from_model(model, tokenizer)
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.4, seed=0)
    rows = [tokenizer(text) for text in TEXTS]
    batches = [dict(collator(rows[k : k + 3])) for k in range(3)] * 2
    texts = ["the [MASK] sat on the mat", TEXTS[1], "two and [MASK] [MASK] four"]
    examples = {"texts": texts, "labels": ["cat", None, "two make"]}
    return Small(task, model, tokenizer, batches, examples, "cat", {"text": texts[0]})


def seq2seq() -> Small:
    tokenizer = bert_tokenizer()
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
        pad_token_id=0, eos_token_id=3, decoder_start_token_id=0, dropout_rate=0.1,
    )  # fmt: skip
    model = small_texts.made(transformers.AutoModelForSeq2SeqLM, config)
    task = Seq2Seq.from_model(model, tokenizer)
    turned = [" ".join(text.split()[::-1]) for text in TEXTS]
    pairs = [{"prompts": TEXTS[k : k + 3], "completions": turned[k : k + 3]} for k in range(3)]
    inputs = {"prompt": TEXTS, "completion": turned, "rejected": [TEXTS[0], *[None] * 4]}
    own = {"prompt": TEXTS[0], "completion": turned[0], "rejected": TEXTS[0]}
    batches = [task.batch(**each) for each in pairs] * 2
    return Small(task, model, tokenizer, batches, {"inputs": inputs}, None, own)


def embeddings() -> Small:
    tokenizer = bert_tokenizer()
    model = bert(tokenizer, auto=transformers.AutoModel)
    task = SentenceEmbeddings.from_model(model, tokenizer)
    other = TEXTS[::-1]
    batches = [task.batch(TEXTS[k:], other[k:], [0.5] * (5 - k)) for k in range(3)]
    batches *= 2
    inputs = {"text": TEXTS, "other": other, "rejected": [TEXTS[1], *[None] * 4]}
    examples = {"inputs": inputs, "labels": [0.1, 0.9, None, 1, 0]}
    own = {"text": TEXTS[0], "other": other[0], "rejected": TEXTS[1]}
    return Small(task, model, tokenizer, batches, examples, "0.1", own)


def images() -> Small:
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=24, id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip
    model = small_texts.made(transformers.AutoModelForImageClassification, config)
    processor = transformers.ViTImageProcessor(
        size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]
    )
    task = TransformersImageClassification.from_model(model, processor)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    known = [Example(str(n), {"image": each}, CLASSES[n % 3]) for n, each in enumerate(pixels)]
    batches = [task.collate(known[k : k + 4]) for k in range(3)] * 2
    labels = [each.label for each in known[:5]]
    return Small(
        task, model, processor, batches, {"images": pixels, "labels": [*labels, None]}, "calm"
    )


SMALL: Mapping[str, Callable[[], Small]] = {
    "regression": regression,
    "reward-model": reward_model,
    "multi-label-classification": multi_label,
    "token-classification": tagging,
    "masked-lm": masked_lm,
    "seq2seq": seq2seq,
    "sentence-embeddings": embeddings,
    "transformers-image-classification": images,
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
