"""Draws of a recipe that were not trained: recorded effects, each time so many times as large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import ACCURACY, ProgressCallback
from stagelens.effects.draws import COLUMNS, DrawnEffects, Kind
from stagelens.effects.results import BehaviourFacts, load_result
from stagelens.effects.summary import with_accuracy
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.trust import drawing
from stagelens.trust.drawn_coalitions import DrawnCoalitionFacts, column, draw_path
from stagelens.trust.draws import DrawFacts, draws_path


def write_draws(
    run: Run, set_name: str, factors: Sequence[float], kind: Kind = "recipe"
) -> pd.DataFrame:
    """Store draws whose effects are the recorded ones, by replay, times these factors."""
    replayed = load_result(run, set_name, "effects", "replay")
    assert replayed is not None
    table = with_accuracy(replayed.table)
    blocks = [
        table.assign(draw=n, effect=factor * table["effect"])[list(COLUMNS)]
        for n, factor in enumerate(factors)
    ]
    made = pd.concat(blocks, ignore_index=True)
    examples = run.evaluation_set(set_name)
    facts = DrawFacts(
        run_digest=run.digest,
        set_digest=examples.digest,
        kind=kind,
        behaviours=replayed.facts.behaviours,
        kept=["the weights that the first stage began from are those recorded"],
    )
    fact_tables.write(draws_path(run, examples.digest, kind), made, facts)
    return made


def write_drawn_coalitions(run: Run, set_name: str, factors: Sequence[float]) -> None:
    """Store draws of every coalition in which stages do what these factors say, and in pairs more.

    The first stage helps, the second harms only where the first happened, the others do nothing.
    """
    examples = run.evaluation_set(set_name)
    ids, kinds = examples.table([])["example_id"], run.task.behaviour_kinds
    base = np.random.default_rng(0).normal(size=len(ids))
    for n, factor in enumerate(factors):
        columns: dict[str, np.ndarray] = {}
        for mask in range(1 << len(run.stages)):
            score = base + factor * (2.0 * (mask & 1) - 1.0 * (mask & 3 == 3))
            for kind in kinds:
                columns[column(mask, kind.name)] = kind.sign * score
            columns[column(mask, ACCURACY.name)] = (score > 0).astype(float)
        facts = DrawnCoalitionFacts(
            run_digest=run.digest,
            set_digest=examples.digest,
            kind="recipe",
            draw=n,
            stages=len(run.stages),
            behaviours=[BehaviourFacts.of(kind) for kind in kinds],
        )
        table = pd.DataFrame({"example_id": ids, **columns})
        fact_tables.write(draw_path(run, examples.digest, "recipe", n), table, facts)


def measure_draws(
    run: Run, set_name: str, number: int, progress: ProgressCallback, *more: Any
) -> DrawnEffects:
    """:func:`drawing.measure_on_sets` of one set."""
    return drawing.measure_on_sets(run, [set_name], number, progress, *more)[set_name]
