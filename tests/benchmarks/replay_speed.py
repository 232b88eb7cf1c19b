"""Replay against the training that it repeats: the same stages, in turn, in one process.

``python tests/benchmarks/replay_speed.py [NETWORK ...] [--steps N] [--times N] [--stages M ...]``

For every network it prints the seconds of a stage in a plain loop, without recording, and the ratio
that replaying this stage takes; and what all counterfactuals of a run of M stages take in passes of
the plain loop through one stage, of which M(M-1)/2 must be made: without the check that replay
repeats the recording, and with it, as it is made once per run and machine (M-1 more passes).

Loops and replays take turns, so that other load falls on both alike. Ratios are medians over the
turns, of wall time; of processor time in brackets.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import stagelens
from stagelens.contracts import Task, no_progress
from stagelens.demos import digits
from stagelens.estimators.replay import Replay
from stagelens.replaying.replay import replay_stage
from stagelens.runs.run import Run
from stagelens.tasks import CausalLM, ImageClassification

EXAMPLES = 2048


@dataclass(frozen=True)
class Work:
    """One network and what it is trained on; ``batch`` gives the examples of these rows."""

    task: Task
    model: nn.Module
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    batch: Callable[[Tensor], Any]
    size: int


def _images(task: ImageClassification, size: int, optimizer: Any) -> Work:
    x = torch.rand(EXAMPLES, *task.image_shape)
    y = torch.randint(len(task.classes), (EXAMPLES,))
    return Work(task, task.build_model(), optimizer, lambda rows: (x[rows], y[rows]), size)


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-3)


def digits_cnn() -> Work:
    """The network of the digits demo."""
    return _images(digits.make_task(), 32, _adamw)


def mlp() -> Work:
    """Two hidden layers, whose steps are so short that every other cost shows."""
    model = {"kind": "mlp", "hidden": [128, 64]}
    return _images(ImageClassification("0123456789", (1, 8, 8), model=model), 32, _sgd)


def larger_cnn() -> Work:
    """Three convolutions with BatchNorm on 28 x 28 pixels."""
    model = {
        "kind": "cnn",
        "channels": [16, 32, 64],
        "strides": [1, 2, 2],
        "hidden": 128,
        "batch_norm": True,
    }
    return _images(ImageClassification("0123456789", (1, 28, 28), model=model), 64, _adamw)


def transformer() -> Work:
    """A small GPT with dropout, whose random numbers are restored at every step."""
    from tests.support.small_texts import gpt, gpt_tokenizer

    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer, n_embd=64, n_layer=2, n_head=4)
    task = CausalLM.from_model(model, tokenizer)
    ids = torch.randint(len(tokenizer), (EXAMPLES, 32))

    def batch(rows: Tensor) -> Any:
        taken = ids[rows]
        return {"input_ids": taken, "attention_mask": torch.ones_like(taken), "labels": taken}

    return Work(task, model, _adamw, batch, 16)


NETWORKS: dict[str, Callable[[], Work]] = {
    "digits-cnn": digits_cnn,
    "mlp": mlp,
    "transformer": transformer,
    "larger-cnn": larger_cnn,
}


class Measured:
    """One network, recorded in ``stages`` stages of as many steps each."""

    def __init__(self, work: Work, stages: int, steps: int, path: Path) -> None:
        self.work = work
        generator = torch.Generator().manual_seed(0)
        self.rows = [
            torch.randint(EXAMPLES, (steps, work.size), generator=generator) for _ in range(stages)
        ]
        recorder = stagelens.Recorder(path, work.task)
        model = work.model.train()
        for number, rows in enumerate(self.rows):
            optimizer = work.optimizer(model)
            if number == stages - 1:
                self.start = copy.deepcopy(model)
            with recorder.stage(f"stage {number}", model=model, optimizer=optimizer) as stage:
                for chosen in rows:
                    batch = work.batch(chosen)
                    loss = work.task.loss(model, batch)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    stage.step(batch, loss)
        self.end = model
        self.run: Run = stagelens.open_run(path, work.task)

    def plain(self) -> nn.Module:
        """Train the last stage in a plain loop; the trained model."""
        work, model = self.work, copy.deepcopy(self.start)
        optimizer = work.optimizer(model)
        for chosen in self.rows[-1]:
            loss = work.task.loss(model, work.batch(chosen))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model

    def replayed(self) -> None:
        """Replay the last stage."""
        replay_stage(self.run.task, self.run.last)

    def counterfactuals(self) -> None:
        """The models without each stage but the last."""
        for _ in Replay().counterfactuals(self.run, self.run.stages[:-1], no_progress):
            pass

    def checked(self) -> None:
        """The same on a machine that has not checked its replays yet."""
        shutil.rmtree(self.run.path / "results" / "checks", ignore_errors=True)
        self.counterfactuals()


Times = tuple[float, float]
"""Seconds of wall time, and of the processors."""


def timed(work: Callable[[], object]) -> Times:
    wall, own = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - own


def ratio(found: list[Times], plain: list[Times]) -> str:
    """Median ratio, turn by turn."""
    wall, own = (
        statistics.median(f[kind] / p[kind] for f, p in zip(found, plain, strict=True))
        for kind in (0, 1)
    )
    return f"{wall:.2f} ({own:.2f})"


def in_turn(times: int, *works: Callable[[], object]) -> list[list[Times]]:
    """What each of these takes, in turns; a first turn warms up and is dropped."""
    taken: list[list[Times]] = [[] for _ in works]
    for turn in range(times + 1):
        for number in range(len(works)) if turn % 2 else reversed(range(len(works))):
            found = timed(works[number])
            if turn:
                taken[number].append(found)
    return taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--steps", type=int, default=400, help="of every stage")
    parser.add_argument("--times", type=int, default=7, help="turns")
    parser.add_argument("--stages", type=int, nargs="*", default=[4, 6], help="of the whole runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.networks:
        for stages in options.stages or [2]:
            with tempfile.TemporaryDirectory() as folder:
                torch.manual_seed(0)
                measured = Measured(NETWORKS[name](), stages, options.steps, Path(folder) / "run")
                once, whole = [measured.plain, measured.replayed], []
                if options.stages:
                    whole = [measured.counterfactuals, measured.checked]
                plain, *found = in_turn(options.times, *once, *whole)
                step = 1e3 * statistics.median(wall for wall, _ in plain) / options.steps
                said = f"a stage {ratio(found[0], plain)}"
                if whole:
                    passes = stages * (stages - 1) // 2
                    needed = [tuple(passes * t for t in times) for times in plain]
                    said += (
                        f"; all counterfactuals of {stages} stages, of {passes} passes, "
                        f"{ratio(found[1], needed)}, with the check of {stages - 1} more "
                        f"{ratio(found[2], needed)}"
                    )
                load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
                print(f"{name}: {step:.2f} ms per plain step; {said}; load {load:.1f}", flush=True)


if __name__ == "__main__":
    main()
