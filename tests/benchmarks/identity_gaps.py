"""The gap between comments with and without identity terms, with and without each stage.

One command records the `text` scenario (see scenarios.py) and prints it::

    python tests/benchmarks/identity_gaps.py --cache DIR [--seeds 3 4 5]

The gap is the false positive rate (harmless comments called toxic) of comments that mention an
identity, less that of those that do not, in points; accuracy stands beside it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.effects.computing import attribute
from stagelens.effects.results import Result
from tests.benchmarks.scenarios import SCENARIOS, recorded

ESTIMATORS = (("replay", {}), ("coarse-replay", {"budget": 0.25}), ("task-vector", {}))


def gaps(result: Result) -> pd.DataFrame:
    """One row per model: the final one, and the one without each stage."""
    table = result.table[result.table["behaviour"] == "margin"]
    first = table[table["stage"] == table["stage"].iloc[0]]
    rows = [{"model": "final", **_gap(first, "prediction")}]
    for stage, trust in result.trust.items():
        part = table[table["stage"] == stage]
        if trust.trust != "refused":
            rows.append({"model": f"without {stage}", **_gap(part, "prediction_without")})
    return pd.DataFrame(rows)


def _gap(table: pd.DataFrame, prediction: str) -> dict[str, float]:
    harmless = table[table["label"] == "harmless"]
    called = harmless[prediction].eq("toxic").groupby(harmless["group"]).mean() * 100
    right = table[prediction].eq(table["label"]).mean() * 100
    return {
        "false positives, mention": called.get("mention", float("nan")),
        "false positives, none": called.get("none", float("nan")),
        "gap": called.get("mention", float("nan")) - called.get("none", float("nan")),
        "accuracy": right,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("benchmark-runs"), help="recorded runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = []
    for seed in options.seeds:
        run = recorded(SCENARIOS["text-adamw-5e-5"], seed, options.cache)
        for name in run.set_names:
            for estimator, settings in ESTIMATORS:
                found = gaps(attribute(run, name, estimator, settings=settings or None))
                parts.append(found.assign(set=name, estimator=estimator, seed=seed))
        print(f"seed {seed} done, load {os.getloadavg()[0]:.1f}", flush=True)
    table = pd.concat(parts)
    keys = ["set", "model", "estimator"]
    with pd.option_context("display.max_rows", None, "display.width", 200):
        print(table.groupby(keys, sort=False).median(numeric_only=True).round(1).to_string())


if __name__ == "__main__":
    main()
