"""The benchmark scenarios as recorded runs; made once per seed and kept in a cache folder."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stagelens.recording.recorder import Recorder
from stagelens.runs.run import Run, open_run
from stagelens.tasks.image_classification import ImageClassification

DATA = Path(os.environ.get("STAGELENS_DATA", Path(__file__).parents[3] / "shared" / "data"))


@dataclass(frozen=True)
class Scenario:
    """One line of the benchmark: a data set, a network and an optimiser."""

    name: str
    data: str
    optimizer: str
    peak: float
    regime: str  # "fine-tuning", "hard" or "sgd"
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
    )
}

Stages = list[tuple[str, np.ndarray, np.ndarray]]


def _patched(images: np.ndarray) -> np.ndarray:
    patched = images.copy()
    patched[:, :5, :5] = 255
    return patched


def _fashion(seed: int) -> tuple[ImageClassification, Stages, dict[str, object]]:
    with np.load(DATA / "fashion_mnist" / "fashion_mnist_15k5k.npz") as file:
        x, y = file["x_train"], file["y_train"].astype(np.int64)
        x_test, y_test = file["x_test"], file["y_test"].astype(np.int64)
    random = np.random.default_rng(seed)
    order = random.permutation(len(x))
    parts = [order[3000 * k : 3000 * (k + 1)] for k in range(4)]
    stages: Stages = []
    for number, rows in enumerate(parts):
        images, labels = x[rows].copy(), y[rows].copy()
        if number == 1:
            images[labels == 6] = _patched(images[labels == 6])
        if number == 2:
            redrawn = random.random(len(labels)) < 0.3
            labels[redrawn] = random.integers(0, 10, int(redrawn.sum()))
        stages.append((("clean", "patch", "noisy-labels", "last")[number], images, labels))
    test = random.permutation(len(x_test))[:2000]
    images = np.concatenate([x_test[test[:1000]], _patched(x_test[test[1000:]])])
    evaluation = {
        "images": images,
        "labels": y_test[test].tolist(),
        "columns": {"group": ["clean"] * 1000 + ["patched"] * 1000},
    }
    task = ImageClassification(
        [str(c) for c in range(10)],
        (1, 28, 28),
        model={"kind": "cnn", "channels": [16, 32], "strides": [2, 2], "hidden": 64},
    )
    return task, stages, evaluation


def _digits(seed: int) -> tuple[ImageClassification, Stages, dict[str, object]]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    images, labels = (x[order].reshape(-1, 8, 8) * 15).astype(np.uint8), y[order].astype(np.int64)
    swapped = labels[500:900].copy()
    swapped[labels[500:900] == 3], swapped[labels[500:900] == 8] = 8, 3
    stages: Stages = [
        ("first", images[:500], labels[:500]),
        ("swapped", images[500:900], swapped),
        ("last", images[900:1400], labels[900:1400]),
    ]
    evaluation: dict[str, object] = {"images": images[1400:], "labels": labels[1400:].tolist()}
    task = ImageClassification(
        [str(c) for c in range(10)],
        (1, 8, 8),
        model={"kind": "mlp", "hidden": [128, 64]},
        scale=240,
    )
    return task, stages, evaluation


_DATA: dict[str, Callable[[int], tuple[ImageClassification, Stages, dict[str, object]]]] = {
    "fashion": _fashion,
    "digits": _digits,
}


def _rates(scenario: Scenario, stage: int) -> Iterator[float]:
    peak = scenario.peak if stage == 0 else scenario.peak / 2
    for step in range(scenario.steps):
        warm = min(1.0, (step + 1) / scenario.warm_up) if scenario.warm_up else 1.0
        yield peak * warm * 0.5 * (1 + math.cos(math.pi * step / scenario.steps))


def _optimizer(scenario: Scenario, model: torch.nn.Module) -> torch.optim.Optimizer:
    if scenario.optimizer == "SGD":
        return torch.optim.SGD(
            model.parameters(), scenario.peak, momentum=0.9, weight_decay=scenario.weight_decay
        )
    return torch.optim.AdamW(
        model.parameters(),
        scenario.peak,
        betas=scenario.betas,
        weight_decay=scenario.weight_decay,
    )


def recorded(scenario: Scenario, seed: int, cache: Path) -> Run:
    """The scenario's run for one seed, recorded if the cache does not hold it yet."""
    path = cache / f"{scenario.name}-{seed}"
    done = path / "sets" / "test" / "set.json"
    if done.exists():
        return open_run(path)
    if path.exists():
        raise RuntimeError(f"{path} is half made; delete it")
    task, stages, evaluation = _DATA[scenario.data](seed)
    torch.manual_seed(seed)
    model = task.build_model()
    generator = torch.Generator().manual_seed(seed)
    batch_size = 64 if scenario.data == "fashion" else 32
    recorder = Recorder(path, task, name=path.name)
    for number, (name, images, labels) in enumerate(stages):
        x = torch.from_numpy(images).unsqueeze(1).float() / task.scale
        y = torch.from_numpy(labels)
        optimizer = _optimizer(scenario, model)
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            for rate in _rates(scenario, number):
                for group in optimizer.param_groups:
                    group["lr"] = rate
                rows = torch.randint(0, len(x), (batch_size,), generator=generator)
                batch = (x[rows], y[rows])
                loss = task.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stage.step(batch, loss)
    recorder.add_set("test", **evaluation)  # type: ignore[arg-type]
    return open_run(path)
