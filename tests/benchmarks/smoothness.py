"""Whether the smoothness check tells where first order predicts replays, and where it does not.

One command prints a line per run and stage, then how the two go together::

    python tests/benchmarks/smoothness.py --cache DIR [--seeds 3 4]

The networks are the digits benchmark's (ReLUs, no normalisation), trained at learning rates from
gentle to far too high. Beside the smoothness of a stage stands the score of ``leave_some_out.py``:
Spearman's correlation over random groups of a tenth of the stage's examples between replayed
effects and those predicted to first order, the median over questions; 0 where it is refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.analyses.smoothness.checking import check_smoothness
from stagelens.contracts import Refused
from tests.benchmarks.group_agreement import (
    membership,
    predicted,
    rank_correlations,
    slope_between,
)
from tests.benchmarks.group_replays import BEHAVIOUR, Group
from tests.benchmarks.group_scores import WEIGHTS, adjoint_scores
from tests.benchmarks.leave_some_out import asked_of
from tests.benchmarks.scenarios import SCENARIOS, Scenario, recorded

RATES = {
    "digits-adamw-5e-4": (5e-4, 2e-3, 8e-3, 3e-2),
    "digits-sgd-0.01": (0.01, 0.05, 0.2, 0.6),
}


def _scenarios(names: Sequence[str]) -> list[Scenario]:
    known = [(name, rate, SCENARIOS[name]) for name in names for rate in RATES[name]]
    return [
        s if s.peak == rate else replace(s, name=f"{s.data}-{s.optimizer.lower()}-{rate:g}-at-96",
                                         peak=rate)
        for _, rate, s in known
    ]  # fmt: skip


def measure_run(
    scenario: Scenario, seed: int, options: argparse.Namespace
) -> list[dict[str, object]]:
    """One line per stage."""
    run = recorded(scenario, seed, options.cache)
    # The questions of leave_some_out.py, of which some: the replays are the same.
    asked, replays, _ = asked_of(run, scenario, seed, options.cache)
    kept = np.arange(0, len(asked), max(1, len(asked) // options.questions))
    try:
        scores = adjoint_scores(run, BEHAVIOUR, [asked[int(k)] for k in kept])[WEIGHTS].by_stage
    except Refused:
        scores = {}
    lines: list[dict[str, object]] = []
    for stage in run.stages:
        check = check_smoothness(run, stage, "test")
        groups = [Group(stage.name, 0.1, number, 0, "rest") for number in range(options.groups)]
        effects = np.stack([replays.effect(group) for group in groups], 1)[kept]
        score, slope = 0.0, np.nan
        if stage.name in scores:
            members = [replays.members(group) for group in groups]
            rows = membership(members, replays.rows_of_uses(stage.name))
            prediction = predicted(scores[stage.name], rows, "rest")
            score = float(np.nanmedian(rank_correlations(effects, prediction)))
            slope = slope_between(effects, prediction)
        lines.append(
            {
                "scenario": scenario.name,
                "seed": seed,
                "stage": stage.name,
                "smoothness": check.of(BEHAVIOUR),
                "of loss": check.of("loss"),
                "score": score,
                "slope": slope,
                "seconds": check.facts.seconds,
            }
        )
    return lines


def main() -> None:
    """Print a line per run and stage, and how smoothness and score go together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[3, 4])
    parser.add_argument("--scenarios", nargs="*", choices=list(RATES), default=list(RATES))
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--questions", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, object]] = []
    for seed in options.seeds:
        for scenario in _scenarios(options.scenarios):
            own = measure_run(scenario, seed, options)
            print(pd.DataFrame(own).round(3).to_string(index=False, header=not lines), flush=True)
            lines += own
    table = pd.DataFrame(lines)
    rank = spearmanr(table["smoothness"], table["score"]).statistic
    print(f"\n{len(table)} stages: rank correlation of smoothness and score {rank:.2f}")
    table["smoothness"] = pd.cut(table["smoothness"], [-1.01, 0, 0.25, 0.5, 0.75, 1])
    by = table.groupby("smoothness", observed=True)["score"]
    print(by.describe(percentiles=[0.1, 0.5, 0.9]).round(2).to_string())


if __name__ == "__main__":
    main()
