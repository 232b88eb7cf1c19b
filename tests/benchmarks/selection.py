"""What a chosen half of a stage's examples is worth, by replay, and what it leaves out.

One command prints a line per scenario and seed::

    python tests/benchmarks/selection.py --cache DIR [--seeds 3 4 5] [--scenarios NAME ...]

On ``fashion`` the stage is the one with 30 % of labels redrawn, the target clean images; what is to
be dropped are wrong labels, those that were redrawn to another class. On ``mixed`` the stage holds
comments of two sources, and the target is of one of them; what is to be dropped is the other. One
half of the target's examples makes the ranking, the other judges. What was replayed is kept in the
run, so that the command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stagelens.analyses.contributions.contribution_table import Question
from stagelens.analyses.selection.horizons import try_horizons
from stagelens.analyses.selection.outcomes import Wanted, usual_horizons
from stagelens.analyses.selection.proofs import Proof, TrainedOn
from stagelens.analyses.selection.proving import prove
from stagelens.analyses.selection.ranked import Ranking
from stagelens.contracts import Example
from stagelens.runs.example_content import content_digest
from stagelens.runs.run import Run, Stage
from stagelens.runs.training_rows import every_use, training_rows
from tests.benchmarks.scenarios import DATA, SCENARIOS, recorded
from tests.support.real_texts import mixed_sources

STAGES = {
    "fashion": ("noisy-labels", {"group": "clean"}, "wrong labels"),
    "mixed": ("mixed", {}, "the other source's comments"),
}
NAMES = ("fashion-adamw-3e-4", "fashion-sgd-0.02", "mixed-adamw-1e-3")


def to_drop(run: Run, stage: Stage, ranking: Ranking, seed: int) -> np.ndarray:
    """Per example of the ranking, whether its label is wrong, or it is of the other source."""
    found = bad_examples(run, stage, seed)
    return np.array([found[name] for name in ranking.ids])


def sources(run: Run, stage: Stage, seed: int) -> dict[str, str]:
    """Training example to its source, as a column of the recorded data set would have it."""
    bad = bad_examples(run, stage, seed)
    return {name: "other" if other else "own" for name, other in bad.items()}


def bad_examples(run: Run, stage: Stage, seed: int) -> dict[str, bool]:
    """Training example to whether its label is wrong, or it is of the other source."""
    known = {str(name) for name in training_rows(run, stage).table["example_id"]}
    found = {}
    is_bad = _wrong_label() if run.task.name == "image-classification" else _other(run, seed)
    for uses in every_use(run, stage):
        for use in uses:
            if use.example_id in known and use.example is not None:
                found[use.example_id] = is_bad(use.example, use.label)
    return found


def _wrong_label() -> Callable[[Example, str | None], bool]:
    with np.load(DATA / "fashion_mnist" / "fashion_mnist_15k5k.npz") as file:
        pairs = zip(file["x_train"], file["y_train"], strict=True)
        true = {image.tobytes(): str(label) for image, label in pairs}

    def wrong(example: Example, label: str | None) -> bool:
        image = np.rint(np.asarray(example.input["image"], float).reshape(28, 28))
        return true[image.astype(np.uint8).tobytes()] != label

    return wrong


def _other(run: Run, seed: int) -> Callable[[Example, str | None], bool]:
    """Whether a comment is not of the target's source, by what the model saw of it."""
    comments = dict(mixed_sources(DATA, seed).stages)["mixed"]
    others = len(comments.texts) // 2  # those of the target's source come after them
    batch = run.task.batch(comments.texts[:others], comments.labels[:others])
    seen = {content_digest(example) for example in run.task.examples(batch)}
    return lambda example, label: content_digest(example) in seen


def _gain(proof: Proof, over: TrainedOn, behaviour: str) -> str:
    """The mean, in standard errors over draws and over examples too, and its interval over both."""
    found = proof.gain(over, behaviour)
    drawn = found.sd / max(found.draws, 1) ** 0.5
    both = float(np.hypot(drawn, proof.over_examples(over, behaviour).error))
    return (
        f"over {over} {found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f}; "
        f"{found.mean / drawn:.1f} standard errors over draws, {found.mean / both:.1f} over both)"
    )


def main() -> None:
    """Print the figures of every scenario and seed that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[3, 4, 5])
    parser.add_argument("--scenarios", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--across-labels", action="store_true")
    parser.add_argument("--by-source", action="store_true", help="value mixed sources by means")
    parser.add_argument("--horizons", type=int, nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.scenarios:
        scenario = SCENARIOS[name]
        stage_name, groups, what = STAGES[scenario.data]
        for seed in options.seeds:
            began = time.process_time()
            run = recorded(scenario, seed, options.cache)
            stage = run.stage(stage_name)
            examples = run.evaluation_set("test")
            wanted = Wanted(
                stage=stage_name,
                set_name="test",
                question=Question(groups=groups),
                behaviour="loss",
                horizons=tuple(options.horizons or usual_horizons(stage.steps)),
                per_label=not options.across_labels,
                by="source" if options.by_source else "",
                draws=options.draws,
            )
            judges = wanted.sides(examples)[1]
            of_source = sources(run, stage, seed) if options.by_source else None
            trials = try_horizons(run, stage, wanted, of_source)
            tried, best = trials.tried, trials.best
            kept = best.kept(0.5)
            proof = prove(run, stage, "test", judges, best, kept, options.draws)
            curve = ", ".join(
                f"{t.ranking.facts.horizon}: {np.mean(t.values):.4f}" for t in tried if t.values
            )
            if trials.random:
                curve += f", random: {np.mean(trials.random):.4f}"
            print(
                f"{name} seed {seed}, {time.process_time() - began:.0f} s of processor time: "
                f"horizon {best.facts.horizon} ({curve})",
                flush=True,
            )
            for one in tried:
                bad = to_drop(run, stage, one.ranking, seed)
                dropped, tenth = bad[len(kept) :], bad[-(len(bad) // 10) :]
                print(
                    f"  horizon {one.ranking.facts.horizon}, halves agree by "
                    f"{one.ranking.agreement:.2f}: {dropped.sum() / bad.sum():.1%} of "
                    f"{what} are dropped; of the worst tenth {tenth.mean():.1%} are such, of all "
                    f"that is dropped {dropped.mean():.1%}, of all {bad.mean():.1%}"
                )
            for behaviour in ("loss", "accuracy"):
                others: tuple[TrainedOn, ...] = ("random", "worst", "all")
                said = "; ".join(_gain(proof, over, behaviour) for over in others)
                print(f"  {behaviour}: {said}", flush=True)


if __name__ == "__main__":
    main()
