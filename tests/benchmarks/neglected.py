"""Whether what first order neglects is known without a replay: expected errors against true ones.

One command goes on where it stopped, and prints the tables::

    python tests/benchmarks/neglected.py --cache DIR [--seeds 3 4] [--scenarios NAME ...]

*Groups*: random parts of a stage's training examples are left out, weight 0, within a stretch of
the stage, or to its end and through the later stages. *Stages*: ``unrolled-jump`` and
``unrolled-scale`` leave whole stages out. The expected error is the neglected second-order term
over the effect with it, estimated from defects at a few steps; the true one is that of first order
against a replay. Both are root mean squares over the margins of test examples.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.analyses.contributions.first_order import behaviour_along
from stagelens.analyses.contributions.horizons import stretches
from stagelens.contracts import Example, Refused
from stagelens.derivatives.curvature import Evaluated
from stagelens.derivatives.step_map import State, StepMap
from stagelens.derivatives.trajectory import DerivativeOptions, LinearStage, active_names
from stagelens.derivatives.windows import Places, Window, WindowEnd, follow
from stagelens.effects.computing import attribute
from stagelens.replaying.left_out import replay_without_rows
from stagelens.runs.run import Run, Stage
from stagelens.runs.training_rows import training_rows
from tests.benchmarks.scenarios import SCENARIOS, recorded

BEHAVIOUR = "margin"
SHARES = (0.01, 0.1, 0.5)
EXAMPLES = {"digits": 200, "fashion": 200, "text": 64, "mixed": 64}


class Truth:
    """Models without some examples at the ends of stretches, stepped on from their begin."""

    def __init__(self, run: Run, stage: Stage, places: Places, windows: Sequence[Window]) -> None:
        self.run, self.stage, self.places = run, stage, places
        self.own = LinearStage(run, stage, active_names(run, [stage]), DerivativeOptions())
        self.records = stage.read_steps()
        self.states: dict[int, State] = {}
        state = self.own.start
        for step in range(max((w.begin for w in windows), default=0) + 1):
            if any(window.begin == step for window in windows):
                self.states[step] = state
            state = self._after(state, step, ())

    def _after(self, state: State, step: int, left_out: Sequence[int]) -> State:
        record, loss = self.records[step], self.own.loss
        evaluated = loss.gradient(state.values, record)
        if left_out:
            part = loss.part(state.values, record, left_out)
            gradient = {name: g - part[name] for name, g in evaluated.gradient.items()}
            evaluated = Evaluated(gradient, evaluated.statistics, {}, [])
        return StepMap(self.stage, loss, state, record, evaluated).after

    def at(self, window: Window) -> Mapping[str, Tensor]:
        """The parameters and buffers at a window's end."""
        if window.end is None:
            model = replay_without_rows(self.run, self.stage, self.places, "kept").state.model
            return {name: tensor for name, tensor in model.items()}
        state = self.states[window.begin]
        for step in range(window.begin, window.end):
            state = self._after(state, step, list(self.places.get(step, ())))
        return state.values


def _error(estimate: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(estimate - truth) / (np.linalg.norm(truth) + 1e-30))


def groups(run: Run, stage: Stage, share: float, examples: list[Example]) -> list[dict[str, Any]]:
    """A row per stretch: expected and true error."""
    rows = training_rows(run, stage)
    names = rows.table["example_id"].to_numpy()
    chosen = np.random.default_rng(1).choice(
        names, max(1, round(share * len(names))), replace=False
    )
    places = rows.places([str(name) for name in chosen])
    windows = stretches(stage.steps, sorted(places))
    truth, found = Truth(run, stage, places, windows), []

    def reached(end: WindowEnd) -> None:
        both = {n: t - end.first_order[n] - end.neglected[n] for n, t in end.values.items()}
        true = {n: t.to(both[n]) for n, t in truth.at(end.window).items() if n in both}
        asked = (run, end.own, BEHAVIOUR, examples)
        now, first = behaviour_along(*asked, end.values, end.first_order)
        then, without = (behaviour_along(*asked, v, None)[0] for v in (both, true))
        first, expected, effect = (x[np.isfinite(now)] for x in (first, now - then, now - without))
        found.append(
            {
                "horizon": None if end.window.end is None else end.window.end - end.window.begin,
                "expected": _error(first, expected),
                "true": _error(first, effect),
                "second": _error(expected, effect),
                "mean_expected": float((expected - first).mean()),
                "mean_true": float((effect - first).mean()),
                "gradients": end.gradients,
            }
        )

    follow(run, stage, places, windows, reached)
    return found


def stages(run: Run) -> list[dict[str, Any]]:
    """A row per stage and reading."""
    truth, found = attribute(run, "test", "replay").table, []
    truth = truth[truth["behaviour"] == BEHAVIOUR]
    for name in ("unrolled-jump", "unrolled-scale"):
        try:
            result = attribute(run, "test", name)
        except Refused:
            continue
        table = result.table[result.table["behaviour"] == BEHAVIOUR]
        for stage in run.stages[:-1]:
            trust = result.trust[stage.name]
            own, real = (t[t["stage"] == stage.name]["effect"].to_numpy() for t in (table, truth))
            known = np.isfinite(own) & np.isfinite(real)
            if trust.neglected is None or not known.any():
                continue
            true = _error(own[known], real[known])
            found.append(
                {"estimator": name, "stage": stage.name, "expected": trust.neglected,
                 "true": true, "gradients": trust.cost}
            )  # fmt: skip
    return found


def _jobs(names: Sequence[str], seeds: Sequence[int], cache: Path) -> Iterator[dict[str, Any]]:
    """Every row, measured where it is not stored."""
    for name in names:
        for seed in seeds:
            run = recorded(SCENARIOS[name], seed, cache)
            known = EXAMPLES[SCENARIOS[name].data]
            examples = list(run.evaluation_set("test").examples())[:known]
            file = cache / f"neglected-{name}-{seed}.jsonl"
            stored = {}
            if file.exists():
                for line in file.read_text("utf-8").splitlines():
                    one = json.loads(line)
                    stored[one["key"]] = one
            keys = [f"{s.name} {share}" for share in SHARES for s in run.stages]
            for key in ["stages", *keys]:
                if key not in stored:
                    began = time.process_time()
                    if key == "stages":
                        rows = stages(run)
                    else:
                        stage, share = key.split()
                        rows = groups(run, run.stage(stage), float(share), examples)
                    spent = time.process_time() - began
                    stored[key] = {"key": key, "rows": rows, "seconds": spent}
                    with file.open("a", encoding="utf-8") as out:
                        out.write(json.dumps(stored[key]) + "\n")
                    print(f"{name} {seed} {key}: {spent:.0f} s of processor time", flush=True)
                for row in stored[key]["rows"]:
                    yield {"scenario": name, "seed": seed, "key": key, **row}


def _told(table: pd.DataFrame) -> str:
    """How well expected errors tell true ones."""
    true, expected = (table[name].clip(1e-4, 10.0) for name in ("true", "expected"))
    ratio = np.log(true / expected)
    rho = spearmanr(true, expected).statistic if len(table) > 2 else float("nan")
    return (
        f"{len(table):4d}  spearman {rho:.2f}  true {true.median():.3f}  expected "
        f"{expected.median():.3f}  within a factor of 2: {(ratio.abs() < np.log(2)).mean():.0%}  "
        f"true/expected at 90 %: {np.exp(ratio.quantile(0.9)):.2f}  both on one side of .5: "
        f"{((true > 0.5) == (expected > 0.5)).mean():.0%}"
    )


def main() -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[3, 4])
    parser.add_argument("--scenarios", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = pd.DataFrame(list(_jobs(options.scenarios, options.seeds, options.cache)))
    of_stages = table["key"] == "stages"
    for name, own in table.groupby("scenario", sort=False):
        print(f"\n{name}")
        for kind, rows in own[of_stages].groupby("estimator"):
            print(f"  {kind:34s} {_told(rows)}")
        part = own[~of_stages].assign(share=lambda rows: rows["key"].str.split().str[-1])
        for share, rows in part.groupby("share"):
            whole = rows["horizon"].isna()
            print(f"  {share:5s} of a stage, within it         {_told(rows[~whole])}")
            print(f"  {share:5s} of a stage, the final model   {_told(rows[whole])}")
        curve = part[part["share"] == "0.1"].groupby("horizon", dropna=False)
        print("  a tenth, by horizon: " + "; ".join(
            f"{'final' if np.isnan(h) else int(h)}: {r['true'].median():.3f} "
            f"({r['expected'].median():.3f})" for h, r in curve
        ))  # fmt: skip
    print(f"\nall groups  {_told(table[~of_stages])}\nall stages  {_told(table[of_stages])}")


if __name__ == "__main__":
    main()
