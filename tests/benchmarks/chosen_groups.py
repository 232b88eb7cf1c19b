"""How well first order predicts replays without groups that somebody chose, not drawn at random.

One command replays, goes on where it stopped, and prints the tables::

    python tests/benchmarks/chosen_groups.py --cache DIR [--seeds 3 4 5] [--scenarios NAME ...]

*By label*: all examples of one label of a stage leave its recorded batches, label after label, as
the groups on *Which data* are offered. *Worst 20* and *best 20*: for single evaluation examples,
the 20 examples of a stage that hurt, or helped, it most to first order, as the page's list has
them. Losses are means over the rest, later stages follow. Runs, questions and the file of replays
are those of ``leave_some_out.py``; ``--run`` takes a recorded run in place of scenarios.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.contracts import Example
from stagelens.replaying.left_out import Divisor
from stagelens.runs.run import open_run
from stagelens.runs.schema import digest
from tests.benchmarks.group_agreement import (
    UseScores,
    membership,
    predicted,
    rank_correlations,
    relative_error,
    shifted,
    slope_between,
    slope_of_sizes,
)
from tests.benchmarks.group_replays import OTHER_ORDER, Replays, parser_of_runs
from tests.benchmarks.group_scores import HELD, WEIGHTS, Scored
from tests.benchmarks.leave_some_out import all_scores, asked_of
from tests.benchmarks.scenarios import SCENARIOS, recorded

LABEL, WORST, BEST = "label", "worst 20", "best 20"
KINDS = (LABEL, WORST, BEST)
SIZE = 20
FIRST = 3
DIVISOR: Divisor = "rest"


@dataclass(frozen=True)
class ChosenGroup:
    """Examples that are known by number, see :class:`~tests.benchmarks.group_replays.LeftOut`."""

    stage: str
    name: str
    numbers: frozenset[int]
    order: int = 0
    divisor: Divisor = DIVISOR

    def members(self, seed: int, stages: Sequence[str], count: int) -> frozenset[int]:
        """Its examples, whatever the seed."""
        return self.numbers


def by_label(replays: Replays, stage: str) -> dict[str, frozenset[int]]:
    """Label to the numbers of the stage's examples that have it."""
    labels = replays.table(stage).table["label"].reset_index(drop=True)
    return {
        str(label): frozenset(map(int, own)) for label, own in labels.groupby(labels).groups.items()
    }


def of_examples(scores: UseScores, rows: np.ndarray) -> np.ndarray:
    """(K, U) of uses to (K, E) of examples: the sums over their uses."""
    examples = np.zeros((int(rows.max()) + 1, len(scores.values)))
    np.add.at(examples, rows, scores.values.T)
    return examples.T


def extreme(values: np.ndarray, kind: str) -> frozenset[int]:
    """The :data:`SIZE` examples with the lowest, or the highest, of (E,) values."""
    order = np.argsort(values if kind == WORST else -values, kind="stable")
    return frozenset(map(int, order[:SIZE]))


def agreement(effects: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """How a few groups of a stage are told apart; effects and predictions are (K, G).

    Returns:
        Medians over questions of Spearman's correlation; ``slope`` between groups; ``size``, the
        slope through the origin; ``error``; ``sign``, the part of all effects whose sign is right,
        and ``weighted sign``, that of their absolute sum. ``top`` is how often the group of which
        the prediction says that it hurt most is that of the replay, ``in 3`` that it is among the
        first three, by chance 1 and 3 of G; ``top lost`` what the replay's effect of the
        predicted group lacks, as a part of the range of effects. And the correlation of the mean
        over questions, and whether its top is right.
    """
    mean, told = effects.mean(0), prediction.mean(0)
    right = np.sign(effects) == np.sign(prediction)
    first, order = effects.argmin(1), prediction.argsort(1)
    rows = np.arange(len(effects))
    lost = (effects[rows, order[:, 0]] - effects.min(1)) / np.ptp(effects, axis=1)
    return {
        "rank": float(np.nanmedian(rank_correlations(effects, prediction))),
        "rank of mean": float(rank_correlations(mean[None], told[None])[0]),
        "slope": slope_between(effects, prediction),
        "size": slope_of_sizes(effects, prediction),
        "error": relative_error(effects, prediction),
        "sign": float(right.mean()),
        "weighted sign": float((right * abs(effects)).sum() / abs(effects).sum()),
        "top": float((order[:, 0] == first).mean()),
        "in 3": float((order[:, :3] == first[:, None]).any(1).mean()),
        "top lost": float(np.mean(lost)),
        "top of mean": float(mean.argmin() == told.argmin()),
        "mean in 3": float(mean.argmin() in told.argsort()[:3]),
    }


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        known: What its lines begin with.
        questions: Evaluation examples.
        replays: Of the run.
        scores: By method.
    """

    known: dict[str, object]
    questions: list[Example]
    replays: Replays
    scores: dict[str, Scored]

    def labels(self, stage: str) -> list[dict[str, object]]:
        """A line per method about the groups by label of a stage."""
        groups = by_label(self.replays, stage)
        effects, other = (
            np.stack(
                [
                    self.replays.effect(ChosenGroup(stage, f"label {name}", numbers, order))
                    for name, numbers in groups.items()
                ],
                1,
            )
            for order in (0, OTHER_ORDER)
        )
        uses = membership(list(groups.values()), self.replays.rows_of_uses(stage))
        found = {
            name: predicted(self.scores[name].by_stage[stage], uses, DIVISOR)
            for name in (WEIGHTS, HELD, "TracIn", "random")
        }
        found["another order"] = other
        known = {**self.known, "stage": stage}
        lines: list[dict[str, object]] = [
            {**known, "groups": len(groups), "method": name, **agreement(effects, prediction)}
            for name, prediction in found.items()
        ]
        # The page offers to replay the first three, by their mean over what is asked about.
        first = np.argsort(found[WEIGHTS].mean(0))[:FIRST].tolist()
        left = np.setdiff1d(np.arange(len(groups)), first)
        if left.size > 1:
            rest, moved = shifted(effects, found[WEIGHTS], first)
            known["groups"] = left.size
            plain = agreement(rest, found[WEIGHTS][:, left])
            lines.append({**known, "method": "the rest", **plain})
            lines.append({**known, "method": "the rest, shifted", **agreement(rest, moved)})
        return lines

    def chosen(self, stage: str, kind: str, count: int) -> list[dict[str, object]]:
        """A line per question about the examples that hurt, or helped, it most to first order."""
        rows = self.replays.rows_of_uses(stage)
        every = of_examples(self.scores[HELD].by_stage[stage], rows)
        lines: list[dict[str, object]] = []
        for number in np.linspace(0, len(self.questions) - 1, count).astype(int):
            numbers = extreme(every[number], kind)
            # Named by its members: which these are, first order says.
            name = f"{kind} of {self.questions[number].example_id}, {digest(sorted(numbers))[:12]}"
            group = ChosenGroup(stage, name, numbers)
            line: dict[str, object] = {
                **self.known,
                **{"stage": stage, "kind": kind, "question": self.questions[number].example_id},
                "effect": float(self.replays.effect(group)[number]),
            }
            uses = membership([numbers], rows)
            for name in (WEIGHTS, HELD):
                told = predicted(self.scores[name].by_stage[stage], uses, DIVISOR)
                line[name] = float(told[number, 0])
            lines.append(line)
        return lines


def of_scenario(name: str, seed: int, cache: Path, since: str | None = None) -> Measured:
    """A run of the benchmarks' scenarios, with scores since a stage."""
    run = recorded(SCENARIOS[name], seed, cache)
    questions, replays, start = asked_of(run, SCENARIOS[name], seed, cache)
    scores = all_scores(run, questions, seed, start, since)
    return Measured({"scenario": name, "seed": seed}, questions, replays, scores)


def of_run(path: Path, set_name: str, count: int, cache: Path) -> Measured:
    """A run of one's own, by evenly spaced examples of one of its evaluation sets."""
    run = open_run(path)
    examples = run.evaluation_set(set_name)
    places = np.linspace(0, len(examples) - 1, count).astype(int)
    questions = [examples.examples(int(k), int(k) + 1)[0] for k in places]
    start = cache / f"chosen-groups-{path.name}-{set_name}-{count}"
    replays = Replays(run, 0, questions, start.with_name(f"{start.name}.jsonl"))
    scores = all_scores(run, questions, 0, start)
    return Measured({"scenario": f"{path.name}, {set_name}", "seed": 0}, questions, replays, scores)


def of_chosen(lines: pd.DataFrame) -> pd.DataFrame:
    """Per scenario, kind and method: the sign, and how large effects were over what was told."""
    rows = []
    for (scenario, kind), own in lines.groupby(["scenario", "kind"], sort=False):
        effects = own["effect"].to_numpy(float)
        for name in (WEIGHTS, HELD):
            told = own[name].to_numpy(float)
            low, middle, high = np.quantile(effects / told, (0.1, 0.5, 0.9))
            rows.append(
                {
                    **{"scenario": scenario, "kind": kind, "method": name},
                    "sign": float((np.sign(effects) == np.sign(told)).mean()),
                    **{"ratio": middle, "ratio 10 %": low, "ratio 90 %": high},
                    "rank": float(rank_correlations(effects[None], told[None])[0]),
                    "groups": len(own),
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    """Replay what is missing and print the tables."""
    parser = parser_of_runs(__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a recorded run in place of scenarios")
    parser.add_argument("--sets", nargs="+", default=["test"], help="of the recorded run")
    parser.add_argument("--stages", nargs="+", help="some of the stages alone, in their order")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument(
        "--questions", type=int, default=16, help="of worst and best 20; of a recorded run"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    labels: list[dict[str, object]] = []
    others: list[dict[str, object]] = []
    if options.run is None:
        since = options.stages[0] if options.stages else None
        pairs = ((name, seed) for name in options.scenarios for seed in options.seeds)
        found = (of_scenario(name, seed, options.cache, since) for name, seed in pairs)
    else:
        found = (of_run(options.run, n, options.questions, options.cache) for n in options.sets)
    for measured in found:
        for stage in options.stages or measured.replays.names:
            for kind in options.kinds:
                if kind == LABEL:
                    labels += measured.labels(stage)
                else:
                    others += measured.chosen(stage, kind, options.questions)
    with pd.option_context("display.max_rows", None, "display.max_columns", None,
                           "display.width", 250):  # fmt: skip
        if labels:
            table = pd.DataFrame(labels)
            print(table.round(2).to_string(index=False))
            by = table.drop(columns=["seed", "stage"]).groupby(["scenario", "method"], sort=False)
            ones = by.mean()
            ones[["rank", "slope", "size", "error"]] = by[
                ["rank", "slope", "size", "error"]
            ].median()
            print(ones.assign(stages=by.size()).round(2).to_string())
        if others:
            print(of_chosen(pd.DataFrame(others)).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
