"""Every recording of the calibration bench, measured in several processes, and kept."""

from __future__ import annotations

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

from tests.benchmarks.calibration.measuring import rows
from tests.benchmarks.calibration.recipes import FAMILIES, Recipe, recipe
from tests.benchmarks.calibration.recording import recorded


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
    jobs = [(f.name, number, cache, keep) for f in FAMILIES.values() for number in f.numbers]
    jobs.sort(key=lambda job: job[1])  # so that an interrupted bench holds some of every family
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for done, line in enumerate(pool.imap_unordered(_measured, jobs), 1):
            print(f"{done} of {len(jobs)}, {line}", flush=True)
    parts = [
        json.loads((cache / "rows" / f"{recipe(FAMILIES[f], n).name}.json").read_text("utf-8"))
        for f, n, *_ in jobs
    ]
    return pd.DataFrame([row for part in parts for row in part])
