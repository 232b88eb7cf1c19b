"""What an edit recovers of what really leaving a stage out recovers, on real data.

One command prints the table::

    python tests/benchmarks/removal.py --cache DIR [--seeds 3 4 5] [--scenarios NAME ...]

Of the fashion scenarios the stage *patch* is taken out, in which every image of class 6 carried a
patch. Three groups are looked at: clean images; patched images of other classes, which the final
model takes for class 6; and patched images of class 6, which the shortcut props up. All figures
are those of the report part; the targeted edit is chosen on the validation part. The tolerance was
chosen on seeds 0 to 2; seeds 3 to 5 are for reporting.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.measuring import BATCH_SIZE, measure
from stagelens.removal.edits import EditedWeights, material
from stagelens.removal.parts import validation_part
from stagelens.removal.targets import Target, find
from stagelens.runs.evaluation_sets import EvaluationSet
from stagelens.runs.run import Run
from stagelens.runs.set_writer import write_set
from tests.benchmarks.scenarios import SCENARIOS, Scenario, recorded, retrained

STAGE = "patch"
GROUPS = (CLEAN, PATCHED, PROPPED) = ("clean", "patched, not 6", "patched 6")
SET = "parts"
FINAL, COARSE, VECTOR, TARGETED, REPLAY, RETRAINED = (
    "final model",
    "coarse replay 1/4",
    "task vector",
    "targeted edit",
    "true replay",
    "retrained, other seed",
)
_OTHER_SEED = 1000


def _with_parts(run: Run) -> EvaluationSet:
    """The test set with a column of the three groups, added to the run once."""
    if SET not in run.set_names:
        examples = run.evaluation_set("test").examples()
        patched = [example.columns["group"] == "patched" for example in examples]
        parts = [
            CLEAN if not patch else PROPPED if example.label == "6" else PATCHED
            for example, patch in zip(examples, patched, strict=True)
        ]
        write_set(
            run.path,
            run.task,
            SET,
            images=np.stack([example.input["image"] for example in examples]),
            labels=[example.label for example in examples],
            ids=[example.example_id for example in examples],
            columns={"part": parts},
        )
    return run.evaluation_set(SET)


def measured(scenario: Scenario, seed: int, cache: Path) -> list[dict[str, object]]:
    """Accuracy of every model on every group, for one run."""
    run = recorded(scenario, seed, cache)
    examples = _with_parts(run)
    budget = {"budget": 0.25}
    began = time.perf_counter()
    target = Target(
        estimator="coarse-replay",
        settings=budget,
        stages=[STAGE],
        by="part",
        group=PATCHED,
        control=CLEAN,
    )
    found = find(run, examples, target)
    seconds = time.perf_counter() - began
    print(f"{run.name}: {found.sentence()} ({seconds:.0f} s)", flush=True)
    coarse = material(run, "coarse-replay", budget, [STAGE])
    models: dict[str, Mapping[str, Tensor]] = {
        FINAL: coarse.final,
        COARSE: coarse.counterfactual(STAGE),
        VECTOR: material(run, "task-vector", None, [STAGE]).counterfactual(STAGE),
        TARGETED: EditedWeights(coarse, found.edit),
        REPLAY: material(run, "replay", None, [STAGE]).counterfactual(STAGE),
        RETRAINED: retrained(scenario, seed, STAGE, _OTHER_SEED + seed),
    }
    table = examples.table()
    report = ~validation_part(table, ["part"])
    answers = measure(
        run.task,
        run.task.build_model(run.last.facts.build_config),
        list(models.values()),
        examples.batches(BATCH_SIZE),
        examples.count,
    )
    rows = []
    for name, model in zip(models, answers, strict=True):
        right = model.answers == table["label"].to_numpy()
        groups = {g: right[report & (table["part"] == g).to_numpy()].mean() for g in GROUPS}
        rows.append({"scenario": scenario.name, "seed": seed, "model": name, **groups})
    return rows


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """What every model recovers on the group that the final model serves worst, and at what price.

    Returns:
        The rows with ``worst`` (lowest accuracy of any group), ``gap`` (clean minus patched, not
        6), ``recovered`` (share of what the true replay recovers on patched, not 6) and ``clean
        price`` (points of the clean group that it loses beyond the true replay's loss).
    """
    rows = rows.copy()
    rows["worst"] = rows[list(GROUPS)].min(axis=1)
    rows["gap"] = rows[CLEAN] - rows[PATCHED]
    for _, mine in rows.groupby(["scenario", "seed"]):
        own = mine.set_index("model")
        gain = own.loc[REPLAY, PATCHED] - own.loc[FINAL, PATCHED]
        scored = gain >= 0.05
        recovered = (mine[PATCHED] - own.loc[FINAL, PATCHED]) / gain
        rows.loc[mine.index, "recovered"] = recovered if scored else np.nan
        rows.loc[mine.index, "clean price"] = 100 * (own.loc[REPLAY, CLEAN] - mine[CLEAN])
    return rows


def report(rows: pd.DataFrame) -> None:
    """Print medians over seeds, and the goals beside what was measured."""
    rows = judged(rows)
    shown = [*GROUPS, "worst", "gap", "recovered", "clean price"]
    table = rows.groupby(["scenario", "model"], sort=False)[shown].median()
    with pd.option_context("display.width", 200, "display.max_rows", None):
        print(rows.round(3).to_string(index=False))
        print("\nMedians over seeds\n" + table.round(3).to_string())
    for scenario, mine in table.groupby("scenario", sort=False):
        targeted = mine.loc[(scenario, TARGETED)]
        vector = mine.loc[(scenario, VECTOR)]
        print(
            f"{scenario}: the targeted edit recovers {targeted['recovered']:.0%} (>= 80 %) and the "
            f"clean group loses {targeted['clean price']:+.1f} points more than under the true "
            f"replay (<= 1); task vector {vector['recovered']:.0%}, {vector['clean price']:+.1f}"
        )


def main() -> None:
    """Measure, print the table, and keep all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("benchmark-runs"), help="recorded runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    fashion = ["fashion-adamw-3e-4", "fashion-adamw-2e-3"]
    parser.add_argument("--scenarios", nargs="+", default=fashion, choices=fashion)
    parser.add_argument("--out", type=Path, help="also write all rows to this CSV file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for name in options.scenarios:
        for seed in options.seeds:
            rows += measured(SCENARIOS[name], seed, options.cache)
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
            print(f"{name}, seed {seed}: load {load:.1f}", flush=True)
    table = pd.DataFrame(rows)
    if options.out:
        table.to_csv(options.out, index=False)
    report(table)


if __name__ == "__main__":
    main()
