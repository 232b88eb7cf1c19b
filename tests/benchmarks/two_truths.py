"""What a cheap estimate is about: this very order of the batches, or the recipe on average.

One command prints the tables::

    python tests/benchmarks/two_truths.py --cache DIR [--seeds 3 4 5] [--scenarios NAME ...]

Every estimate is compared with two truths, over the examples of the evaluation set:

- A, the effect by replay in the recorded order of the batches;
- B, the mean effect over all orders of the same batches within their stages, of which some (8 by
  default) are re-drawn.

The mean of a few orders misses B by noise of its own, whose expected squared length is the variance
over orders, summed over examples, divided by the number of orders. It lengthens the way from an
estimate to the mean, and the mean itself: so it is taken off the squares of both, and off the
variance that the correlation divides by.

The floor is printed with the estimates: another order against A, another order against the mean of
the remaining ones, and the recorded order against the same. ``knows`` says how much of what is
special about the recorded order (A - B) an estimate holds: 1 all, 0 nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.contracts import Refused
from stagelens.effects.computing import attribute
from stagelens.effects.results import Result
from stagelens.runs.run import Run
from stagelens.trust.fidelity import fidelity
from stagelens.trust.recipe import error_of_mean, noise_of_mean
from tests.benchmarks.scenarios import SCENARIOS, Scenario, recorded
from tests.benchmarks.truths import SET, by_other_orders, by_replay, margins, of_stage

ESTIMATES: dict[str, tuple[str, dict[str, float]]] = {
    "task-vector": ("task-vector", {}),
    "coarse-replay 1/8": ("coarse-replay", {"budget": 0.125}),
    "coarse-replay 1/4": ("coarse-replay", {"budget": 0.25}),
    "coarse-replay 1/2": ("coarse-replay", {"budget": 0.5}),
    "unrolled-jump": ("unrolled-jump", {}),
    "unrolled-scale": ("unrolled-scale", {}),
}
OTHER, RECORDED = "another order", "the recorded order"
CELL = ["scenario", "stage", "estimator", "seed"]
FIGURES = ("r", "slope", "error", "r_mean", "slope_mean", "error_mean", "knows")


def against_mean(estimate: np.ndarray, orders: np.ndarray) -> dict[str, float]:
    """How an estimate compares with B, the mean effect over all orders, of which some are known.

    Args:
        estimate: (N,) effects; independent of ``orders``.
        orders: (K, N) effects in K >= 2 re-drawn orders.

    Returns:
        ``r_mean``, ``slope_mean`` (truth on estimate) and ``error_mean`` (relative), with the
        noise of the mean of K orders taken off, ``error_mean_raw`` without, and ``size_mean``, the
        length of B. NaN where the mean is nothing but noise.
    """
    mean, noise = orders.mean(0), noise_of_mean(orders)
    centred = orders - orders.mean(1, keepdims=True)
    own, true = estimate - estimate.mean(), mean - mean.mean()
    spread = max(true @ true - noise_of_mean(centred), 0.0)
    apart, size = ((estimate - mean) ** 2).sum(), (mean**2).sum()
    left = max(size - noise, 0.0)
    return {
        "r_mean": min(_ratio(own @ true, np.sqrt(spread * (own @ own))), 1.0),
        "slope_mean": _ratio(estimate @ mean, estimate @ estimate),
        "error_mean": error_of_mean(estimate, orders),
        "error_mean_raw": np.sqrt(_ratio(apart, size)),
        "size_mean": np.sqrt(left),
    }


def knows(estimate: np.ndarray, recorded: np.ndarray, orders: np.ndarray) -> float:
    """How much of what is special about the recorded order an estimate holds: 1 all, 0 nothing.

    It is the weight of (A - B) where the estimate is explained by B and (A - B): least squares,
    with the noise of the known orders' mean taken off the products that hold it twice.
    """
    mean, noise = orders.mean(0), noise_of_mean(orders)
    special = recorded - mean
    both = np.stack([mean, special])
    # The noise is in the mean with one sign and in what is special with the other.
    products = both @ both.T - noise * np.asarray([[1, -1], [-1, 1]])
    if np.linalg.eigvalsh(products)[0] <= 0:  # nothing but noise
        return float("nan")
    return float(np.linalg.solve(products, both @ estimate)[1])


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")


def compared(
    estimate: np.ndarray, recorded: np.ndarray, orders: np.ndarray | None
) -> dict[str, float]:
    """Figures of one estimate against both truths; against A alone where no orders are given."""
    own = fidelity(estimate, recorded, ranks=False)
    found = {"r": own["r"], "slope": own["slope"], "error": own["relative_error"]}
    if orders is None:
        return found
    other = against_mean(estimate, orders)
    # Lengths differ between the truths, so that errors alone would not compare the distances.
    size = other.pop("size_mean") / float(np.linalg.norm(recorded))
    return {**found, **other, "size": size, "knows": knows(estimate, recorded, orders)}


def floors(recorded: np.ndarray, orders: np.ndarray) -> list[dict[str, object]]:
    """Each order against A and against the mean of the others; A against the same means."""
    rows: list[dict[str, object]] = []
    for number, one in enumerate(orders):
        others = np.delete(orders, number, 0)
        rows.append({"estimator": OTHER, **compared(one, recorded, others)})
        rows.append({"estimator": RECORDED, **against_mean(recorded, others)})
    return rows


def measure(
    scenario: Scenario,
    seed: int,
    cache: Path,
    orders: int,
    names: Sequence[str],
    stages: Sequence[str] | None,
) -> list[dict[str, object]]:
    """All rows of one run; orders are re-drawn for some stages only, where these are named."""
    run = recorded(scenario, seed, cache)
    truth = by_replay(run, cache)
    results = {name: _estimated(run, name) for name in names}
    drawn = by_other_orders(run, cache, orders, stages) if orders else None
    rows: list[dict[str, object]] = []
    for stage in run.stages[:-1]:
        key = {"scenario": scenario.name, "seed": seed, "stage": stage.name}
        true = of_stage(truth, stage.name)[0]
        seconds = truth.loc[truth["stage"] == stage.name, "seconds"].iloc[0]
        known_orders = drawn is not None and stage.name in set(drawn["stage"])
        mine = of_stage(drawn, stage.name) if known_orders else None
        for name, result in results.items():
            trust = result.trust.get(stage.name) if result is not None else None
            refused = trust is None or trust.trust == "refused"
            known: dict[str, object] = {"estimator": name, "refused": refused}
            if trust is not None:
                known |= {
                    "cost": trust.cost,
                    "wall": trust.seconds / seconds,
                    "expected_error": trust.expected_error,
                    "reliable": trust.reliable,
                }
            if result is not None and not refused:
                known |= compared(margins(result.table, stage.name), true, mine)
            rows.append({**key, **known})
        if mine is not None:
            rows += [{**key, "refused": False, **each} for each in floors(true, mine)]
    return rows


def _estimated(run: Run, name: str) -> Result | None:
    estimator, settings = ESTIMATES[name]
    try:
        return attribute(run, SET, estimator, settings=settings or None)
    except Refused as refusal:
        print(f"  {run.name}: {name} refused: {refusal}", flush=True)
        return None


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per scenario, stage, estimator and seed, whose orders are averaged."""
    numbers = rows.select_dtypes("number").columns.union(["reliable"]).difference(CELL)
    own = rows.assign(
        reliable=rows["reliable"].map({True: 1.0, False: 0.0, "True": 1.0, "False": 0.0})
    )
    found = own.groupby(CELL, sort=False)[list(numbers)].mean()
    found["refused"] = own.groupby(CELL, sort=False)["refused"].mean()
    found["ratio"] = found["error_mean"] / found["error"] if "error_mean" in found else np.nan
    return found.reset_index()


def spread(values: pd.Series) -> str:
    """Median and range over seeds."""
    known = values.dropna()
    if known.empty:
        return "-"
    return f"{known.median():.2f} ({known.min():.2f} to {known.max():.2f})"


def report(rows: pd.DataFrame) -> None:
    """Print ranges over seeds per stage, and what B is to the error of every estimate."""
    table = cells(rows)
    shown = [name for name in FIGURES if name in table]
    groups = table.groupby(["scenario", "stage", "estimator"], sort=False)
    printed = groups[shown].agg(spread)
    printed["refused"] = groups["refused"].mean()
    if "cost" in table:
        printed["cost"], printed["wall"] = groups["cost"].median(), groups["wall"].median()
    with pd.option_context(
        "display.width", 300, "display.max_rows", None, "display.max_columns", None
    ):
        print(printed.round(2).to_string())
        if "knows" in table:
            print(
                "\nError against B over error against A, and what is known of the order; median and"
            )
            print("range over seeds, of geometric means (medians) over stages")
            print(answer(table).to_string())


def answer(table: pd.DataFrame) -> pd.DataFrame:
    """Per scenario and estimator: how much smaller errors are against B than against A.

    Args:
        table: From :func:`cells`.
    """
    own = table[table["ratio"].notna()].assign(
        ratio=np.log(table["ratio"].clip(lower=0.01)),
        distance=np.log((table["ratio"] * table["size"]).clip(lower=0.01)),
        lower=table["ratio"] < 1,
    )
    seeds = own.groupby(["scenario", "estimator", "seed"], sort=False)
    each = pd.DataFrame(
        {
            "B / A": np.exp(seeds["ratio"].mean()),
            "as distances": np.exp(seeds["distance"].mean()),
            "knows": seeds["knows"].median(),
        }
    )
    groups = each.groupby(["scenario", "estimator"], sort=False)
    found = groups.agg(spread)
    cells_of = own.groupby(["scenario", "estimator"], sort=False)["lower"]
    found["lower for B"] = cells_of.sum().astype(str) + " of " + cells_of.size().astype(str)
    return found


def markdown(table: pd.DataFrame) -> str:
    """Ranges over seeds of r and relative error against A, per stage, as a Markdown table.

    The last rows say what the estimates cost, over all cells where they were not refused.

    Args:
        table: From :func:`cells`.
    """
    names = [name for name in (*ESTIMATES, OTHER) if name in set(table["estimator"])]
    lines = [
        "| scenario, stage | seeds | " + " | ".join(names) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    for (scenario, stage), own in table.groupby(["scenario", "stage"], sort=False):
        by = {name: _ranges(rows) for name, rows in own.groupby("estimator", sort=False)}
        shown = " | ".join(by.get(name, "not run") for name in names)
        lines.append(f"| {scenario}, {stage} | {own['seed'].nunique()} | {shown} |")
    for what, column in (("gradients", "cost"), ("time", "wall")):
        if column in table:
            of = table.loc[table["refused"] < 1].groupby("estimator")[column]
            shown = " | ".join(_share(of, name) for name in names)
            lines.append(
                f"| *{what}, as a share of a replay's: median (middle half)* | | {shown} |"
            )
    return "\n".join(lines)


def _share(of: Any, name: str) -> str:
    if name not in of.groups:
        return "-"
    lower, middle, upper = of.get_group(name).quantile([0.25, 0.5, 0.75])
    return f"{middle:.2f} ({lower:.2f} to {upper:.2f})"


def _ranges(rows: pd.DataFrame) -> str:
    refused = int((rows["refused"] == 1).sum())
    known = rows.loc[rows["refused"] < 1, ["r", "error"]].dropna()
    r, error = (f"{known[c].min():.2f} to {known[c].max():.2f}" for c in ("r", "error"))
    said = [f"{r} ({error})"] if len(known) else []
    return ", ".join(said + ([f"refused {refused} of {len(rows)}"] if refused else []))


def main() -> None:
    """Measure, print the tables, and keep all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("benchmark-runs"), help="recorded runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    parser.add_argument("--estimates", nargs="+", default=list(ESTIMATES), choices=ESTIMATES)
    parser.add_argument("--orders", type=int, default=8, help="re-drawn; 0 compares with A alone")
    parser.add_argument("--stages", nargs="+", help="re-draw orders for these stages only")
    parser.add_argument("--out", type=Path, help="also write all rows to this CSV file")
    parser.add_argument("--rows", type=Path, nargs="+", help="only summarise such files")
    parser.add_argument("--markdown", action="store_true", help="with --rows: a table for pages")
    options = parser.parse_args()
    if options.rows:
        found = pd.concat([pd.read_csv(path) for path in options.rows], ignore_index=True)
        print(markdown(cells(found))) if options.markdown else report(found)
        return
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    rows: list[dict[str, object]] = []
    for name in options.scenarios:
        for seed in options.seeds:
            began = time.perf_counter()
            rows += measure(
                SCENARIOS[name],
                seed,
                options.cache,
                options.orders,
                options.estimates,
                options.stages,
            )
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
            spent = time.perf_counter() - began
            print(f"{name}, seed {seed}: {spent:.0f} s, load {load:.1f}", flush=True)
            if options.out:
                pd.DataFrame(rows).to_csv(options.out, index=False)
    report(pd.DataFrame(rows))


if __name__ == "__main__":
    main()
