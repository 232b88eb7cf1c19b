"""Draws of a recipe that were not trained: recorded effects, each time so many times as large."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from stagelens.effects.draws import COLUMNS, Kind
from stagelens.effects.results import load_result
from stagelens.effects.summary import with_accuracy
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
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
