"""Record the calibration bench, measure it, fit what estimates promise, and print its worth.

One command does all of it, and goes on where it was interrupted::

    python -m tests.benchmarks.calibration --cache DIR [--processes 2]

``--fit`` only fits, from the stored table; ``--keep`` keeps the recordings' cached models. The
table of features and true errors is ``tests/benchmarks/calibration/table.parquet``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from stagelens.estimators.calibration import FUNCTIONS, POINTS, Calibration
from tests.benchmarks.calibration import coverage, fitting
from tests.benchmarks.calibration.measuring import rows
from tests.benchmarks.calibration.recipes import FAMILIES, Recipe, recipe
from tests.benchmarks.calibration.recording import recorded

TABLE = Path(__file__).parent / "table.parquet"


def _measured(job: tuple[str, int, Path, bool]) -> str:
    """Measure one recording, unless its rows are there; returns a line for people."""
    family, number, cache, keep = job
    own = recipe(FAMILIES[family], number)
    file = cache / "rows" / f"{own.name}.json"
    began = time.process_time()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        found = _rows(own, cache, keep)
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(found), "utf-8")
        draft.replace(file)
    return f"{own.name}: {time.process_time() - began:.0f} s of processor time"


def _rows(own: Recipe, cache: Path, keep: bool) -> list[dict[str, Any]]:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    run = recorded(own, cache / "runs")
    found = list(rows(run, own))
    if not keep:
        shutil.rmtree(run.path / "results" / "counterfactuals", ignore_errors=True)
    return found


def measure(cache: Path, processes: int, keep: bool) -> pd.DataFrame:
    """Every recording's rows, made where they are missing."""
    os.environ["OMP_NUM_THREADS"] = "1"
    most = max(family.recordings for family in FAMILIES.values())
    jobs = [
        (family.name, number, cache, keep)
        for number in range(most)
        for family in FAMILIES.values()
        if number < family.recordings
    ]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for done, line in enumerate(pool.imap_unordered(_measured, jobs), 1):
            print(f"{done} of {len(jobs)}, {line}", flush=True)
    parts = [
        json.loads((cache / "rows" / f"{recipe(FAMILIES[f], n).name}.json").read_text("utf-8"))
        for f, n, *_ in jobs
    ]
    return pd.DataFrame([row for part in parts for row in part])


def fit(table: pd.DataFrame) -> None:
    """Fit every kind, write what the product reads, and print the coverage."""
    kinds, points = {}, []
    for name in fitting.FEATURES:
        own = table[table["kind"] == name].reset_index(drop=True)
        fitted = fitting.fit(own, name)
        kinds[name] = fitted.kind
        columns = ["family", "recording", "stage", "kind", "estimator", "optimizer", "error", "r"]
        points.append(own[columns].assign(promised=fitted.promised, reliable=fitted.reliable))
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
