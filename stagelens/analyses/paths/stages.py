"""Stage by stage: where an answer became right or wrong, beside which stage caused it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pandas as pd

from stagelens.contracts import BASE
from stagelens.effects.summary import right_answers

from .answers import Paths

STAGE_COLUMNS = (
    "stage",
    "became_right",
    "became_wrong",
    "seen_after",
    "right_because",
    "wrong_because",
    "without_it",
)
"""Counts of examples. ``became_right`` and ``became_wrong`` after the stage, and their difference
``seen_after``; ``right_because``: right in the end and wrong without the stage, ``wrong_because``:
the reverse, and their difference ``without_it``. The column ``seen_after`` sums to what training
did between the first and the last boundary; ``without_it`` does not sum to anything."""


def by_stage(paths: Paths, effects: pd.DataFrame | None, stages: Sequence[str]) -> pd.DataFrame:
    """Where answers changed, and what they would be without each stage.

    Args:
        paths: Of a set's examples.
        effects: The rows of one behaviour of an effect table of the same set: ``stage``,
            ``example_id``, ``label``, ``prediction_without``; None where there is none.
        stages: Their names, in training order.

    Returns:
        :data:`STAGE_COLUMNS`, one row per stage. NaN where a boundary beside the stage was not
        measured, or its counterfactual is not known.

    Raises:
        ValueError: The effects are of other examples.
    """
    known = paths.known
    right = paths.right[known]
    rows = []
    places = {name: place for place, name in enumerate(paths.boundaries)}
    boundary_before = {stage: name for name, stage in pairwise((BASE, *stages))}
    for stage in stages:
        row: dict[str, object] = dict.fromkeys(STAGE_COLUMNS, float("nan"))
        row["stage"] = stage
        if stage in places and boundary_before[stage] in places:
            then, now = right[:, places[boundary_before[stage]]], right[:, places[stage]]
            row["became_right"] = float(((then == 0) & (now == 1)).sum())
            row["became_wrong"] = float(((then == 1) & (now == 0)).sum())
            row["seen_after"] = float(now.sum() - then.sum())
        if effects is not None and paths.boundaries[-1] == stages[-1]:
            row |= _caused(paths, effects[effects["stage"] == stage])
        rows.append(row)
    return pd.DataFrame(rows, columns=list(STAGE_COLUMNS))


def _caused(paths: Paths, own: pd.DataFrame) -> dict[str, float]:
    """How many answers are right, and wrong, because of a stage; empty where it was refused."""
    if own.empty or own["prediction_without"].isna().all():
        return {}
    at = pd.Index(own["example_id"].astype(object)).get_indexer(paths.example_ids)
    if (at < 0).any() or len(own) != len(at):
        raise ValueError("the effects are of other examples than the answers after boundaries")
    own = own.iloc[at]
    final = paths.right[:, -1]
    without = right_answers(
        *(own[name].reset_index(drop=True) for name in ("prediction_without", "label"))
    )
    because = (
        float(((final == 1) & (without == 0)).sum()),
        float(((final == 0) & (without == 1)).sum()),
    )
    return {
        "right_because": because[0],
        "wrong_because": because[1],
        "without_it": because[0] - because[1],
    }
