"""The wall time of coarse replay against that of the replays that it stands for.

One command prints the ratios, without the effects pass::

    python tests/benchmarks/wall.py --cache DIR [--seed 3] [--times 3] [--scenarios NAME ...]

Both leave out every stage of a run, in turn and in one process; what is printed is the median.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.contracts import no_progress
from stagelens.estimators.coarse_replay import CoarseReplay
from stagelens.estimators.protocol import Estimator
from stagelens.estimators.replay import Replay
from stagelens.runs.run import Run
from tests.benchmarks.scenarios import SCENARIOS, recorded

BUDGETS = (1 / 8, 1 / 4)


def seconds(run: Run, estimator: Estimator) -> float:
    """Time for every stage's counterfactual."""
    began = time.perf_counter()
    for _ in estimator.counterfactuals(run, run.stages, no_progress):
        pass
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("benchmark-runs"), help="recorded runs")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--times", type=int, default=3, help="how often each is timed")
    names = ["fashion-adamw-3e-4", "fashion-adamw-2e-3"]
    parser.add_argument("--scenarios", nargs="+", default=names, choices=SCENARIOS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.scenarios:
        run = recorded(SCENARIOS[name], options.seed, options.cache)
        found: dict[float, list[float]] = {budget: [] for budget in BUDGETS}
        replays = []
        for _ in range(options.times):
            replays.append(seconds(run, Replay()))
            for budget, ratios in found.items():
                ratios.append(seconds(run, CoarseReplay(budget)) / replays[-1])
        said = "; ".join(f"1/{1 / b:.0f}: {statistics.median(r):.2f}" for b, r in found.items())
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
        print(
            f"{name}: {len(run.stages)} stages; replays {statistics.median(replays):.1f} s; coarse "
            f"replay as a share of it, {said} (goal at 1/8: <= 0.25); load {load:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
