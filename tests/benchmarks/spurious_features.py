"""Are planted shortcuts ranked first, by seed; and what passes where nothing was planted?

    python -m tests.benchmarks.spurious_features digits --cache DIR [--seeds 0 1 ...] [--out FILE]

Per seed: the strongest feature of the planted stage without the help of any column, whether it is
the planted one, the share of features that pass, and the mean share that passes with the stage
effects permuted within label (five times). The training noise is not measured, so nothing is left
out for it. ``plain`` is a run of digits without a planted shortcut.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stagelens.analyses.spurious.features import Look
from stagelens.analyses.spurious.statistics import Candidates, judged_features
from stagelens.contracts import no_progress
from stagelens.demos import digits
from stagelens.demos.comment_templates import MENTION
from stagelens.effects.computing import attribute
from stagelens.estimators.registry import default_estimator
from stagelens.runs.run import Run, open_run
from tests.benchmarks.scenarios import SCENARIOS, recorded

PLANTED = {"digits": "shortcut", "fashion": "patch", "comments": "skewed", "plain": "first"}
_MARKED = {"digits": "stamped", "fashion": "patched", "comments": MENTION}
"""Value of the column ``group`` that tells the examples with the planted feature."""
_STAMP = {"digits": 2, "fashion": 5}
"""Pixels on each side of the planted stamp, in the top left corner."""
_PURE = 0.9
"""A cluster or word is the planted feature where this share of the examples that show it most have
it."""


def made(kind: str, seed: int, cache: Path) -> Run:
    """The run of one kind and seed, from the cache where it is there."""
    if kind == "fashion":
        return recorded(SCENARIOS["fashion-adamw-3e-4"], seed, cache)
    if kind == "plain":
        return recorded(SCENARIOS["digits-adamw-5e-4"], seed, cache)
    path = cache / f"{kind}-{seed}"
    if (path / "sets" / "test").exists():
        return open_run(path)
    if kind == "comments":
        from stagelens.demos import comments

        return comments.record(path, seed)
    return digits.record(path, seed)


def is_planted(kind: str, row: Any, examples: pd.DataFrame) -> bool:
    """Whether a feature is the planted one, or is had by the examples that have it."""
    if row.kind == "patch":
        return bool(row.top < _STAMP[kind] and row.left < _STAMP[kind])
    group = examples.set_index("example_id")["group"]
    return bool((group.loc[list(row.examples)] == _MARKED[kind]).mean() >= _PURE)


def permuted_within(labels: np.ndarray, seed: int) -> np.ndarray:
    """(N,) places, permuted among examples of the same label."""
    random, places = np.random.default_rng(seed), np.arange(len(labels))
    for label in set(labels):
        of = np.flatnonzero(labels == label)
        places[of] = random.permutation(of)
    return places


def permuted_share(look: Look, each: Sequence[Candidates], effects: np.ndarray, seed: int) -> float:
    """Share of features that pass with the stage effects permuted within label.

    What a patch changes in an example's stage effect moves with the effect.
    """
    places = permuted_within(look.labels, seed)
    moved = []
    for one in each:
        if one.changes is not None:
            order = permuted_within(look.labels[one.rows], seed)
            one = replace(one, changes=one.changes[order])
        moved.append(one)
    table = judged_features(moved, effects[places], look.labels)
    return float(table["passes"].mean()) if len(table) else 0.0


def measured(kind: str, seed: int, cache: Path) -> dict[str, Any]:
    """One row of the benchmark."""
    run = made(kind, seed, cache)
    stage = PLANTED[kind]
    began = time.perf_counter()
    result = attribute(run, "test", default_estimator(run))
    row: dict[str, Any] = {"kind": kind, "seed": seed, "stage": stage}
    if result.trust[stage].trust == "refused":
        return {**row, "first": "the stage is refused", "planted": False}
    look = Look.at(run, "test", result)
    removed = look.patches(no_progress)
    each = [*look.candidates(), *([removed[stage]] if removed else [])]
    effects = look.gains(result.table, stage)
    table = judged_features(each, effects, look.labels)
    seconds = time.perf_counter() - began
    kept = look.kept(table, each, effects)
    kept = kept[kept["kind"] != "column"]
    row |= {
        "first": f"{kept.iloc[0]['name']} (label {kept.iloc[0]['label']})",
        "evidence": kept.iloc[0]["evidence"],
        "tested": len(table),
        "share": float(table["passes"].mean()),
        "permuted": float(np.mean([permuted_share(look, each, effects, n) for n in range(5)])),
        "seconds": seconds,
    }
    if kind in _MARKED:
        examples = run.evaluation_set("test").table()
        own = [is_planted(kind, one, examples) for one in kept.itertuples()]
        row["planted"] = own[0]
        row["rank"] = own.index(True) + 1 if any(own) else None
    return row


def main() -> None:
    """Print and record a row per seed, and what they come to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=list(PLANTED))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in options.seeds:
        rows.append(measured(options.kind, seed, options.cache))
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()})
        if options.out:
            pd.DataFrame(rows).to_csv(options.out, index=False)
    table = pd.DataFrame(rows)
    if options.kind in _MARKED:
        print(f"planted shortcut ranked first: {int(table['planted'].sum())} of {len(table)} seeds")
    print(f"share that passes: {table['share'].median():.2f}, median over seeds")
    print(f"share that passes permuted: {table['permuted'].max():.3f} at most")


if __name__ == "__main__":
    main()
