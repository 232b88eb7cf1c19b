"""Whether a stage that was planted in one block is found there first: ``python -m ...network``.

A stage trains one block on a task of its own, with a mark in the input that decides the label;
all other parameters drift on the same gradients, by a small share of their size. The block with the
largest mean ``carried`` by size is the one that was found. Printed for all readings, with how far
the planted block moved beside the others: the largest change of weights alone would be a rival.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import stagelens
from stagelens.analyses.network.block_table import READINGS, Network, network_rows, strongest_block
from stagelens.analyses.network.blocks import blocks_of
from stagelens.analyses.network.measuring import measure_network
from stagelens.runs.states import model_tensors
from stagelens.tasks import ImageClassification

SEEDS = 20
_SIDE, _CLASSES = 8, 4
_DRIFT = 0.02
"""How far the other parameters get in all, at most, over the mean of their sizes."""
_STEPS = 60


class Encoder(nn.Module):
    """A small transformer that reads the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(_SIDE, 24)
        layer = nn.TransformerEncoderLayer
        self.layers = nn.ModuleList(
            [layer(24, 2, 48, dropout=0.0, batch_first=True, norm_first=True) for _ in range(3)]
        )
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embedding(images[:, 0])
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


def convolutional() -> nn.Module:
    """A small CNN with batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, stride=2), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, _CLASSES),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {"transformer": Encoder, "cnn": convolutional}


def make_model(config: Mapping[str, Any]) -> nn.Module:
    """The task's constructor."""
    return NETWORKS[config["network"]]()


@dataclass(frozen=True)
class Planted:
    """One seed: which block was trained, and which one was found by each reading."""

    block: str
    found: dict[str, str]
    farthest: str
    rest: float


def images(count: int, marked: bool, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Noise with a bright column that says the label; marks in a corner say another one."""
    labels = random.integers(_CLASSES, size=count)
    pixels = random.normal(size=(count, 1, _SIDE, _SIDE)).astype(np.float32)
    shown = random.integers(_CLASSES, size=count) if marked else labels
    pixels[np.arange(count), 0, :, 2 * shown] += 2.0
    if marked:
        pixels[np.arange(count), 0, 2 * labels, :2] = 4.0
    return torch.tensor(pixels), torch.tensor(labels)


def plant(kind: str, seed: int, folder: Path) -> Planted:
    """Record a run whose second stage is planted in one block, and look for it."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    names = [str(number) for number in range(_CLASSES)]
    task = ImageClassification(
        names, (1, _SIDE, _SIDE), model={"network": kind}, make_model=make_model
    )
    model = task.build_model()
    order = {path: place for place, (path, _) in enumerate(model.named_modules())}
    blocks = [b for b in blocks_of(model, list(model_tensors(model)), order) if b.kind != "norm"]
    # In turn, so that all kinds of blocks take part.
    block = blocks[seed % len(blocks)]
    recorder = stagelens.Recorder(folder, task, name=f"{kind}-{seed}")
    train(recorder, task, model, "learn", None, random)
    train(recorder, task, model, "planted", set(block.tensors), random)
    pixels, labels = images(256, True, random)
    recorder.add_set("test", images=pixels.numpy(), labels=[names[n] for n in labels])
    run = stagelens.open_run(folder, task)
    found = measure_network(run, "test", "planted", "replay")
    return Planted(block.name, {way: first(found, way) for way in READINGS}, *_others(found))


def first(found: Network, reading: Any) -> str:
    """Name of the block that is found first."""
    rows = network_rows(found, "margin", None, reading)
    place = strongest_block(rows)
    return "none" if place is None else str(rows["block"][place])


def _others(found: Network) -> tuple[str, float]:
    farthest = max(found.facts.blocks, key=lambda block: block.moved)
    rest, total = found.rest("margin"), found.total("margin")
    return farthest.name, float(np.linalg.norm(rest) / np.linalg.norm(total))


def train(
    recorder: stagelens.Recorder,
    task: ImageClassification,
    model: nn.Module,
    name: str,
    planted: set[str] | None,
    random: np.random.Generator,
) -> None:
    """A stage on all parameters, or on those of one block while the others drift."""
    own = dict(model.named_parameters())
    chosen = own if planted is None else {n: p for n, p in own.items() if n in planted}
    others = {n: p for n, p in own.items() if n not in chosen}
    groups: list[dict[str, Any]] = [{"params": list(chosen.values()), "lr": 5e-3}]
    if others:
        # Adam moves a parameter by its learning rate a step, whatever the size of its gradient.
        groups += [
            {"params": [p], "lr": _DRIFT * float(p.detach().abs().mean() + 1e-3) / _STEPS}
            for p in others.values()
        ]
    optimizer = torch.optim.Adam(groups)
    model.train()
    with recorder.stage(name, model=model, optimizer=optimizer) as stage:
        for _ in range(_STEPS):
            batch = images(64, planted is not None, random)
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stage.step(batch, loss)


def main(kinds: Sequence[str]) -> None:
    """Print how often the planted block was found first."""
    for kind in kinds:
        hits = dict.fromkeys([*READINGS, "moved"], 0)
        rests = []
        for seed in range(SEEDS):
            with tempfile.TemporaryDirectory() as folder:
                one = plant(kind, seed, Path(folder) / "run")
            for way, name in {**one.found, "moved": one.farthest}.items():
                hits[way] += name == one.block
            rests.append(one.rest)
            print(f"{kind} seed {seed:2}: {one.block:22} {one.found} moved {one.farthest}")
        print(
            f"{kind}: found first on {hits['carried']} of {SEEDS} seeds; by undone "
            f"{hits['undone']}, by alone {hits['alone']}; moved farthest {hits['moved']}; rest "
            f"{np.median(rests):.1%} of the effect (median)"
        )


if __name__ == "__main__":
    main(sys.argv[1:] or list(NETWORKS))
