"""How well scores of training examples predict replays without groups of them.

One command replays, goes on where it stopped, and prints the tables::

    python tests/benchmarks/leave_some_out.py --cache DIR [--seeds 3 4 5] [--scenarios NAME ...]

Of every stage, 32 random groups of a tenth and 32 of a half of its examples leave the recorded
batches, each by itself; later stages follow, as ``stagelens without-data`` has it. Per evaluation
example, the *linear datamodelling score* is Spearman's correlation over the groups between the
replayed effect and the sum of what the group's uses did, as a method has it. The same groups are
replayed with the batches of the stage and of later ones in another order too, paired with all
examples in that order: what a replay of the same recipe says of a replay.

Seeds 0 to 2 are for choosing, 3 to 5 for reporting. dattri's scores are there where it is
installed. Rows of replays are appended to a file beside the run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.contracts import Example
from stagelens.replaying.left_out import Divisor
from stagelens.runs.run import Run
from tests.benchmarks import group_scores
from tests.benchmarks.group_agreement import (
    UseScores,
    between,
    membership,
    predicted,
    rank_correlations,
    relative_error,
    shifted,
    slope_between,
    slope_of_sizes,
    slopes_between,
)
from tests.benchmarks.group_replays import (
    BEHAVIOUR,
    OTHER_ORDER,
    Group,
    Replays,
    parser_of_runs,
)
from tests.benchmarks.scenarios import SCENARIOS, Scenario, recorded

FRACTIONS = {"digits": (0.1, 0.5), "fashion": (0.1, 0.5)}
"""Of the stage's examples; texts are dear, so that there it is a tenth alone."""
QUESTIONS = {"digits": 64, "fashion": 48}
FEW_QUESTIONS = 8
ONE_REPLAYED = f"{group_scores.WEIGHTS}, one group replayed"
"""What the replay of the first group says beyond first order is added to all others."""
SCORED = {"fashion": 6}
"""Of the questions of replays, every so manieth is scored: a sweep takes time for each."""


def all_scores(
    run: Run, questions: Sequence[Example], seed: int, path: Path, since: str | None = None
) -> dict[str, group_scores.Scored]:
    """Every method's scores, from files where they are stored.

    Args:
        run: The run.
        questions: Evaluation examples.
        seed: Of the random scores.
        path: Start of the files' names.
        since: The earliest stage that is wanted, of those that are not stored.
    """
    held, weights = group_scores.HELD, group_scores.WEIGHTS
    stored = {name: _load(path, name) for name in (held, weights, "TracIn", "dattri TRAK")}
    found = {name: one for name, one in stored.items() if one is not None}

    def keep(more: dict[str, group_scores.Scored]) -> None:
        # At once: a sweep takes long, and what follows may be interrupted.
        for name, one in more.items():
            found[name] = one
            _save(path, name, one)

    if held not in found:
        keep(group_scores.adjoint_scores(run, BEHAVIOUR, questions, since=since))
    if "TracIn" not in found:
        keep({"TracIn": group_scores.tracin_scores(run, questions, since)})
    if "dattri TRAK" not in found and (trak := group_scores.trak_scores(run, questions)):
        keep({"dattri TRAK": trak})
    return {**found, "random": group_scores.random_scores(found[held], seed)}


def _file(path: Path, name: str) -> Path:
    return path.with_name(f"{path.name}-{name.replace(' ', '-')}.npz")


def _save(path: Path, name: str, scored: group_scores.Scored) -> None:
    arrays = {"seconds": np.array(scored.seconds)}
    for stage, own in scored.by_stage.items():
        arrays |= {f"{stage}/steps": own.steps, f"{stage}/values": own.values}
    np.savez(_file(path, name), **arrays)


def _load(path: Path, name: str) -> group_scores.Scored | None:
    if not _file(path, name).exists():
        return None
    with np.load(_file(path, name)) as kept:
        stages = dict.fromkeys(key.rpartition("/")[0] for key in kept.files if "/" in key)
        return group_scores.Scored(
            {s: UseScores(kept[f"{s}/steps"], kept[f"{s}/values"]) for s in stages},
            float(kept["seconds"]),
        )


def measured(
    effects: np.ndarray, prediction: np.ndarray, other: dict[str, object]
) -> dict[str, object]:
    """One line: agreement of predicted (K, S) with replayed effects (K, S)."""
    scores = rank_correlations(effects, prediction)
    mean = rank_correlations(effects.mean(0)[None], prediction.mean(0)[None])[0]
    low, middle, high = np.nanquantile(scores, (0.1, 0.5, 0.9))
    slopes = np.nanquantile(slopes_between(effects, prediction), (0.1, 0.9))
    return {
        **other,
        "lds": middle,
        "lds 10 %": low,
        "lds 90 %": high,
        "lds of mean": mean,
        "slope": slope_between(effects, prediction),
        "slope 10 %": slopes[0],
        "slope 90 %": slopes[1],
        "size": slope_of_sizes(effects, prediction),
        "error": relative_error(effects, prediction),
        "error between": relative_error(between(effects), between(prediction)),
        "in common": relative_error(effects, between(effects)),
        "groups": effects.shape[1],
    }


def asked_of(
    run: Run, scenario: Scenario, seed: int, cache: Path
) -> tuple[list[Example], Replays, Path]:
    """The questions, evenly spaced in the set; their replays; and how names of files begin."""
    examples = run.evaluation_set("test")
    count = QUESTIONS.get(scenario.data, FEW_QUESTIONS)
    places = np.linspace(0, len(examples) - 1, count).astype(int)
    questions = [examples.examples(int(k), int(k) + 1)[0] for k in places]
    start = cache / f"leave-some-out-{scenario.name}-{seed}"
    # Not with_suffix: names of scenarios have points.
    every = SCORED.get(scenario.data, 1)
    path = start.with_name(f"{start.name}.jsonl")
    return questions[::every], Replays(run, seed, questions, path, every), start


def measure_run(
    scenario: Scenario, seed: int, options: argparse.Namespace
) -> list[dict[str, object]]:
    """All lines of one run, replaying what is not yet in its file."""
    run = recorded(scenario, seed, options.cache)
    questions, replays, start = asked_of(run, scenario, seed, options.cache)
    stages = [stage.name for stage in run.stages if stage.name in (options.stages or stage.name)]
    scores = {} if options.replays_only else all_scores(run, questions, seed, start, stages[0])
    cells = [
        (stage, fraction, divisor, order)
        for stage in reversed(stages)
        for fraction in FRACTIONS.get(scenario.data, (0.1,))
        for divisor in options.divisors
        for order in ((0, OTHER_ORDER) if divisor == "rest" else (0,))
    ]
    effects: dict[tuple[str, float, Divisor, int], np.ndarray] = {}
    # By number first, so that whatever is there after an interruption has groups of every kind.
    for number in range(options.groups):
        for cell in cells:
            stage, fraction, divisor, order = cell
            if order and number >= options.other_groups:
                continue
            own = replays.effect(Group(stage, fraction, number, order, divisor))[:, None]
            effects[cell] = np.concatenate([effects[cell], own], 1) if number else own
    lines = []
    for cell in cells:
        stage, fraction, divisor, order = cell
        if order:
            continue
        known = {"scenario": scenario.name, "seed": seed, "stage": stage, "fraction": fraction,
                 "divisor": divisor, "replay seconds": replays.seconds(divisor)}  # fmt: skip
        groups = [
            replays.members(Group(stage, fraction, number, 0, divisor))
            for number in range(options.groups)
        ]
        for name, one in scores.items():
            prediction = predicted(
                one.by_stage[stage], membership(groups, replays.rows_of_uses(stage)), divisor
            )
            more = {**known, "method": name, "seconds": one.seconds}
            lines.append(measured(effects[cell], prediction, more))
            if name == group_scores.WEIGHTS:
                rest, moved = shifted(effects[cell], prediction, [0])
                lines.append(measured(rest, moved, {**more, "method": ONE_REPLAYED}))
        if (stage, fraction, divisor, OTHER_ORDER) in effects:
            other = effects[stage, fraction, divisor, OTHER_ORDER]
            same = effects[cell][:, : other.shape[1]]
            lines.append(measured(same, other, {**known, "method": "another order"}))
    return lines


def summary(lines: pd.DataFrame) -> pd.DataFrame:
    """Medians over seeds and stages, and the range of their linear datamodelling scores."""
    keys = ["scenario", "fraction", "divisor", "method"]
    by = lines.groupby(keys, sort=False)
    names = [*("lds", "lds 10 %", "lds 90 %", "lds of mean", "slope", "slope 10 %", "slope 90 %")]
    names += ["size", "error", "error between", "in common", "seconds"]
    table = by[names].median()
    table.insert(1, "least", by["lds"].min())
    table.insert(2, "most", by["lds"].max())
    table["groups"] = by["groups"].min()
    table["cells"] = by.size()
    return table


def report(lines: pd.DataFrame) -> None:
    """Print what was measured, and what replays cost."""
    with pd.option_context("display.max_rows", None, "display.width", 200):
        print(summary(lines).round(2).to_string())
    cost = lines.groupby(["scenario", "seed", "divisor"], sort=False)["replay seconds"].first()
    print("seconds of processor time for the replays:")
    print(cost.groupby(["scenario", "divisor"]).median().round(0).to_string())


def main() -> None:
    """Replay what is missing, print the tables, keep all lines beside the runs."""
    parser = parser_of_runs(__doc__.splitlines()[0])
    parser.add_argument("--divisors", nargs="+", choices=["rest", "kept"], default=["rest", "kept"])
    parser.add_argument("--stages", nargs="+", help="some of the stages alone")
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument(
        "--other-groups", type=int, default=32, help="of them, those in another order too"
    )
    parser.add_argument("--replays-only", action="store_true", help="compute no scores yet")
    parser.add_argument("--lines", type=Path, nargs="+", help="only summarise such files")
    options = parser.parse_args()
    if options.lines:
        report(pd.concat([pd.read_csv(path) for path in options.lines]))
        return
    torch.set_num_threads(1)
    lines: list[dict[str, object]] = []
    for name in options.scenarios:
        for seed in options.seeds:
            began = time.process_time()
            found = measure_run(SCENARIOS[name], seed, options)
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
            print(f"{name}, seed {seed}: {time.process_time() - began:.0f} s, load {load:.1f}",
                  flush=True)  # fmt: skip
            path = options.cache / f"leave-some-out-{name}-{seed}.csv"
            if found:
                pd.DataFrame(found).to_csv(path, index=False)
            lines += found
    if lines:
        report(pd.DataFrame(lines))


if __name__ == "__main__":
    main()
