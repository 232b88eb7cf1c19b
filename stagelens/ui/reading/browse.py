"""Filtering, sorting and paging of examples. Pure pandas: nothing here uses Streamlit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.summary import right_answers
from stagelens.wording.cells import cells

PAGE_SIZE = 12

SORTS = ("strongest effect", "most blame", "most credit", "order of the set", "id")
"""How examples can be sorted, the default first."""

Answers = Literal["right", "wrong"]
Side = Literal["credit", "blame"]


@dataclass(frozen=True)
class Filters:
    """Which examples are asked for; with None everywhere, all of them.

    Attributes:
        stage: Whose effect ``side``, ``strength`` and ``changed`` are about; None for any stage.
        label: Class name.
        by: Column of ``group``.
        group: One of its values, as text.
        answers: Whether the final model's answer is right or wrong.
        changed: Only where the answer differs without the stage.
        side: Only where the stage's effect is credit, or blame.
        strength: Smallest size of the effect, in the behaviour's unit.
        search: Part of an id or of a text, whether in capitals or not.
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
        """The filters that are set, by name; the order is not among them."""
        said: dict[str, str | float | bool] = {}
        # By itself a stage filters nothing: it only says whose effects the other filters look at.
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
        """Short, and the same for equal filters; used in widget keys."""
        return hashlib.sha256(repr(astuple(self)).encode()).hexdigest()[:12]


def effect_column(stage: str) -> str:
    """Column of :func:`example_frame` that holds this stage's effect."""
    return f"effect without {stage}"


def answer_column(stage: str) -> str:
    """Column of :func:`example_frame` that holds the answer without this stage."""
    return f"answer without {stage}"


def noise_column(stage: str) -> str:
    """Column of :func:`example_frame` that marks effects within training noise; null: not known."""
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
    own = [name for name in ("label", *columns) if name in table]
    base = ["example_id", *own, "prediction", "confidence", "final"]
    per_stage = ["effect", "prediction_without", "within_noise"]
    rows = table.loc[table["behaviour"] == behaviour.name, ["stage", *base, *per_stage]]
    parts = [rows[rows["stage"] == stage] for stage in stages]
    first = parts[0] if parts else rows[:0]
    frame = first[base].reset_index(drop=True)
    frame["right"] = right_answers(frame["prediction"], frame["label"])
    added = {}
    for stage, part in zip(stages, parts, strict=True):
        # Usually every stage's rows come in one order, and reindexing a large set is slow.
        if not part["example_id"].array.equals(first["example_id"].array):
            part = part.set_index("example_id").reindex(first["example_id"])
        added[effect_column(stage)] = part["effect"].array
        added[answer_column(stage)] = part["prediction_without"].array
        # Nullable: where the noise has not been measured, there is no True or False.
        added[noise_column(stage)] = part["within_noise"].astype("boolean").array
    # In one go: columns added one by one to a wide frame fragment it.
    return pd.concat([frame, pd.DataFrame(added, index=frame.index)], axis=1)


@dataclass(frozen=True)
class Every:
    """All examples of a set with their effects on one behaviour; shared by sessions, so read-only.

    Attributes:
        frame: From :func:`example_frame`.
        places: Example id to its row in the frame.
        labels: The labels that occur in the set, sorted.
        largest: From :func:`largest`.
    """

    frame: pd.DataFrame
    places: Mapping[str, int]
    labels: tuple[str, ...]
    largest: float

    @classmethod
    def of(cls, frame: pd.DataFrame, stages: Sequence[str]) -> Every:
        """Prepare a frame of examples for :func:`select`."""
        ids = frame["example_id"].tolist()
        labels = sorted(frame["label"].dropna().unique().astype(str))
        places = dict(zip(ids, range(len(ids)), strict=True))
        return cls(frame, places, tuple(labels), largest(frame, stages))

    def row(self, example_id: str) -> pd.Series:
        """One example."""
        return self.frame.iloc[self.places[example_id]]

    @cached_property
    def rank_of_id(self) -> np.ndarray:
        """(N,) rank of every row in the order of ids."""
        # Sorting twice gives ranks: the inverse of a permutation is its argsort.
        return np.argsort(self.frame["example_id"].astype(str).array.argsort())


@dataclass(frozen=True)
class Chosen:
    """The examples that the filters ask for.

    Attributes:
        behaviour: Whose effects are shown.
        filters: What was asked for.
        every: All examples of the set.
        order: Positions in ``every.frame`` of the rows asked for, sorted.
    """

    behaviour: Behaviour
    filters: Filters
    every: Every
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    @property
    def rows(self) -> pd.DataFrame:
        """The rows asked for, sorted."""
        return self.every.frame.iloc[self.order]

    @property
    def ids(self) -> list[str]:
        """Their ids."""
        return self.every.frame["example_id"].iloc[self.order].tolist()

    def page(self, number: int) -> pd.DataFrame:
        """The rows on one page, counted from 1."""
        start = (number - 1) * PAGE_SIZE
        return self.every.frame.iloc[self.order[start : start + PAGE_SIZE]]

    def page_of(self, example_id: str | None) -> int | None:
        """The page, counted from 1, that shows an example; None where it is not among these."""
        place = self._place(example_id)
        return None if place is None else place // PAGE_SIZE + 1

    def neighbour(self, example_id: str | None, step: int) -> str | None:
        """The example ``step`` further on; the first if none is chosen; None beyond the ends."""
        place = self._place(example_id)
        place = 0 if place is None else place + step
        if not 0 <= place < len(self):
            return None
        return str(self.every.frame["example_id"].iloc[self.order[place]])

    def _place(self, example_id: str | None) -> int | None:
        if example_id is None or example_id not in self.every.places:
            return None
        found = np.flatnonzero(self.order == self.every.places[example_id])
        return int(found[0]) if len(found) else None


def largest(frame: pd.DataFrame, stages: Sequence[str]) -> float:
    """The largest absolute effect; 0 if there is none."""
    sizes = frame[[effect_column(stage) for stage in stages]].abs().max()
    return float(sizes.max()) if len(sizes) and sizes.notna().any() else 0.0


def select(
    every: Every,
    filters: Filters,
    behaviour: Behaviour,
    stages: Sequence[str],
    searched: pd.Series | None = None,
) -> Chosen:
    """The examples that the filters ask for, sorted.

    Args:
        every: All examples.
        filters: What is asked for.
        behaviour: The behaviour that ``every`` holds; tells credit from blame.
        stages: Stage names in training order.
        searched: Text that a search looks at, in the order of ``every``; needed for a search only.
    """
    frame = every.frame
    # A link may name a stage that this run does not have.
    chosen = [filters.stage] if filters.stage in stages else list(stages)
    # Positive is credit and negative blame, whichever direction of the behaviour is better.
    gains = behaviour.sign * frame[[effect_column(s) for s in chosen if s is not None]].to_numpy()
    keep = np.ones(len(frame), dtype=bool)
    if filters.label is not None:
        keep &= _says(frame["label"], filters.label)
    if filters.by in frame and filters.group is not None:
        keep &= _says(frame[filters.by], filters.group)
    if filters.answers is not None:
        # NaN, where an example has no label, equals neither.
        keep &= frame["right"].to_numpy() == (1.0 if filters.answers == "right" else 0.0)
    if filters.search and searched is not None:
        # Not a pattern: people type brackets and dots, and mean them.
        found = searched.str.contains(filters.search, case=False, regex=False)
        keep &= found.to_numpy(dtype=bool)
    if filters.changed:
        others = frame[[answer_column(s) for s in chosen if s is not None]]
        # A refused stage has no answer, and a missing one must not count as another answer.
        differs = others.ne(frame["prediction"], axis=0) & others.notna()
        keep &= differs.any(axis=1).to_numpy()
    # Side and strength must hold for the same stage, so the other side is blanked out first.
    asked = gains
    if filters.side == "credit":
        asked = np.where(gains > 0, gains, np.nan)
    elif filters.side == "blame":
        asked = np.where(gains < 0, gains, np.nan)
    if filters.side is not None or filters.strength > 0:
        keep &= (np.abs(asked) >= filters.strength).any(axis=1)
    rows = np.flatnonzero(keep)
    order = rows[_order(every, rows, asked[rows], gains[rows], filters.sort)]
    return Chosen(behaviour, filters, every, order)


def _says(column: pd.Series, text: str) -> np.ndarray:
    """Mask of the rows whose value, as text, is this one."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        # Text is made of the few categories only, not of every row.
        named = [code for code, value in enumerate(column.cat.categories) if str(value) == text]
        return np.isin(column.cat.codes.to_numpy(), named)
    return (column.astype(str) == text).to_numpy()


def _order(
    every: Every, rows: np.ndarray, asked: np.ndarray, gains: np.ndarray, sort: str
) -> np.ndarray:
    """Sorting order of some rows; those without a number come last, ties keep the set's order."""
    if sort == "id":
        return np.argsort(every.rank_of_id[rows])
    # fmin and fmax ignore the NaN of refused stages; argsort puts rows that are all NaN last.
    if sort == "most blame":
        return np.argsort(np.fmin.reduce(gains, axis=1), kind="stable")
    if sort == "most credit":
        return np.argsort(-np.fmax.reduce(gains, axis=1), kind="stable")
    if sort == "strongest effect":
        return np.argsort(-np.fmax.reduce(np.abs(asked), axis=1), kind="stable")
    # Rows are in the order of the set already.
    return np.arange(len(rows))


def pages(count: int) -> int:
    """How many pages ``count`` examples fill, at least one."""
    return max(-(-count // PAGE_SIZE), 1)


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
    return cells(rows).to_csv(index=False).encode()
