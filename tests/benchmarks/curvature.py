"""What each kind of curvature along the path costs, and how well it predicts replays.

One command prints the table, and goes on where it stopped::

    python tests/benchmarks/curvature.py --cache DIR [--seeds 3 4] [--scenarios NAME ...]

Cost is the processor time of one question's contributions with those of all training examples, as
``stagelens contributions`` computes them. The score is that of ``leave_some_out.py``: Spearman's
correlation, over random groups of a tenth of a stage's examples, between the replayed effect of
leaving a group out (mean over the rest) and the predicted one, per question; the median over
questions and stages. Beside it: the slope of replayed on predicted effects, the relative error, and
the rank correlation with what the exact curvature predicts. Replays are shared with
``leave_some_out.py`` in the same cache.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.analyses.contributions.first_order import contributions
from stagelens.contracts import Refused
from stagelens.derivatives.curvature_kinds import CURVATURES, Curvature
from stagelens.derivatives.trajectory import DerivativeOptions
from tests.benchmarks.group_agreement import (
    membership,
    predicted,
    rank_correlations,
    relative_error,
    slope_between,
)
from tests.benchmarks.group_replays import BEHAVIOUR, Group
from tests.benchmarks.group_scores import WEIGHTS, adjoint_scores
from tests.benchmarks.leave_some_out import asked_of
from tests.benchmarks.scenarios import SCENARIOS, Scenario, recorded

NAMES = (
    "digits-adamw-5e-4",
    "digits-sgd-0.01",
    "digits-sgd-0.05",
    "fashion-adamw-3e-4",
    "fashion-sgd-0.02",
)
FRACTION = 0.1


def measure_run(
    scenario: Scenario, seed: int, options: argparse.Namespace
) -> list[dict[str, object]]:
    """One line per kind of curvature and stage."""
    run = recorded(scenario, seed, options.cache)
    # The questions of leave_some_out.py, of which some: the replays are the same.
    asked, replays, _ = asked_of(run, scenario, seed, options.cache)
    kept = np.arange(0, len(asked), max(1, len(asked) // options.questions))
    stages = [stage.name for stage in run.stages][-options.stages :]
    groups = {
        stage: [Group(stage, FRACTION, number, 0, "rest") for number in range(options.groups)]
        for stage in stages
    }
    effects = {
        stage: np.stack([replays.effect(group) for group in own], 1)[kept]
        for stage, own in groups.items()
    }
    lines: list[dict[str, object]] = []
    exact: dict[str, np.ndarray] = {}
    for kind in CURVATURES:
        line = {"scenario": scenario.name, "seed": seed, "curvature": kind}
        chosen = DerivativeOptions(curvature=kind)
        try:
            seconds = _seconds(run, asked[0], kind, stages[0])
            questions = [asked[int(k)] for k in kept]
            found = adjoint_scores(run, BEHAVIOUR, questions, chosen, stages[0])[WEIGHTS]
        except Refused as error:
            print(f"{scenario.name} seed {seed}, {kind}: refused, {error}", flush=True)
            continue
        for stage in stages:
            members = [replays.members(group) for group in groups[stage]]
            scores = found.by_stage[stage]
            rows = membership(members, replays.rows_of_uses(stage))
            prediction = predicted(scores, rows, "rest")
            own = exact.setdefault(stage, prediction)
            finite = np.isfinite(prediction).all()
            lines.append(
                {
                    **line,
                    "stage": stage,
                    "seconds": seconds,
                    "score": _median(rank_correlations(effects[stage], prediction)),
                    "slope": slope_between(effects[stage], prediction),
                    "error": relative_error(effects[stage], prediction) if finite else np.inf,
                    "with exact": _median(rank_correlations(own, prediction)),
                }
            )
    return lines


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values))


def _seconds(run: object, question: object, kind: Curvature, since: str) -> float:
    """Of processor time, for the contributions to one question."""
    began = time.process_time()
    contributions(
        run,  # type: ignore[arg-type]
        BEHAVIOUR,
        [question],  # type: ignore[list-item]
        with_examples=True,
        options=DerivativeOptions(curvature=kind),
        since=since,
    )
    return time.process_time() - began


def main() -> None:
    """Print the figures of every scenario and seed that is asked for, then their medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[3, 4])
    parser.add_argument("--scenarios", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--stages", type=int, default=3, help="how many of the last stages")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, object]] = []
    for name in options.scenarios:
        for seed in options.seeds:
            own = measure_run(SCENARIOS[name], seed, options)
            print(pd.DataFrame(own).round(3).to_string(index=False), flush=True)
            lines += own
    table = pd.DataFrame(lines).groupby(["scenario", "curvature"], sort=False)
    print("\nMedians over seeds and stages:")
    names = ["seconds", "score", "slope", "error", "with exact"]
    print(table[names].median().round(3).to_string())


if __name__ == "__main__":
    main()
