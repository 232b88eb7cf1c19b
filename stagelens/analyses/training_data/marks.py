"""What stands out of a stage's training examples: doubtful labels, and what occurs elsewhere."""

from __future__ import annotations

import pandas as pd

from .tables import TrainingData

BOTH, FINAL, WITHOUT = "both models", "the final model", "the model without the stage"
"""Who answers a training example otherwise than its label says."""

SUSPECT, SAME, NEAR = "doubted by", "same in", "near in"
LEAK, ELSEWHERE = "in an evaluation set", "in another stage"
"""Columns that :func:`marked` adds."""


def marked(data: TrainingData) -> pd.DataFrame:
    """The examples with what stands out of them, in the same order.

    Args:
        data: Of a stage.

    Returns:
        ``data.frame`` and, where they are known, :data:`SUSPECT`: one of :data:`BOTH`,
        :data:`FINAL` and :data:`WITHOUT`, missing where neither doubts the label;
        :data:`SAME` and :data:`NEAR`: where else the same input, or nearly the same text, occurs;
        :data:`LEAK` and :data:`ELSEWHERE`: whether that is so in an evaluation set, and in another
        stage.
    """
    frame = data.frame.copy()
    if data.answers is not None and data.answers.judged:
        final, without = (_differs(frame, name) for name in ("answer", "without"))
        frame[SUSPECT] = pd.Series(pd.NA, frame.index, dtype="string")
        frame.loc[final, SUSPECT] = FINAL
        frame.loc[without, SUSPECT] = WITHOUT
        frame.loc[final & without, SUSPECT] = BOTH
    if data.duplicates is not None:
        found = data.duplicates.sort_values("place", kind="stable")
        exact = found["similarity"] == 1
        for column, rows in ((SAME, found[exact]), (NEAR, found[~exact])):
            frame[column] = frame["example_id"].map(_places(rows)).astype("string")
        in_set = found["where"] == "set"
        for column, rows in (
            (LEAK, found[in_set]),
            (ELSEWHERE, found[~in_set & (found["place"] != data.facts.stage)]),
        ):
            frame[column] = frame["example_id"].isin(set(rows["example_id"]))
    return frame


def _differs(frame: pd.DataFrame, answer: str) -> pd.Series:
    known = frame["label"].notna() & frame[answer].notna()
    # A comparison with a missing string may be missing itself, which is no difference.
    return known & (frame["label"] != frame[answer]).fillna(False)


def _places(rows: pd.DataFrame) -> dict[str, str]:
    """Example id to the places of its duplicates: stages by name, sets as sets."""
    named = rows["place"].where(rows["where"] == "stage", "set " + rows["place"])
    each = named.groupby(rows["example_id"], sort=False)
    return {str(name): ", ".join(places.unique()) for name, places in each}
