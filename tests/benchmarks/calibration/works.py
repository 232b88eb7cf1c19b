"""Data and models of the calibration bench's recordings."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stagelens.contracts import Task
from stagelens.tasks import CausalLM, TextClassification
from tests.benchmarks.calibration import texts
from tests.benchmarks.calibration.networks import BenchImages
from tests.benchmarks.calibration.recipes import Recipe
from tests.support.real_texts import CLASSES, Comments, goemotions, hatexplain

DATA = Path(os.environ.get("STAGELENS_DATA", Path(__file__).parents[4] / "shared" / "data"))
EXAMPLES = 240
"""Of every evaluation set; half of them carry the planted shortcut."""
ROWS = 500
"""Training examples of a stage."""

WIDTHS = {"mlp": 64, "cnn": 12, "residual": 16, "vit": 24}


@dataclass(frozen=True)
class Work:
    """What one recording trains.

    Attributes:
        task: Of the run.
        model: Makes the model that training starts from.
        batches: Per stage, from random rows of it to a batch of the task.
        evaluation: Arguments of ``Recorder.add_set``.
    """

    task: Task
    model: Callable[[], nn.Module]
    batches: list[Callable[[Tensor], Any]]
    evaluation: dict[str, Any]


def work(recipe: Recipe) -> Work:
    """What a recipe trains."""
    if recipe.family.network in ("bert", "encoder"):
        return _classified_texts(recipe)
    return _language(recipe) if recipe.family.network == "gpt" else _images(recipe)


@cache
def _pictures(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, H, W) images of 0 to 255 and their labels."""
    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        return (x.reshape(-1, 8, 8) * 15).astype(np.uint8), y.astype(np.int64)
    file = {"mnist": "mnist/mnist.npz", "fashion": "fashion_mnist/fashion_mnist_15k5k.npz"}[name]
    with np.load(DATA / file) as arrays:
        x, y = arrays["x_train"][:15000], arrays["y_train"][:15000]
    # Halved: means of 2 x 2 pixels, so that hundreds of recordings take minutes.
    small = x.reshape(-1, 14, 2, 14, 2).mean((2, 4))
    return small.astype(np.uint8), y.astype(np.int64)


def _images(recipe: Recipe) -> Work:
    images, labels = _pictures(recipe.family.data)
    random = np.random.default_rng(recipe.seed)
    order = random.permutation(len(images))
    test, rest = order[:EXAMPLES], order[EXAMPLES:]
    rows = min(ROWS, len(rest) // len(recipe.stages))
    kind, _, norm = recipe.family.network.partition(" ")
    size = images.shape[1]
    task = BenchImages(
        [str(c) for c in range(10)],
        (1, size, size),
        model={"kind": kind, "width": int(WIDTHS[kind] * recipe.width), "norm": norm or "none"},
    )
    batches = []
    for number, stage in enumerate(recipe.stages):
        own = rest[rows * number : rows * (number + 1)]
        x, y = _planted(stage.planted, images[own].copy(), labels[own].copy(), random)
        pixels, classes = torch.from_numpy(x).unsqueeze(1).float() / 255, torch.from_numpy(y)
        batches.append(_drawn(pixels, classes))
    half = EXAMPLES // 2
    shown = images[test].copy()
    _stamp(shown[half:])
    evaluation = {
        "images": shown,
        "labels": labels[test].tolist(),
        "columns": {"group": ["clean"] * half + ["stamped"] * (EXAMPLES - half)},
    }
    return Work(task, task.build_model, batches, evaluation)


def _drawn(pixels: Tensor, classes: Tensor) -> Callable[[Tensor], Any]:
    def batch(rows: Tensor) -> Any:
        rows = rows % len(classes)
        return pixels[rows], classes[rows]

    return batch


def _stamp(images: np.ndarray) -> None:
    corner = images.shape[1] // 5
    images[:, :corner, :corner] = 255


def _planted(
    kind: str, x: np.ndarray, y: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if kind == "shortcut":
        stamped = x[y == 6]
        _stamp(stamped)
        x[y == 6] = stamped
    elif kind == "noise":
        redrawn = random.random(len(y)) < 0.3
        y[redrawn] = random.integers(0, 10, int(redrawn.sum()))
    elif kind == "swapped":
        y = np.where(y == 3, 8, np.where(y == 8, 3, y))
    elif kind == "narrow":  # half of the classes only: the others are forgotten
        kept = y < 5
        x, y = x[kept], y[kept]
    return x, y


@cache
def _comments(name: str) -> Comments:
    return goemotions(DATA) if name == "emotions" else hatexplain(DATA, "train")


def _classified_texts(recipe: Recipe) -> Work:
    random = np.random.default_rng(recipe.seed)
    stages = []
    for number, stage in enumerate(recipe.stages):
        # Every second stage comes from the other source, as teams mix their data.
        other = "hate" if recipe.family.data == "emotions" else "emotions"
        source = recipe.family.data if number % 2 == len(recipe.stages) % 2 else other
        found = _comments(source).balanced(ROWS, random)
        stages.append(texts.planted(stage.planted, found, random))
    test = _comments(recipe.family.data).balanced(EXAMPLES, random)
    half = EXAMPLES // 2
    shown = [t if n < half else f"{t} {texts.TERM}" for n, t in enumerate(test.texts)]
    group = ["clean"] * half + ["stamped"] * (EXAMPLES - half)
    torch.manual_seed(recipe.seed)
    if recipe.family.network == "encoder":
        model, tokenizer = texts.pretrained(CLASSES, recipe.dropout)
    else:
        corpus = [*_comments("emotions").texts[:5000], *_comments("hate").texts[:5000]]
        tokenizer = texts.words(tuple(corpus))
        model = texts.bert(tokenizer, CLASSES, recipe.dropout)
    task = TextClassification.from_model(model, tokenizer, max_length=24)

    def batch_of(found: Comments) -> Callable[[Tensor], Any]:
        def batch(rows: Tensor) -> Any:
            part = found.take((rows % len(found.texts)).numpy())
            return task.batch(part.texts, part.labels)

        return batch

    evaluation = {"texts": shown, "labels": test.labels, "columns": {"group": group}}
    return Work(task, lambda: model, [batch_of(found) for found in stages], evaluation)


def _language(recipe: Recipe) -> Work:
    random = np.random.default_rng(recipe.seed)
    lines = texts.wikitext(DATA)
    order = random.permutation(len(lines))
    test = [lines[i] for i in order[:EXAMPLES]]
    rest = [lines[i] for i in order[EXAMPLES:]]
    rows = min(ROWS, len(rest) // len(recipe.stages))
    torch.manual_seed(recipe.seed)
    tokenizer = texts.words(tuple(lines))
    model = texts.gpt(tokenizer, recipe.dropout)
    task = CausalLM.from_model(model, tokenizer, max_length=24)
    batches = []
    for number, stage in enumerate(recipe.stages):
        own = rest[rows * number : rows * (number + 1)]
        own = texts.planted_language(stage.planted, own, _comments("emotions").texts, random)
        batches.append(_spoken(task, own))
    half = EXAMPLES // 2
    shown = [t if n < half else f"{texts.TERM} {t}" for n, t in enumerate(test)]
    group = ["clean"] * half + ["stamped"] * (EXAMPLES - half)
    return Work(task, lambda: model, batches, {"texts": shown, "columns": {"group": group}})


def _spoken(task: CausalLM, lines: list[str]) -> Callable[[Tensor], Any]:
    return lambda rows: task.batch([lines[int(row) % len(lines)] for row in rows])
