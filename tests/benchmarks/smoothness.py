"""Whether the smoothness check tells where first order predicts replays, and where it does not.

One command measures what is missing, chooses on some runs, and tells what that is worth on others::

    python tests/benchmarks/smoothness.py --cache DIR

The networks are the digits benchmark's (ReLUs, no normalisation), trained at learning rates from
gentle to far too high, and the later stages of Fashion-MNIST. Beside what the check sees of a stage
stands the score of ``leave_some_out.py``: Spearman's correlation over random groups of a tenth of
the stage's examples between replayed effects and those predicted to first order, the median over
questions; 0 where it is refused. The divisor is kept in both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.analyses.smoothness.checking import weighed_examples
from stagelens.analyses.smoothness.smoothness import LEAST, REACHES, reach, smoothness
from stagelens.analyses.smoothness.smoothness import WEIGHTS as PRODUCT
from stagelens.contracts import Example, Refused
from stagelens.measuring.models import BATCH_SIZE, measure
from stagelens.replaying.left_out import RowsOfStage, replay_without_rows
from stagelens.runs.run import Run, Stage
from tests.benchmarks.group_agreement import UseScores, membership, predicted, rank_correlations
from tests.benchmarks.group_replays import BEHAVIOUR, Group
from tests.benchmarks.group_scores import WEIGHTS, adjoint_scores
from tests.benchmarks.leave_some_out import asked_of
from tests.benchmarks.scenarios import SCENARIOS, Scenario, recorded

RATES = {
    "digits-adamw-5e-4": (5e-4, 2e-3, 8e-3, 3e-2),
    "digits-sgd-0.01": (0.01, 0.05, 0.2, 0.6),
    "fashion-adamw-3e-4": (3e-4,),
    "fashion-sgd-0.02": (0.02,),
}
STAGES = {"fashion": ("noisy-labels", "last")}
"""Stages that are looked at; all of the other data."""
CHOSEN_ON, TOLD_OF = (0, 1, 2), (3, 4, 5)
GOOD = 0.8
"""A score from which on rankings to first order are of use."""
SCALES = (0.99, 0.98, 0.9, 0.5, 0.0)
"""Weights of a random tenth of a stage's examples; the product replays three of them."""


@dataclass(frozen=True)
class Case:
    """A recorded run."""

    scenario: Scenario
    seed: int

    @property
    def name(self) -> str:
        """Of the run."""
        return f"{self.scenario.name}-{self.seed}"

    def file(self, cache: Path) -> Path:
        """Where its rows are kept."""
        return cache / f"smoothness-{self.name}.parquet"


def cases(seeds: tuple[int, ...]) -> Iterator[Case]:
    """All runs of some seeds; of Fashion-MNIST those that nothing is chosen on."""
    for seed in seeds:
        for name, rates in RATES.items():
            if SCENARIOS[name].data == "fashion" and seed in CHOSEN_ON:
                continue
            for rate in rates:
                own = SCENARIOS[name]
                if own.peak != rate:
                    named = f"{own.data}-{own.optimizer.lower()}-{rate:g}-at-{own.steps}"
                    own = replace(own, name=named, peak=rate)
                yield Case(own, seed)


def measured(case: Case, cache: Path, groups: int, questions: int) -> pd.DataFrame:
    """A row per stage: the score, and the behaviour of every example at every weight."""
    file = case.file(cache)
    if not file.exists():
        began = time.process_time()
        rows = pd.DataFrame(list(_rows(case, cache, groups, questions)))
        draft = file.with_suffix(".draft")
        rows.to_parquet(draft, compression="zstd", index=False)
        draft.replace(file)
        print(f"{case.name}: {time.process_time() - began:.0f} s of processor time", flush=True)
    return pd.read_parquet(file).assign(
        scenario=case.scenario.name, data=case.scenario.data, seed=case.seed
    )


def _rows(case: Case, cache: Path, groups: int, count: int) -> Iterator[dict[str, object]]:
    run = recorded(case.scenario, case.seed, cache)
    stages = [s for s in run.stages if s.name in STAGES.get(case.scenario.data, (s.name,))]
    # The questions of leave_some_out.py, of which some: the replays are the same.
    asked, replays, _ = asked_of(run, case.scenario, case.seed, cache)
    kept = np.arange(0, len(asked), max(1, len(asked) // count))
    scores = _scores(run, stages, [asked[int(number)] for number in kept])
    for stage in stages:
        score = 0.0
        if stage.name in scores:
            drawn = [Group(stage.name, 0.1, number, 0, "kept") for number in range(groups)]
            effects = np.stack([replays.effect(group) for group in drawn], 1)[kept]
            members = [replays.members(group) for group in drawn]
            rows = membership(members, replays.rows_of_uses(stage.name))
            prediction = predicted(scores[stage.name], rows, "kept")
            score = float(np.nanmedian(rank_correlations(effects, prediction)))
        values, seconds = _at_scales(run, stage)
        known = {"stage": stage.name, "score": score, "seconds": seconds}
        yield {**known, "values": json.dumps(values)}


def _scores(
    run: Run, stages: Sequence[Stage], questions: Sequence[Example]
) -> Mapping[str, UseScores]:
    """Of all stages from the first on that can be followed; earlier ones are refused."""
    for stage in stages:
        try:
            return adjoint_scores(run, BEHAVIOUR, questions, since=stage.name)[WEIGHTS].by_stage
        except Refused:
            continue
    return {}


def _at_scales(run: Run, stage: Stage) -> tuple[dict[str, list[float]], float]:
    """Weight to the behaviour of every evaluation example, and the time of a replay."""
    places, _, _ = weighed_examples(run, stage)
    rows = RowsOfStage(run.task, stage, "kept")
    examples = list(run.evaluation_set("test").examples())
    batches = [examples[k : k + BATCH_SIZE] for k in range(0, len(examples), BATCH_SIZE)]
    model = run.task.build_model(run.last.facts.build_config)
    models, began = {1.0: run.last.end().model}, time.process_time()
    for weight in SCALES:
        found = replay_without_rows(run, stage, places, "kept", rows=rows, weight=weight)
        models[weight] = found.state.model
    seconds = (time.process_time() - began) / len(SCALES)
    values = {}
    for weight, one in models.items():
        (own,) = measure(run.task, model, [one], batches, len(examples))
        values[f"{weight:g}"] = [float(x) for x in own.values[BEHAVIOUR]]
    return values, seconds


def seen(row: Mapping[str, object]) -> tuple[float, float]:
    """Smoothness and reach of a stage, as the product has them."""
    values = {float(k): np.array(v) for k, v in json.loads(str(row["values"])).items()}
    whole, less, least, without = (values[weight] for weight in PRODUCT)
    return smoothness(whole, less, least), reach(whole, less, without)


def thresholds(table: pd.DataFrame) -> tuple[float, float]:
    """Those that call most good stages smooth, where a bad one that is weighs as three."""
    good, best = table["score"] >= GOOD, (-np.inf, 1.0, 1.0)
    for least, reaches in itertools.product(np.arange(0.5, 1, 0.01), np.arange(0.3, 1, 0.02)):
        smooth = (table["smoothness"] >= least) & (table["reach"] >= reaches)
        worth = float((smooth & good).sum() - 3 * (smooth & ~good).sum())
        best = max(best, (worth, round(least, 2), round(reaches, 2)))
    return best[1:]


def told(table: pd.DataFrame) -> str:
    """The confusion table of verdict and score, with scores of what is wrongly called smooth."""
    smooth = (table["smoothness"] >= LEAST) & (table["reach"] >= REACHES)
    good = table["score"] >= GOOD
    wrong = table[smooth & ~good]
    before = table["smoothness"] >= 0.9
    listed = ", ".join(f"{score:.2f}" for score in wrong["score"])
    return (
        f"{len(table)} stages of {table['run'].nunique()} runs. Smooth here: "
        f"{(smooth & good).sum()} score {GOOD:g} or more, {len(wrong)} less ({listed}). "
        f"Says nothing: {(~smooth & good).sum()} score more, {(~smooth & ~good).sum()} less. "
        f"Smoothness from .9 alone: smooth {(before & good).sum()} and {(before & ~good).sum()}, "
        f"nothing {(~before & good).sum()} and {(~before & ~good).sum()}"
    )


def main() -> None:
    """Measure what is missing, choose thresholds on some runs, and tell of the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--stored", action="store_true", help="only what is measured already")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in cases((*CHOSEN_ON, *TOLD_OF)):
        if options.stored and not case.file(options.cache).exists():
            continue
        own = measured(case, options.cache, options.groups, options.questions).assign(run=case.name)
        rows.append(own)
    table = pd.concat(rows, ignore_index=True)
    found = [seen(row) for row in table.to_dict("records")]
    table[["smoothness", "reach"]] = pd.DataFrame(found).fillna(-1.0)
    shown = ["run", "stage", "smoothness", "reach", "score", "seconds"]
    print(table[shown].round(2).to_string(index=False))
    chosen = table["seed"].isin(CHOSEN_ON)
    print(
        "\nthresholds chosen on seeds 0 to 2:",
        *thresholds(table[chosen]),
        "; in use:",
        LEAST,
        REACHES,
    )
    print("\nchosen on:", told(table[chosen]))
    for name, own in table[~chosen].groupby("data"):
        print(f"\nothers, {name}: {told(own)}")
        for scenario, part in own.groupby("scenario", sort=False):
            print(f"  {scenario}: {told(part)}")
    print("\nothers:", told(table[~chosen]))


if __name__ == "__main__":
    main()
