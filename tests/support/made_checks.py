"""Stored smoothness checks with made-up values."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from stagelens.analyses.smoothness.smoothness import COLUMNS, SmoothnessFacts, smoothness_path
from stagelens.runs import fact_tables
from stagelens.runs.run import Run


def store_check(run: Run, stage: str, set_name: str, goes_on: float) -> Path:
    """Store a check of the margin, of which the second half of the weight adds ``goes_on``.

    Its smoothness is 1 where that is positive, and -1 where it is negative.
    """
    examples = run.evaluation_set(set_name)
    facts = SmoothnessFacts(
        run_digest=run.digest,
        set_digest=examples.digest,
        stage=stage,
        weighed=20,
        of=200,
        steps=57,
    )
    rows = [
        (n, "margin", 0.0, first, first * (1 + goes_on), 100.0 * first)
        for n, first in (("a", 1), ("b", -2))
    ]
    path = smoothness_path(run, stage, examples)
    fact_tables.write(path, pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS), facts)
    return path
