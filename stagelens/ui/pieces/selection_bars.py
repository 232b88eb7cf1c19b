"""What models answered by which part of a stage's examples they were trained on: bars."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from stagelens.analyses.selection.outcomes import Outcome
from stagelens.analyses.selection.sentences import trained_on
from stagelens.charts import EITHER
from stagelens.charts.selection import trained_bars, trained_rows

from . import components, drawing
from .pinning import About


def shown(outcome: Outcome, key: str, about: About) -> bool:
    """Bars of the chosen examples, random ones, the worst and all, by replay.

    Args:
        outcome: What was chosen.
        key: Unique among the charts of the page.
        about: What it is of; the title is completed.

    Returns:
        Whether there is anything: nothing is shown of a choice without a proof.
    """
    kind = outcome.behaviour
    rows = pd.DataFrame(
        [
            {
                "trained_on": trained_on(part, size),
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "chosen": part == "chosen",
            }
            for part, size, found in outcome.measured(kind.name)
        ]
    )
    if rows.empty:
        return False
    components.drawn(
        drawing.chart(trained_rows, rows, kind),
        key,
        lambda: drawing.chart(trained_bars, rows, kind, EITHER),
        replace(about, title=f"{about.title}: by what was trained on"),
    )
    return True
