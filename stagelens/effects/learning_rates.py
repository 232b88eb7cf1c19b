"""Learning rates of stages, as charts draw them."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from stagelens.runs.run import Stage

_CURVE_POINTS = 240
"""Points in the curve of a stage's learning rate: what a screen can show."""


def learning_rates(stages: Iterable[Stage]) -> pd.DataFrame:
    """``stage``, ``step``, ``lr`` of every stage, thinned to what a screen can show."""
    parts, stages = [], list(stages)
    # All stages share the width of the screen.
    points = max(min(_CURVE_POINTS, 12 * _CURVE_POINTS // max(len(stages), 1)), 2)
    for stage in stages:
        table = stage.table()
        every = max(len(table) // points, 1)
        kept = table.iloc[::every]
        # Thinning may drop the last step, and with it the rate that the schedule ends at.
        if len(table) and kept.index[-1] != table.index[-1]:
            kept = pd.concat([kept, table.iloc[[-1]]])
        parts.append(kept.assign(stage=stage.name)[["stage", "step", "lr"]])
    if not parts:
        return pd.DataFrame({"stage": [], "step": [], "lr": []})
    return pd.concat(parts, ignore_index=True)
