"""How stored estimates agree with the stored replay of their set; kept of a large set.

Two tables of a million examples take seconds to compare, which nobody should wait for whenever a
dashboard starts. The figures are kept under the checksums of both tables, so that those of other
tables, or of tables as they were before, are never taken for theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.effects.results import (
    ResultFacts,
    is_large,
    load_result,
    result_path,
)
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest

from .fidelity import fidelity, paired

_VERSION = 1
"""Part of every key; raised when the figures change."""

Figures = tuple[str, str, dict[str, Any]]
"""A stage, a behaviour, and the figures of ``fidelity``, without that of ranks."""

_COLUMNS = ("stage", "behaviour", "r", "slope", "relative_error", "sign_agreement")


class _Compared(BaseModel):
    """Which tables were compared, by their checksums."""

    model_config = ConfigDict(frozen=True)

    estimate: str
    truth: str
    stages: list[str]


def figures(
    run: Run,
    facts: ResultFacts,
    truth: ResultFacts,
    stages: Sequence[str],
    rows: Callable[[str], pd.DataFrame | None] | None = None,
) -> list[Figures]:
    """How an estimate agrees with the replay; none where a table cannot be read.

    Args:
        run: The run.
        facts: Of the estimate.
        truth: Of the replay.
        stages: Those whose replay is the truth.
        rows: Gives the estimate's rows of a behaviour, by its name; None reads the stored ones.
    """
    compared = None if rows is not None else _compared(run, facts, truth, stages)
    if compared is not None:
        stored = fact_tables.read(_path(run, compared), _Compared, _COLUMNS)
        if stored is not None and stored[0] == compared:
            return [(row["stage"], row["behaviour"], row) for row in stored[1].to_dict("records")]
    return list(_compare(run, facts, truth, stages, rows))


def keep(run: Run, facts: ResultFacts, truth: ResultFacts, stages: Sequence[str]) -> None:
    """Work the figures out and keep them, of a large set."""
    compared = _compared(run, facts, truth, stages)
    if compared is None or fact_tables.is_intact(_path(run, compared)):
        return
    found = _compare(run, facts, truth, stages, None)
    rows = [{"stage": stage, "behaviour": name, **own} for stage, name, own in found]
    fact_tables.write(_path(run, compared), pd.DataFrame(rows, columns=list(_COLUMNS)), compared)


def _compared(
    run: Run, facts: ResultFacts, truth: ResultFacts, stages: Sequence[str]
) -> _Compared | None:
    """What is kept of two tables; None where nothing is: of a small set, and of older tables."""
    if not is_large(run.evaluation_set(facts.set_name).count):
        return None
    try:
        sums = [fact_tables.checksum(result_path(run, each)) for each in (facts, truth)]
    except ValueError:
        return None
    if sums[0] is None or sums[1] is None:
        return None
    return _Compared(estimate=sums[0], truth=sums[1], stages=list(stages))


def _path(run: Run, compared: _Compared) -> Path:
    key = digest(_VERSION, compared.model_dump())[:32]
    return run.files.inside(f"results/agreements/{key}.parquet")


def _compare(
    run: Run,
    facts: ResultFacts,
    truth: ResultFacts,
    stages: Sequence[str],
    rows: Callable[[str], pd.DataFrame | None] | None,
) -> Iterator[Figures]:
    examples = run.evaluation_set(facts.set_name)

    def stored(of: ResultFacts, behaviour: str, stage: str | None) -> pd.DataFrame | None:
        columns = ("example_id", "stage", "effect")
        found = load_result(
            *(run, examples, "effects", of.estimator, of.settings, True, behaviour, stage, columns)
        )
        return None if found is None else found.table

    # Of a large set, no more than a stage's rows are in memory.
    parts = list(stages) if rows is None and is_large(examples.count) else [None]
    for behaviour in (each.name for each in facts.behaviours):
        for part in parts:
            own = stored(facts, behaviour, part) if rows is None else rows(behaviour)
            true = stored(truth, behaviour, part)
            if own is None or true is None:
                continue
            for stage in stages if part is None else [part]:
                one, other = (each.to_numpy() for each in paired(own, true, stage))
                yield stage, behaviour, fidelity(one, other, ranks=False)
