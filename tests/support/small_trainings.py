"""Small trainings by ``transformers.Trainer``, as users write them, for tests to record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import Trainer, TrainingArguments

from tests.support.small_texts import TEXTS, bert, bert_tokenizer, gpt, gpt_tokenizer

KINDS = ("bert", "gpt")


def made(kind: str, **options: Any) -> tuple[Any, Any]:
    """A model with dropout, and its tokenizer."""
    if kind == "bert":
        tokenizer = bert_tokenizer()
        return bert(tokenizer, **options), tokenizer
    tokenizer = gpt_tokenizer(pad_token="<|endoftext|>")
    return gpt(tokenizer, **options), tokenizer


def examples(kind: str, tokenizer: Any, count: int = 22, seed: int = 0) -> list[dict[str, Any]]:
    """Tokenised texts, with labels; of a language model some do not count."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in torch.randint(len(TEXTS), (count,), generator=generator).tolist():
        ids = tokenizer(TEXTS[number])["input_ids"][:20]
        row: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        row["labels"] = number % 3 if kind == "bert" else [-100] * (number % 2) + ids[number % 2 :]
        rows.append(row)
    return rows


def collator(kind: str, tokenizer: Any) -> Any:
    """Fills a batch up."""
    if kind == "bert":
        return transformers.DataCollatorWithPadding(tokenizer)
    return transformers.DataCollatorForTokenClassification(tokenizer)


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    """Six short updates, quietly."""
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "max_steps": 6,
            "learning_rate": 5e-3,
            "weight_decay": 0.1,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "seed": 7,
            **settings,
        }
    )


def trainer(
    kind: str,
    model: nn.Module | Any,
    tokenizer: Any,
    args: TrainingArguments,
    *,
    seed: int = 0,
    make: type[Trainer] = Trainer,
    **options: Any,
) -> Trainer:
    """A Trainer on such examples.

    Args:
        kind: One of :data:`KINDS`.
        model: Trained in place.
        tokenizer: Its tokenizer.
        args: From :func:`arguments`.
        seed: Of the examples.
        make: A subclass.
        options: Further ones of the Trainer.
    """
    return make(
        model,
        args,
        **{
            "train_dataset": examples(kind, tokenizer, seed=seed),
            "eval_dataset": examples(kind, tokenizer, 6, seed=99),
            "data_collator": collator(kind, tokenizer),
            "processing_class": tokenizer,
            **options,
        },
    )
