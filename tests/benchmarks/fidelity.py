"""How well every estimator agrees with replay, on every benchmark scenario.

One command prints the table::

    python tests/benchmarks/fidelity.py --cache DIR [--seeds 3 4 5] [--scenarios NAME ...]

Seeds 0 to 2 were used to choose and calibrate, 3 to 5 are for reporting. Peers run where they are
installed (``pip install captum dattri``), on the first examples of the evaluation set.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.contracts import Refused
from stagelens.effects.computing import attribute
from stagelens.effects.results import Result
from stagelens.estimators import counterfactuals
from stagelens.estimators.unrolled import UnrolledScale
from stagelens.runs.run import Run
from stagelens.trust.fidelity import fidelity
from stagelens.trust.verification import load_noise, measure_noise
from tests.benchmarks import peers
from tests.benchmarks.goals import goals
from tests.benchmarks.scenarios import SCENARIOS, Scenario, recorded

BUDGETS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
PEER_EXAMPLES = 64
FIGURES = ("r", "rho", "slope", "relative_error", "sign_agreement")


def _margin(table: pd.DataFrame, stage: str) -> np.ndarray:
    rows = table[(table["stage"] == stage) & (table["behaviour"] == "margin")]
    return rows["effect"].to_numpy()


def _plain_sgd() -> UnrolledScale:
    return UnrolledScale(as_plain_sgd=True)


def estimators() -> dict[str, Callable[[Run], Result]]:
    """Name, as printed, to how its effects are computed."""
    counterfactuals.ESTIMATORS = {**counterfactuals.ESTIMATORS, "scale-as-plain-sgd": _plain_sgd}

    def by(name: str, **settings: float) -> Callable[[Run], Result]:
        return lambda run: attribute(run, "test", name, settings=settings or None)

    coarse = {f"coarse 1/{round(1 / b)}": by("coarse-replay", budget=b) for b in BUDGETS}
    return {
        "task vector": by("task-vector"),
        "unrolled jump": by("unrolled-jump"),
        "unrolled scale": by("unrolled-scale"),
        "scale as plain SGD": by("scale-as-plain-sgd"),
        **coarse,
    }


def measure(
    scenario: Scenario, seed: int, cache: Path, orders: int, wanted: set[str]
) -> list[dict[str, object]]:
    """All rows of one run."""
    run = recorded(scenario, seed, cache)
    truth = attribute(run, "test", "replay")
    stages = run.stages[:-1]
    rows: list[dict[str, object]] = []

    def note(name: str, stage: str, estimate: np.ndarray, true: np.ndarray, **more: object) -> None:
        row = {"scenario": scenario.name, "regime": scenario.regime, "seed": seed, "stage": stage}
        rows.append({**row, "estimator": name, **fidelity(estimate, true), **more})

    for name, compute in estimators().items():
        if wanted and name not in wanted:
            continue
        try:
            result = compute(run)
            trust = result.trust
        except Refused as refusal:
            result, trust = None, {}
            print(f"  {name} refused: {refusal}", flush=True)
        for stage in stages:
            true = _margin(truth.table, stage.name)
            own = trust.get(stage.name)
            refused = own is None or own.trust == "refused"
            estimate = np.full(len(true), np.nan)
            if result is not None and not refused:
                estimate = _margin(result.table, stage.name)
            note(
                name,
                stage.name,
                estimate,
                true,
                refused=refused,
                cost=own.cost if own else np.nan,
                wall=own.seconds / truth.trust[stage.name].seconds if own else np.nan,
                expected_error=own.expected_error if own else None,
                reliable=own.reliable if own else None,
            )
    if orders:
        measure_noise(run, "test", orders, lambda *_: None)
        noise = load_noise(run, truth.facts.set_digest)
        assert noise is not None
        for stage in stages:
            mine = noise[(noise["stage"] == stage.name) & (noise["behaviour"] == "margin")]
            true = _margin(truth.table, stage.name)
            for _, other in mine.groupby("order"):
                note("noise floor", stage.name, other["effect"].to_numpy(), true, refused=False)
    if scenario.data == "text":  # per-example gradients of 22M weights do not fit
        return rows
    examples = run.evaluation_set("test").examples(0, PEER_EXAMPLES)
    images, labels = run.task.collate(examples)
    for name, peer in peers.available().items():
        if (wanted and name not in wanted) or not peers.fits(name, run):
            continue
        for stage in stages:
            began = time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()):
                estimate = peer(run, stage, images, labels)
            true = _margin(truth.table, stage.name)[: len(estimate)]
            spent = time.perf_counter() - began
            wall = spent / truth.trust[stage.name].seconds
            note(name, stage.name, estimate, true, refused=False, wall=wall)
    return rows


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Median over seeds and stages, per scenario and estimator."""
    shown = [*FIGURES, "cost", "wall"]
    table = rows.groupby(["scenario", "estimator"], sort=False)[shown].median()
    table["refused"] = rows.groupby(["scenario", "estimator"], sort=False)["refused"].mean()
    table["cells"] = rows.groupby(["scenario", "estimator"], sort=False).size()
    return table


def main() -> None:
    """Measure, print the table, and keep all rows beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("benchmark-runs"), help="recorded runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    without_text = [name for name, scenario in SCENARIOS.items() if scenario.data != "text"]
    parser.add_argument("--scenarios", nargs="+", default=without_text, choices=SCENARIOS)
    parser.add_argument("--only", nargs="+", default=[], help="estimators, as printed")
    parser.add_argument("--orders", type=int, default=3, help="replays for the noise floor")
    parser.add_argument("--out", type=Path, help="also write all rows to this CSV file")
    parser.add_argument("--rows", type=Path, nargs="+", help="only summarise such files")
    options = parser.parse_args()
    if options.rows:
        report(pd.concat([pd.read_csv(path) for path in options.rows]))
        return
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    rows: list[dict[str, object]] = []
    for name in options.scenarios:
        for seed in options.seeds:
            began = time.perf_counter()
            rows += measure(SCENARIOS[name], seed, options.cache, options.orders, set(options.only))
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
            print(
                f"{name}, seed {seed}: {time.perf_counter() - began:.0f} s, load {load:.1f}",
                flush=True,
            )
            if options.out:
                pd.DataFrame(rows).to_csv(options.out, index=False)
    report(pd.DataFrame(rows))


def report(table: pd.DataFrame) -> None:
    """Print the summary, and the goals beside what was measured."""
    with pd.option_context("display.max_rows", None, "display.width", 200):
        print(summary(table).round(3).to_string())
    print("\n".join(goals(table)))


if __name__ == "__main__":
    main()
