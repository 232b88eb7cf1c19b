"""Small checkpoint folders of transformers models, as training leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.support.small_texts import CLASSES, TEXTS, bert, bert_tokenizer, gpt, gpt_tokenizer


def changed(model: nn.Module, seed: int, size: float = 0.05) -> nn.Module:
    """Move every parameter a little, as a stage of training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((size * noise).to(parameter.dtype))
    return model


def save(model: Any, folder: Path, tokenizer: Any = None, **options: Any) -> Path:
    """As ``save_pretrained`` writes it."""
    model.save_pretrained(folder, **options)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def classifiers(
    root: Path, names: Iterable[str] = ("base", "sft", "dpo"), **options: Any
) -> dict[str, Path]:
    """Checkpoints of one BERT classifier after each stage; the last has the tokenizer."""
    tokenizer = bert_tokenizer()
    return _stages(root, bert(tokenizer), tokenizer, list(names), options)


def language_models(
    root: Path, names: Iterable[str] = ("base", "sft", "dpo"), **options: Any
) -> dict[str, Path]:
    """Checkpoints of one GPT-2 after each stage; the last has the tokenizer."""
    tokenizer = gpt_tokenizer()
    return _stages(root, gpt(tokenizer), tokenizer, list(names), options)


def _stages(
    root: Path, model: Any, tokenizer: Any, names: list[str], options: dict[str, Any]
) -> dict[str, Path]:
    folders = {}
    for number, name in enumerate(names):
        last = number == len(names) - 1
        folders[name] = save(
            changed(model, number), root / name, tokenizer if last else None, **options
        )
    return folders


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def labelled_texts(path: Path) -> Path:
    """An evaluation file of a few texts with labels."""
    rows = [{"text": t, "label": CLASSES[n % 3], "group": n % 2} for n, t in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
