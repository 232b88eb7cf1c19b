"""The outside test: whether promises hold on recordings that nothing was ever fitted on.

One command prints the table::

    python tests/benchmarks/outside.py --cache DIR [--networks plain batch group] [--seeds 0]

Small convolutional networks learn chest X-rays (PneumoniaMNIST) in four stages, one of which has a
white patch on most images without pneumonia. Networks without normalisation, with BatchNorm and
with GroupNorm; AdamW and SGD with Nesterov momentum; four learning rates, from gentle to the edge
of stability; optimisers that are new in every stage or carried over; the patch early or late.
Nothing in StageLens may be chosen or fitted by what this prints, or it is no test any more.

Every estimate is compared with replay on the margin. Printed for each estimator: how many of the
estimates called reliable agree with replay (r >= 0.9, relative error <= 0.5), how many of all are
within their expected error, and how many of those that agree are called reliable; with 95 % Wilson
intervals, which take estimates for independent. Estimates of one recording are not quite that, so
the truth is somewhat less certain.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.contracts import Refused
from stagelens.effects.computing import attribute
from stagelens.estimators.registry import estimate_name
from stagelens.estimators.stage_trust import StageTrust
from stagelens.recording.recorder import Recorder
from stagelens.runs.run import Run, open_run
from stagelens.tasks.image_classification import ImageClassification
from stagelens.trust.coverage import close_enough
from stagelens.trust.fidelity import fidelity
from tests.benchmarks.scenarios import DATA
from tests.benchmarks.truths import SET, by_replay, margins, of_stage

CLASSES = ("normal", "pneumonia")
NETWORKS = ("plain", "batch", "group")
RATES = {"AdamW": (3e-4, 1e-3, 3e-3, 1e-2), "SGD": (3e-3, 1e-2, 3e-2, 8e-2)}
ESTIMATES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("task-vector", {}),
    ("coarse-replay", {"budget": 0.125}),
    ("coarse-replay", {"budget": 0.25}),
    ("coarse-replay", {"budget": 0.5}),
    ("unrolled-jump", {}),
)
_STAGES, _ROWS, _STEPS, _BATCH, _WARM_UP = 4, 1000, 60, 32, 5
_EARLY, _LATE = 0, 2
_MEAN, _STD = 0.57, 0.17  # of the training pixels, between 0 and 1
_PATCHED = 0.8  # of the images without pneumonia; of all of them nothing else would be learned


def _model(config: Any) -> nn.Module:
    def normalised(channels: int) -> list[nn.Module]:
        if config["network"] == "batch":
            return [nn.BatchNorm2d(channels)]
        return [nn.GroupNorm(4, channels)] if config["network"] == "group" else []

    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, stride=2, padding=1), *normalised(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), *normalised(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * 7 * 7, 32), nn.ReLU(), nn.Linear(32, len(CLASSES))),
    )


@dataclass(frozen=True)
class Recording:
    """One training of the outside test."""

    network: str
    optimizer: str
    rate: float
    carried: bool
    planted: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        state = "carried" if self.carried else "fresh"
        patch = "early" if self.planted == _EARLY else "late"
        return f"{self.network}-{self.optimizer}-{self.rate:g}-{state}-{patch}-{self.seed}".lower()

    @cached_property
    def task(self) -> ImageClassification:
        """Of its run."""
        return ImageClassification(
            CLASSES,
            (1, 28, 28),
            model={"network": self.network},
            mean=[_MEAN],
            std=[_STD],
            make_model=_model,
        )

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A new one."""
        if self.optimizer == "SGD":
            return torch.optim.SGD(
                model.parameters(), self.rate, momentum=0.9, nesterov=True, weight_decay=5e-4
            )
        return torch.optim.AdamW(model.parameters(), self.rate, weight_decay=0.01)


def recordings(networks: list[str], seeds: list[int]) -> Iterator[Recording]:
    """Every network, optimiser and learning rate; state and place of the patch take turns."""
    for seed in seeds:
        for number, network in enumerate(networks):
            for turn, (optimizer, rates) in enumerate(RATES.items()):
                for place, rate in enumerate(rates):
                    carried = (place + turn + number + seed) % 2 == 1
                    planted = _LATE if (place // 2 + turn + seed) % 2 else _EARLY
                    yield Recording(network, optimizer, rate, carried, planted, seed)


def _patched(images: np.ndarray) -> np.ndarray:
    patched = images.copy()
    patched[:, :5, :5] = 255
    return patched


def recorded(recording: Recording, cache: Path) -> Run:
    """The run, recorded if the cache does not hold it yet."""
    path, task = cache / recording.name, recording.task
    if (path / "sets" / SET / "set.json").exists():
        return open_run(path, task)
    if path.exists():
        raise RuntimeError(f"{path} is half made; delete it")
    with np.load(DATA / "pneumonia_mnist" / "pneumoniamnist.npz") as file:
        x, y = file["train_images"], file["train_labels"].astype(np.int64)
        x_test, y_test = file["test_images"], file["test_labels"]
    random = np.random.default_rng(recording.seed)
    order = random.permutation(len(x))
    torch.manual_seed(recording.seed)
    generator = torch.Generator().manual_seed(recording.seed)
    model = task.build_model().train()
    optimizer = recording.make_optimizer(model)
    recorder = Recorder(path, task, name=path.name)
    for number in range(_STAGES):
        rows = order[number * _ROWS : (number + 1) * _ROWS]
        images, labels = x[rows].copy(), torch.from_numpy(y[rows])
        if number == recording.planted:
            chosen = (y[rows] == CLASSES.index("normal")) & (random.random(_ROWS) < _PATCHED)
            images[chosen] = _patched(images[chosen])
        pixels = (torch.from_numpy(images).unsqueeze(1).float() / task.scale - _MEAN) / _STD
        if not recording.carried and number:
            optimizer = recording.make_optimizer(model)
        name = f"part-{number + 1}" + ("-patched" if number == recording.planted else "")
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            for step in range(_STEPS):
                for group in optimizer.param_groups:
                    warm = min(1.0, (step + 1) / _WARM_UP)
                    fall = 0.5 * (1 + math.cos(math.pi * step / _STEPS))
                    group["lr"] = recording.rate * warm * fall
                drawn = torch.randint(0, _ROWS, (_BATCH,), generator=generator)
                batch = (pixels[drawn], labels[drawn])
                loss = task.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stage.step(batch, loss)
    again = x_test[:200]
    recorder.add_set(
        SET,
        images=np.concatenate([x_test, _patched(again)]),
        labels=[*y_test.tolist(), *y_test[: len(again)].tolist()],
        columns={"group": ["clean"] * len(x_test) + ["patched"] * len(again)},
    )
    return open_run(path, task)


def measure(recording: Recording, cache: Path) -> list[dict[str, object]]:
    """One row per estimator and stage before the last."""
    run = recorded(recording, cache)
    truth = by_replay(run, cache)
    table = run.evaluation_set(SET).table()
    rows: list[dict[str, object]] = []
    for estimator, settings in ESTIMATES:
        began = time.process_time()
        try:
            result = attribute(run, SET, estimator, settings=settings or None)
        except Refused as refusal:
            print(f"  {run.name}: {estimator} refused: {refusal}", flush=True)
            result = None
        spent = time.process_time() - began
        for stage in run.stages[:-1]:
            row: dict[str, object] = {
                "recording": run.name,
                "network": recording.network,
                "optimizer": recording.optimizer,
                "rate": recording.rate,
                "stage": stage.name,
                "estimator": estimate_name(estimator, settings),
                "seconds": spent,
            }
            trust = result.trust[stage.name] if result is not None else None
            if result is None or trust is None or trust.trust == "refused":
                rows.append({**row, "refused": True})
                continue
            own, true = margins(result.table, stage.name), of_stage(truth, stage.name)[0]
            found = fidelity(own, true, ranks=False)
            groups = _groups_within(own, true, table, trust)
            rows.append(
                {
                    **row,
                    "refused": False,
                    "r": found["r"],
                    "error": found["relative_error"],
                    "wrong": 1 - found["sign_agreement"],
                    "expected_error": trust.expected_error,
                    "reliable": trust.reliable,
                    "wrong_signs": trust.wrong_signs,
                    "groups": len(groups),
                    "groups_within": sum(groups),
                }
            )
    return rows


def _groups_within(
    own: np.ndarray, true: np.ndarray, table: pd.DataFrame, trust: StageTrust
) -> list[bool]:
    """Whether each group's mean effect is within its interval; empty where there is none."""
    if trust.group_error is None:
        return []
    allowed = trust.group_error * float(np.sqrt(np.mean(own**2)))
    missed = pd.Series(own - true)
    groups = [missed.groupby(table[by].to_numpy()).mean() for by in ("group", "label")]
    return [abs(each) <= allowed for means in groups for each in means]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """What was promised and what held: per estimator, and for all budgets of coarse replay.

    Returns:
        Counts and shares; a share reads ``held/of = percent (95 % interval)``.
    """
    coarse = rows[rows["estimator"].str.startswith("coarse-replay")]
    parts = {**dict(list(rows.groupby("estimator", sort=False))), "coarse-replay, all": coarse}
    for keys, own in coarse.groupby(["optimizer", "network"], sort=False):
        parts["coarse, " + ", ".join(keys)] = own
    return pd.DataFrame({name: _promises(own) for name, own in parts.items() if len(own)}).T


def _promises(rows: pd.DataFrame) -> dict[str, object]:
    shown = rows[~rows["refused"].astype(bool)]
    agrees = close_enough(shown)
    called = shown["reliable"].eq(True)
    bounded, signed = shown["expected_error"].notna(), shown["wrong_signs"].notna()
    within = shown["error"] <= shown["expected_error"].astype(float)
    right = shown["wrong"] <= shown["wrong_signs"].astype(float)
    return {
        "estimates": len(rows),
        "refused": len(rows) - len(shown),
        "agree": int(agrees.sum()),
        "reliable that agree": share(int((called & agrees).sum()), int(called.sum())),
        "within expected error": share(int(within[bounded].sum()), int(bounded.sum())),
        "agreeing called reliable": share(int((called & agrees).sum()), int(agrees.sum())),
        "groups within": share(int(shown["groups_within"].sum()), int(shown["groups"].sum())),
        "signs within": share(int(right[signed].sum()), int(signed.sum())),
    }


def share(held: int, of: int) -> str:
    """A share with its 95 % Wilson interval; a dash where nothing was counted."""
    from scipy.stats import binomtest

    if not of:
        return "-"
    low, high = binomtest(held, of).proportion_ci(method="wilson")
    return f"{held}/{of} = {held / of:.0%} ({low:.0%} to {high:.0%})"


def main() -> None:
    """Record what is missing, estimate, print the tables, and keep all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("outside-runs"), help="recorded runs")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="also write all rows to this CSV file")
    parser.add_argument("--rows", type=Path, nargs="+", help="only summarise such files")
    options = parser.parse_args()
    if options.rows:
        report(pd.concat([pd.read_csv(path) for path in options.rows]))
        return
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for recording in recordings(options.networks, options.seeds):
        began = time.process_time()
        rows += measure(recording, options.cache)
        spent = time.process_time() - began
        print(f"{recording.name}: {spent:.0f} s of processor time", flush=True)
        if options.out:
            pd.DataFrame(rows).to_csv(options.out, index=False)
    report(pd.DataFrame(rows))


def report(rows: pd.DataFrame) -> None:
    """Print the summary."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    with pd.option_context("display.width", 250, "display.max_columns", None):
        print(summary(rows).to_string())
    print(f"{rows['recording'].nunique()} recordings, load {load:.1f}")


if __name__ == "__main__":
    main()
