"""Whether what first order neglects is known without a replay, and how far off that may be.

One command measures what is missing, chooses bounds on some runs, writes what the product reads,
and prints how often they hold on the others::

    python -m tests.benchmarks.neglected_terms --cache DIR [--measure PART/PARTS] [--fit]

*Parts of stages*: random training examples are left out, weight 0 with the divisor kept, within a
stretch of the stage, or to its end and through the later stages. *Stages*: ``unrolled-jump`` and
``unrolled-scale`` leave whole stages out. The expected error is the neglected second-order term
over the effect with it, estimated from defects at a few steps; the true one is that of first order
against a replay. Both are root mean squares over the margins of test examples.

``--fit`` only fits, from the stored errors, ``tests/benchmarks/neglected_terms/errors.parquet``.
``--measure 1/3`` measures the first third of what there is, as one of several processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from stagelens.estimators.neglected_bounds import FUNCTIONS
from stagelens.tasks.image_classification import ImageClassification
from stagelens.tasks.text_classification import TextClassification
from tests.benchmarks.neglected_terms import fitting
from tests.benchmarks.neglected_terms.measuring import COMMENTS, Job, measured
from tests.benchmarks.scenarios import SCENARIOS

ERRORS = Path(__file__).parent / "errors.parquet"

_DIGITS = ("digits-adamw-5e-4", "digits-adamw-2e-3", "digits-sgd-0.05")


def jobs() -> Iterator[Job]:
    """Everything that is measured, runs that bounds are chosen on and others in turn."""
    for seed in (0, 3, 1, 4, 2, 5):
        for name in _DIGITS:
            yield from (Job(name, seed, stage, 0.1) for stage in ("first", "swapped", "last"))
            yield Job(name, seed)
    fashion = [("fashion-adamw-3e-4", seed) for seed in (0, 3, 1, 2, 4, 5)]
    for name, seed in (*fashion, ("fashion-sgd-0.02", 3)):
        yield from (Job(name, seed, stage, 0.1) for stage in ("noisy-labels", "last"))
    yield from (Job(COMMENTS, 0, stage, 0.1) for stage in ("adapt", "skewed"))
    yield Job(COMMENTS, 1, "adapt", 0.1)


def _facts(job: Job) -> dict[str, object]:
    own = SCENARIOS.get(job.scenario)
    task = ImageClassification if own is not None else TextClassification
    return {
        "scenario": job.scenario, "seed": job.seed, "stage": job.stage, "share": job.share,
        "optimizer": own.optimizer if own is not None else "AdamW", "task": task.name,
    }  # fmt: skip


def _errors(job: Job, rows: pd.DataFrame) -> pd.DataFrame:
    if job.stage:
        found = fitting.errors(rows)
    else:
        found = rows[["estimator", "expected", "true"]].rename(columns={"estimator": "kind"})
        found = found.assign(final=True, steps=0, examples=0)
    return found.assign(**_facts(job)).astype({"expected": "float32", "true": "float32"})


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("neglected-runs"))
    parser.add_argument("--measure", default="")
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    if options.measure:
        part, parts = (int(number) for number in options.measure.split("/"))
        for job in list(jobs())[part - 1 :: parts]:
            measured(job, options.cache)
        return
    if not options.fit:
        table = pd.concat([_errors(job, measured(job, options.cache)) for job in jobs()])
        table.reset_index(drop=True).to_parquet(ERRORS, compression="zstd", index=False)
    found = fitting.fit(pd.read_parquet(ERRORS))
    FUNCTIONS.write_text(found.model_dump_json(indent=1) + "\n", "utf-8")
    print(fitting.text(found))


if __name__ == "__main__":
    main()
