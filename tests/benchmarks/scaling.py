"""How the work grows: with parameters, steps and examples, and over processes.

``python tests/benchmarks/scaling.py parameters|steps|examples|passes|processes`` prints the times
and, for growth, the exponent fitted in logarithms: 1 is linear. Every kind takes less than three
minutes; ``--largest`` bounds the parameters.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

import stagelens
from stagelens.effects.computing import effect_table
from stagelens.estimators.coarse_replay import CoarseReplay
from stagelens.estimators.protocol import Counterfactual, Estimator
from stagelens.estimators.replay import Replay
from stagelens.estimators.stage_trust import StageTrust
from stagelens.estimators.unrolled import UnrolledJump
from stagelens.measuring.models import BATCH_SIZE
from stagelens.measuring.placed import Placed
from stagelens.runs.batches import to_device
from stagelens.runs.run import Run
from stagelens.runs.states import load_into
from stagelens.tasks import ImageClassification

SIDE = 16
BATCH = 16
ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")


def task_of(parameters: float) -> ImageClassification:
    """An MLP of two hidden layers with about so many parameters."""
    inputs = SIDE * SIDE + 11
    width = round((-inputs + (inputs**2 + 4 * parameters) ** 0.5) / 2)
    model = {"kind": "mlp", "hidden": [max(width, 1)] * 2}
    return ImageClassification([str(n) for n in range(10)], (1, SIDE, SIDE), model=model)


def recorded(
    path: Path, task: ImageClassification, steps: int, examples: int, stages: int = 2
) -> Run:
    """A run by SGD, which has no state, so that the largest models fit; and a set."""
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    recorder = stagelens.Recorder(path, task)
    for number in range(stages):
        with recorder.stage(f"stage {number}", model=model, optimizer=optimizer) as stage:
            for _ in range(steps):
                batch = torch.rand(BATCH, 1, SIDE, SIDE), torch.randint(10, (BATCH,))
                loss = task.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stage.step(batch, loss)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (examples, SIDE, SIDE), dtype=np.uint8)
    recorder.add_set("test", images=images, labels=random.integers(0, 10, examples).tolist())
    return recorder.run()


def seconds(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """b of ``time = a size^b``."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def estimated(run: Run, estimator: Estimator) -> Callable[[], object]:
    return lambda: list(estimator.counterfactuals(run, run.stages[:1], lambda *_: None))


def measured(run: Run) -> Callable[[], object]:
    """The effects pass: the final model and one without a stage."""
    stage = run.stages[0]
    trust = StageTrust(stage=stage.name, estimator="hand", trust="exact", reason="As it was.")
    without = [Counterfactual(stage.name, stage.start().model, trust)]
    return lambda: effect_table(run, run.evaluation_set("test"), without, "hand")


KINDS: dict[str, Callable[[Run], Callable[[], object]]] = {
    "coarse-replay": lambda run: estimated(run, CoarseReplay(0.25)),
    "unrolled-jump": lambda run: estimated(run, UnrolledJump()),
    "replay": lambda run: estimated(run, Replay()),
    "effects": measured,
}


COPIES = {"coarse-replay": 12, "unrolled-jump": 12, "replay": 6, "effects": 5}
"""How many copies of the weights each holds at most, about."""


def fits(run: Run, name: str) -> bool:
    """Whether it leaves others half of the memory that is free."""
    weights = sum(t.numel() * t.element_size() for t in run.last.end().model.values())
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return COPIES[name] * weights < 0.5 * 1024 * int(facts["MemAvailable"].split()[0])


def growth(what: str, sizes: Sequence[float], make: Callable[[Path, float], Run]) -> None:
    """Print times by size, and the exponents of all sizes and of the larger half."""
    rows: dict[str, dict[float, float]] = {name: {} for name in KINDS}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            run = make(Path(folder) / "run", size)
            run.digest  # noqa: B018 - read once, before anything is timed
            for name in filter(partial(fits, run), KINDS):
                work = KINDS[name](run)
                repeats = 3 if size < sizes[-1] else 2
                rows[name][size] = min(seconds(work) for _ in range(repeats))
            told = "  ".join(f"{n} {t[size]:8.4f} s" for n, t in rows.items() if size in t)
            print(f"{what} {size:12,.0f}  {told}", flush=True)
    for name, taken in rows.items():
        own, times = list(taken), list(taken.values())
        upper = min(len(own) // 2, len(own) - 2)
        print(
            f"{name}: exponent {exponent(own, times):.2f} over all, "
            f"{exponent(own[upper:], times[upper:]):.2f} over the larger half"
        )


def passes(examples: int) -> None:
    """Cost of an example in the effects pass, against a plain loop of forward passes."""
    model = {"kind": "cnn", "channels": [32, 64], "hidden": 128}
    task = ImageClassification([str(n) for n in range(10)], (1, SIDE, SIDE), model=model)
    with tempfile.TemporaryDirectory() as folder:
        run = recorded(Path(folder) / "run", task, 2, examples)
        weights = [run.last.end().model, run.stages[0].start().model]
        module = Placed(task.build_model())
        batches = [
            to_device(task.collate(batch), module.device)
            for batch in run.evaluation_set("test").batches(BATCH_SIZE)
        ]

        @torch.inference_mode()
        def plain() -> None:
            for one in weights:
                load_into(module.model, one)
                for batch in batches:
                    task.outputs(module.model, batch)

        effects = measured(run)
        ratios = []
        for _ in range(5):
            ratios.append(seconds(effects) / seconds(plain))
        per = seconds(plain) / len(weights) / examples
        print(f"device {module.device}; a plain forward pass takes {1e6 * per:.1f} us an example")
        ratio = statistics.median(ratios)
        print(
            f"the effects pass takes {ratio:.2f} plain passes (utilisation {1 / ratio:.2f}): it "
            "also reads and collates the examples, computes behaviours and makes the table"
        )


def over_processes(counts: Sequence[int]) -> None:
    """Speed-up of one command over processes, start included and not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        recorded(path, task_of(4e5), 1500, 6000, stages=5)
        taken = {}
        for count in counts:
            for name in ("empty", "work"):
                copy = Path(folder) / f"{name}-{count}"
                subprocess.run(["cp", "-r", path, copy], check=True)
                estimator = "task-vector" if name == "empty" else "replay"
                words = ("-m", "stagelens", "attribute", str(copy), "--estimator", estimator)
                words += ("--stage", "stage 4") if name == "empty" else ()
                launch = ("-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu")
                more = ("--num_processes", str(count), "--main_process_port", "0", *FLAGS)
                command = [sys.executable, *((*launch, *more) if count > 1 else ()), *words]
                taken[name, count] = seconds(
                    lambda command=command: subprocess.run(
                        command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL
                    )
                )
                print(f"{count} processes, {name}: {taken[name, count]:.1f} s", flush=True)
    first = counts[0]
    for count in counts[1:]:
        whole = taken["work", first] / taken["work", count]
        work = [taken["work", n] - taken["empty", n] for n in (first, count)]
        print(
            f"speed-up on {count} processes: {whole:.2f} of the command, {work[0] / work[1]:.2f} "
            "of its work (without what starting, one table and printing take)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", nargs="+")
    parser.add_argument("--largest", type=float, default=300e6, help="parameters")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()}")
    if "parameters" in options.kind:
        sizes = [n for n in (1e5, 1e6, 1e7, 3e7, 1e8, 3e8) if n <= options.largest]
        growth("parameters", sizes, lambda path, n: recorded(path, task_of(n), 3, 256))
    if "steps" in options.kind:
        growth("steps", (50, 200, 800), lambda path, n: recorded(path, task_of(1e5), int(n), 256))
    if "examples" in options.kind:
        make = lambda path, n: recorded(path, task_of(1e5), 3, int(n))  # noqa: E731
        growth("examples", (1_000, 4_000, 16_000, 64_000), make)
    if "passes" in options.kind:
        passes(6_000)
    if "processes" in options.kind:
        over_processes((1, 2))
    print(f"load {os.getloadavg()}")


if __name__ == "__main__":
    main()
