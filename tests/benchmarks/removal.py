"""What an edit recovers of what really leaving a stage out recovers, on real data.

One command prints the table::

    python tests/benchmarks/removal.py --cache DIR [--seeds 3 4 5] [--scenarios NAME ...] [--quick]

Of the fashion scenarios the stage *patch* is taken out, in which every image of class 6 carried a
patch; of the text scenario the stage *planted*, in which every toxic comment ended with an identity
term. Three groups are looked at: *control*, examples without the patch or an identity term;
*worse*, those with it of other classes than the one that it was planted in, which the final model
may take for that class; and *propped*, those of that class, which the shortcut props up. All
figures are those of the report part; the targeted edit is chosen on the validation part. The
tolerance was chosen on seeds 0 to 2; seeds 3 to 5 are for reporting.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.analyses.removal.edits import EditedWeights, material
from stagelens.analyses.removal.parts import validation_part
from stagelens.analyses.removal.targets import Target, find
from stagelens.contracts import Example
from stagelens.measuring.models import BATCH_SIZE, measure
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.sets.writer import write_set
from tests.benchmarks.scenarios import SCENARIOS, Scenario, recorded, retrained

GROUPS = (CONTROL, WORSE, PROPPED) = ("control", "worse", "propped")
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


@dataclass(frozen=True)
class Planted:
    """A shortcut that a stage was given.

    Attributes:
        stage: Its name.
        without: Group of the examples of the test set that do not have it.
        label: Of the class that it was planted in.
    """

    stage: str
    without: str
    label: str

    def part(self, example: Example) -> str:
        """The group of an example."""
        if example.columns["group"] == self.without:
            return CONTROL
        return PROPPED if example.label == self.label else WORSE


PLANTED = {"fashion": Planted("patch", "clean", "6"), "text": Planted("planted", "none", "toxic")}


def _with_parts(run: Run, planted: Planted) -> EvaluationSet:
    """The test set with a column of the three groups, added to the run once."""
    if SET not in run.set_names:
        examples = run.evaluation_set("test").examples()
        (kind,) = examples[0].input
        inputs: list[Any] = [example.input[kind] for example in examples]
        write_set(
            run.path,
            run.task,
            SET,
            images=np.stack(inputs) if kind == "image" else None,
            texts=inputs if kind == "text" else None,
            labels=[example.label for example in examples],
            ids=[example.example_id for example in examples],
            columns={"part": [planted.part(example) for example in examples]},
        )
    return run.evaluation_set(SET)


def measured(scenario: Scenario, seed: int, cache: Path, search: bool) -> list[dict[str, object]]:
    """Accuracy of every model on every group, for one run."""
    run, planted = recorded(scenario, seed, cache), PLANTED[scenario.data]
    examples, stage = _with_parts(run, planted), planted.stage
    budget = {"budget": 0.25}
    coarse = material(run, "coarse-replay", budget, [stage])
    models: dict[str, Mapping[str, Tensor]] = {
        FINAL: coarse.final,
        COARSE: coarse.counterfactual(stage),
        VECTOR: material(run, "task-vector", None, [stage]).counterfactual(stage),
    }
    if search:
        target = Target(
            estimator="coarse-replay",
            settings=budget,
            stages=[stage],
            by="part",
            group=WORSE,
            control=CONTROL,
        )
        began = time.perf_counter()
        found = find(run, examples, target)
        seconds = time.perf_counter() - began
        print(f"{run.name}: {found.sentence()} ({seconds:.0f} s)", flush=True)
        models[TARGETED] = EditedWeights(coarse, found.edit)
    models[REPLAY] = material(run, "replay", None, [stage]).counterfactual(stage)
    models[RETRAINED] = retrained(scenario, seed, stage, _OTHER_SEED + seed)
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
        The rows with ``worst`` (lowest accuracy of any group), ``gap`` (control minus worse),
        ``recovered`` (share of what the true replay recovers on *worse*; NaN where that is less
        than 5 points) and ``price`` (points of the control group that it loses beyond the true
        replay's loss).
    """
    rows = rows.copy()
    rows["worst"] = rows[list(GROUPS)].min(axis=1)
    rows["gap"] = rows[CONTROL] - rows[WORSE]
    for _, mine in rows.groupby(["scenario", "seed"]):
        own = mine.set_index("model")
        gain = own.loc[REPLAY, WORSE] - own.loc[FINAL, WORSE]
        scored = gain >= 0.05
        recovered = (mine[WORSE] - own.loc[FINAL, WORSE]) / gain
        rows.loc[mine.index, "recovered"] = recovered if scored else np.nan
        rows.loc[mine.index, "price"] = 100 * (own.loc[REPLAY, CONTROL] - mine[CONTROL])
    return rows


def report(rows: pd.DataFrame) -> None:
    """Print medians over seeds, and the goals beside what was measured."""
    rows = judged(rows)
    shown = [*GROUPS, "worst", "gap", "recovered", "price"]
    table = rows.groupby(["scenario", "model"], sort=False)[shown].median()
    with pd.option_context("display.width", 200, "display.max_rows", None):
        print(rows.round(3).to_string(index=False))
        print("\nMedians over seeds\n" + table.round(3).to_string())
    for scenario, mine in table.groupby("scenario", sort=False):
        own = mine.droplevel("scenario")
        gain = own.loc[REPLAY, WORSE] - own.loc[FINAL, WORSE]
        said = f"{scenario}: the true replay recovers {100 * gain:.1f} points"
        for name in [each for each in (TARGETED, COARSE, VECTOR) if each in own.index]:
            row = own.loc[name]
            share = "not scored" if np.isnan(row["recovered"]) else f"{row['recovered']:.0%} of it"
            said += f"; {name} {share}, control {row['price']:+.1f} points beyond the replay's loss"
        print(f"{said} (goals of the targeted edit: >= 80 %, <= 1 point)")


def main() -> None:
    """Measure, print the table, and keep all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("benchmark-runs"), help="recorded runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    names = ["fashion-adamw-3e-4", "fashion-adamw-2e-3", "text-adamw-5e-5"]
    parser.add_argument("--scenarios", nargs="+", default=names, choices=names)
    parser.add_argument("--quick", action="store_true", help="leave out the targeted edit")
    parser.add_argument("--out", type=Path, help="also write all rows to this CSV file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for name in options.scenarios:
        for seed in options.seeds:
            rows += measured(SCENARIOS[name], seed, options.cache, not options.quick)
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
            print(f"{name}, seed {seed}: load {load:.1f}", flush=True)
    table = pd.DataFrame(rows)
    if options.out:
        table.to_csv(options.out, index=False)
    report(table)


if __name__ == "__main__":
    main()
