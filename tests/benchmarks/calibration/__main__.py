"""Record the calibration bench, measure it, fit what estimates promise, and print its worth.

One command does all of it, and goes on where it was interrupted::

    python -m tests.benchmarks.calibration --cache DIR [--processes 2]

``--fit`` only fits, from the stored table; ``--keep`` keeps the recordings' cached models. The
table of features and true errors is ``tests/benchmarks/calibration/table.parquet``. What is told of
shares rests on it: fit these again afterwards, by ``tests.benchmarks.calibration.shares``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd

from stagelens.estimators.calibration import FUNCTIONS, POINTS, Calibration, calibration
from tests.benchmarks.calibration import coverage, fitting
from tests.benchmarks.calibration.bench import measure

TABLE = Path(__file__).parent / "table.parquet"


def fit(table: pd.DataFrame) -> None:
    """Fit every kind, write what the product reads, and print the coverage."""
    kinds = {n: kind for n, kind in calibration().kinds.items() if n in fitting.OF_COALITIONS}
    points = []
    for name in fitting.FEATURES:
        own = table[table["kind"] == name].reset_index(drop=True)
        fitted = fitting.fit(own, name)
        kinds[name] = fitted.kind
        columns = ["family", "recording", "stage", "kind", "estimator", "optimizer", "error", "r"]
        kept = {f"kept_{target}": values for target, values in fitted.kept.items()}
        points.append(
            own[columns].assign(promised=fitted.promised, reliable=fitted.reliable, **kept)
        )
    found = pd.concat(points, ignore_index=True)
    FUNCTIONS.write_text(
        Calibration(
            recordings=int(table["recording"].nunique()),
            families=sorted(table["family"].unique()),
            kinds=kinds,
        ).model_dump_json(indent=1)
        + "\n",
        "utf-8",
    )
    shown = found[["family", "recording", "stage", "estimator", "promised", "error", "r"]]
    shown = shown.astype({"promised": "float32", "error": "float32", "r": "float32"})
    shown.assign(reliable=found["reliable"]).to_parquet(POINTS, compression="zstd", index=False)
    print(coverage.text(found))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("calibration-runs"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--fit", action="store_true", help="only fit, from the stored table")
    parser.add_argument("--keep", action="store_true", help="keep cached counterfactual models")
    options = parser.parse_args()
    if options.fit:
        table = pd.read_parquet(TABLE)
    else:
        table = measure(options.cache, options.processes, options.keep)
        numbers = table.select_dtypes("float64").columns
        table = table.astype(dict.fromkeys(numbers, "float32"))
        table.to_parquet(TABLE, compression="zstd", index=False)
    fit(table)


if __name__ == "__main__":
    main()
