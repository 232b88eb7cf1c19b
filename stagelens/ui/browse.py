"""Filtering, sorting and paging of examples. Pure pandas: nothing here knows Streamlit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
import pandas as pd

from ..contracts import Behaviour
from ..summary import ACCURACY

PAGE_SIZE = 12

SORTS = ("strongest effect", "most blame", "most credit", "order of the set", "id")
"""How examples can be sorted, the default first."""

SEARCHED = "searched"
"""Column of an example frame that a search looks at: ids, and texts where these are the inputs."""

Answers = Literal["right", "wrong"]
Side = Literal["credit", "blame"]


@dataclass(frozen=True)
class Filters:
    """What is asked of the examples; None everywhere asks nothing.

    Attributes:
        stage: Whose effect ``side``, ``strength`` and ``changed`` are about; None for any stage.
        label: Class name.
        by: Column of ``group``.
        group: One of its values, as text.
        answers: Whether the final model's answer is right or wrong.
        changed: Only where the answer differs without the stage.
        side: Only where the stage's effect is credit, or blame.
        strength: Smallest size of the effect, in the behaviour's unit.
        search: Part of what :data:`SEARCHED` holds, in any case.
        sort: One of :data:`SORTS`.
    """

    stage: str | None = None
    label: str | None = None
    by: str | None = None
    group: str | None = None
    answers: Answers | None = None
    changed: bool = False
    side: Side | None = None
    strength: float = 0.0
    search: str = ""
    sort: str = SORTS[0]

    def asked(self) -> dict[str, str | float | bool]:
        """What is asked, by name; without what asks nothing, and without the order."""
        said: dict[str, str | float | bool] = {}
        if self.side is not None or self.strength > 0 or self.changed:
            said["stage"] = self.stage or "any"
        if self.group is not None:
            said[str(self.by)] = self.group
        for name in ("label", "answers", "side", "search"):
            if value := getattr(self, name):
                said[name] = value
        if self.strength > 0:
            said["strength"] = self.strength
        if self.changed:
            said["changed"] = True
        return said

    @property
    def key(self) -> str:
        """Short and the same for equal filters; goes into widget keys."""
        return hashlib.sha256(repr(astuple(self)).encode()).hexdigest()[:12]


def effect_column(stage: str) -> str:
    """Column of :func:`example_frame` that holds this stage's effect."""
    return f"effect without {stage}"


def answer_column(stage: str) -> str:
    """Column of :func:`example_frame` that holds the answer without this stage."""
    return f"answer without {stage}"


def noise_column(stage: str) -> str:
    """Column of :func:`example_frame` that tells effects within training noise; null: not known."""
    return f"within noise without {stage}"


def example_frame(
    table: pd.DataFrame, behaviour: Behaviour, stages: Sequence[str], columns: Sequence[str]
) -> pd.DataFrame:
    """One row per example, in the set's order, with every stage's effect side by side.

    Args:
        table: An effect table.
        behaviour: Which of its behaviours.
        stages: Stage names in training order.
        columns: The set's own columns to keep, beside ``label``.

    Returns:
        ``example_id``, ``label``, ``prediction``, ``confidence``, ``right`` (NaN without a
        label), ``final``, ``columns``, and per stage :func:`effect_column`,
        :func:`answer_column` and :func:`noise_column`.
    """
    rows = table[table["behaviour"] == behaviour.name]
    first = rows[rows["stage"] == (stages[0] if stages else "")]
    own = [name for name in ("label", *columns) if name in rows]
    base = ["example_id", *own, "prediction", "confidence", "final"]
    frame = first[base].set_index("example_id")
    right = (frame["prediction"].astype(object) == frame["label"].astype(object)).astype(float)
    frame["right"] = right.where(frame["label"].notna(), np.nan)
    added = {}
    for stage in stages:
        part = rows[rows["stage"] == stage].set_index("example_id")
        added[effect_column(stage)] = part["effect"]
        added[answer_column(stage)] = part["prediction_without"]
        added[noise_column(stage)] = part["within_noise"].astype("boolean")
    return pd.concat([frame, pd.DataFrame(added, index=frame.index)], axis=1).reset_index()


def largest(frame: pd.DataFrame, stages: Sequence[str]) -> float:
    """The largest size of any effect; 0 where there is none."""
    sizes = frame[[effect_column(stage) for stage in stages]].abs().max()
    return float(sizes.max()) if len(sizes) and sizes.notna().any() else 0.0


def select(
    frame: pd.DataFrame, filters: Filters, behaviour: Behaviour, stages: Sequence[str]
) -> pd.DataFrame:
    """The examples that the filters ask for, sorted.

    Args:
        frame: From :func:`example_frame`, with :data:`SEARCHED` where ``filters`` search.
        filters: What is asked.
        behaviour: The behaviour that ``frame`` holds; tells credit from blame.
        stages: Stage names in training order.
    """
    chosen = [filters.stage] if filters.stage in stages else list(stages)
    gains = behaviour.sign * frame[[effect_column(s) for s in chosen if s is not None]]
    keep = pd.Series(True, index=frame.index)
    if filters.label is not None:
        keep &= frame["label"].astype(str) == filters.label
    if filters.by in frame and filters.group is not None:
        keep &= frame[filters.by].astype(str) == filters.group
    if filters.answers is not None:
        keep &= frame["right"] == (1.0 if filters.answers == "right" else 0.0)
    if filters.search:
        keep &= frame[SEARCHED].str.contains(filters.search, case=False, regex=False)
    if filters.changed:
        others = frame[[answer_column(s) for s in chosen if s is not None]]
        differs = others.ne(frame["prediction"], axis=0) & others.notna()
        keep &= differs.any(axis=1)
    asked = gains
    if filters.side == "credit":
        asked = gains.where(gains > 0)
    elif filters.side == "blame":
        asked = gains.where(gains < 0)
    if filters.side is not None or filters.strength > 0:
        keep &= (asked.abs() >= filters.strength).any(axis=1)
    order = _order(frame, asked.abs().max(axis=1), gains, filters.sort)
    return frame.loc[order[keep.loc[order].to_numpy()]].reset_index(drop=True)


def _order(frame: pd.DataFrame, size: pd.Series, gains: pd.DataFrame, sort: str) -> pd.Index:
    if sort == "id":
        return frame["example_id"].sort_values(kind="stable").index
    if sort == "most blame":
        return gains.min(axis=1).sort_values(kind="stable").index
    if sort == "most credit":
        return gains.max(axis=1).sort_values(ascending=False, kind="stable").index
    if sort == "strongest effect":
        return size.sort_values(ascending=False, kind="stable").index
    return frame.index


def pages(count: int) -> int:
    """How many pages ``count`` examples fill; at least one."""
    return max(-(-count // PAGE_SIZE), 1)


def page_of(frame: pd.DataFrame, example_id: str | None) -> int | None:
    """The page, from 1, that shows an example; None where it is not among these."""
    places = np.flatnonzero(frame["example_id"] == example_id)
    return int(places[0]) // PAGE_SIZE + 1 if len(places) else None


def neighbour(frame: pd.DataFrame, example_id: str | None, step: int) -> str | None:
    """The example ``step`` rows further; the first where none is chosen; None at the ends."""
    if frame.empty:
        return None
    places = np.flatnonzero(frame["example_id"] == example_id)
    place = int(places[0]) + step if len(places) else 0
    return str(frame["example_id"].iloc[place]) if 0 <= place < len(frame) else None


def export(table: pd.DataFrame, ids: Sequence[str], behaviours: Sequence[str]) -> bytes:
    """Effect rows of these examples, in this order, as CSV; the derived accuracy is left out.

    Args:
        table: The effect table, with trust joined.
        ids: Examples, as filtered and sorted.
        behaviours: Behaviours to keep.
    """
    place = {example_id: position for position, example_id in enumerate(ids)}
    names = [name for name in behaviours if name != ACCURACY.name]
    rows = table[table["behaviour"].isin(names) & table["example_id"].isin(place)]
    rows = rows.iloc[np.argsort(rows["example_id"].map(place).to_numpy(), kind="stable")]
    return rows.to_csv(index=False).encode()
