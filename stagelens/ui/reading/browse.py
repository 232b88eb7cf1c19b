"""Filtering, sorting and paging of examples. Pure pandas: nothing here uses Streamlit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from stagelens.analyses.shares.share_table import SHARE, WITHOUT
from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.summary import by_stage, of_behaviour, right_answers
from stagelens.wording.cells import cells
from stagelens.wording.folding import strongest

from .places import Places

PAGE_SIZE = 12
MANY = 200
"""More labels or answers than this are not listed to choose from."""

WRONG_FIRST = "most blame, wrong first"
SORTS = (
    *(WRONG_FIRST, "most blame", "most credit", "strongest effect"),
    *("order of the set", "id"),
)
"""How examples can be sorted, the default first: that of answers which are right or wrong."""

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
        answer: What the final model answers, as text.
        changed: Only where the answer differs without the stage.
        side: Only where the stage's effect is credit, or blame.
        strength: Smallest size of the effect, in the behaviour's unit.
        path: A kind of path over the boundaries, or one path; None for all.
        search: Part of an id or of a text, whether in capitals or not.
        sort: One of :data:`SORTS`.
        credit: Which numbers ``side``, ``strength`` and ``sort`` are about: effects, shares or what
            is seen after a stage; one of ``share_table.READINGS``.
    """

    stage: str | None = None
    label: str | None = None
    by: str | None = None
    group: str | None = None
    answers: Answers | None = None
    answer: str | None = None
    changed: bool = False
    side: Side | None = None
    strength: float = 0.0
    path: str | None = None
    search: str = ""
    sort: str = "strongest effect"
    credit: str = WITHOUT

    def asked(self) -> dict[str, str | float | bool]:
        """The filters that are set, by name; the order is not among them."""
        said: dict[str, str | float | bool] = {}
        # By itself a stage filters nothing: it only says whose effects the other filters look at.
        if self.side is not None or self.strength > 0 or self.changed:
            said["stage"] = self.stage or "any"
        if self.credit != WITHOUT and (self.side is not None or self.strength > 0):
            said["credit by"] = "share" if self.credit == SHARE else "what is seen after"
        if self.group is not None:
            said[str(self.by)] = self.group
        for name in ("label", "answers", "answer", "side", "path", "search"):
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


def number_column(reading: str, stage: str) -> str:
    """Column of a reading of a stage: effects, or what :meth:`Every.with_shares` added."""
    return effect_column(stage) if reading == WITHOUT else f"{reading} of {stage}"


def answer_column(stage: str) -> str:
    """Column of :func:`example_frame` that holds the answer without this stage."""
    return f"answer without {stage}"


def confidence_column(stage: str) -> str:
    """Column of :func:`example_frame` that holds how sure the answer without this stage is."""
    return f"confidence without {stage}"


def noise_column(stage: str) -> str:
    """Column of :func:`example_frame` that marks effects within training noise; null: not known."""
    return f"within noise without {stage}"


def example_frame(
    parts: Iterable[pd.DataFrame],
    behaviour: Behaviour,
    stages: Sequence[str],
    columns: Sequence[str],
) -> pd.DataFrame:
    """One row per example, in the set's order, with every stage's effect side by side.

    Args:
        parts: An effect table in parts, each of whole stages, in training order.
        behaviour: Which of its behaviours.
        stages: Stage names in training order.
        columns: The set's own columns to keep, beside ``label``.

    Returns:
        ``example_id``, ``label``, ``prediction``, ``confidence``, ``right`` (NaN without a
        label), ``final``, ``columns``, and per stage :func:`effect_column`,
        :func:`answer_column`, :func:`confidence_column` and :func:`noise_column`.
    """
    base = pd.DataFrame()
    added: dict[str, Any] = {}
    for table in parts:
        for stage, part in by_stage(of_behaviour(table, behaviour.name), stages):
            if base.empty:
                own = [name for name in ("label", *columns) if name in part]
                base = part[["example_id", *own, "prediction", "confidence", "final"]]
            # Usually every stage's rows come in one order, and reindexing a large set is slow.
            if not part["example_id"].array.equals(base["example_id"].array):
                part = part.set_index("example_id").reindex(base["example_id"])
            added[effect_column(stage)] = part["effect"].array
            added[answer_column(stage)] = part["prediction_without"].array
            # In half the precision, which is more than anybody reads of it.
            added[confidence_column(stage)] = part["confidence_without"].to_numpy(np.float32)
            # Nullable: where the noise has not been measured, there is no True or False.
            added[noise_column(stage)] = part["within_noise"].astype("boolean").array
    frame = base.reset_index(drop=True)
    frame["right"] = right_answers(frame["prediction"], frame["label"])
    # In one go: columns added one by one to a wide frame fragment it.
    return pd.concat([frame, pd.DataFrame(added, index=frame.index, copy=False)], axis=1)


def frame_columns(columns: Sequence[str]) -> list[str]:
    """Columns of an effect table that :func:`example_frame` needs for these of the set."""
    return [
        *("stage", "behaviour", "example_id", "label", *columns, "prediction", "confidence"),
        *("final", "effect", "prediction_without", "confidence_without", "within_noise"),
    ]


@dataclass(frozen=True)
class Every:
    """All examples of a set with their effects on one behaviour; shared by sessions, so read-only.

    Attributes:
        frame: From :func:`example_frame`.
        places: Example id to its row in the frame.
        labels: The labels that occur in the set, sorted.
        answers: What the final model answers, sorted; empty where it is too much to choose from.
        largest: The largest absolute effect; 0 if there is none.
        strongest: The stages with the largest mean absolute effects, in training order; all of
            them where they are few.
    """

    frame: pd.DataFrame
    places: Mapping[str, int]
    labels: tuple[str, ...]
    answers: tuple[str, ...]
    largest: float
    strongest: tuple[str, ...]

    @classmethod
    def of(cls, frame: pd.DataFrame, stages: Sequence[str]) -> Every:
        """Prepare a frame of examples for :func:`select`."""
        labels = sorted(frame["label"].dropna().unique().astype(str))
        sizes = (frame[effect_column(stage)].abs().mean() for stage in stages)
        kept = tuple(stages[place] for place in strongest(sizes))
        ids = Places(frame["example_id"])
        answers = sorted(frame["prediction"].dropna().unique().astype(str))
        some = tuple(answers if len(answers) <= MANY else ())
        return cls(frame, ids, tuple(labels), some, largest(frame, stages), kept)

    def row(self, example_id: str) -> pd.Series:
        """One example."""
        return self.frame.iloc[self.places[example_id]]

    def with_shares(self, found: Mapping[str, Mapping[str, np.ndarray]]) -> Every:
        """The same with further numbers of stages, from reading and stage to (N,) of them."""
        added = {
            number_column(reading, stage): numbers
            for reading, of in found.items()
            for stage, numbers in of.items()
        }
        more = pd.DataFrame(added, index=self.frame.index, copy=False)
        return replace(self, frame=pd.concat([self.frame, more], axis=1))

    def largest_in(self, reading: str, stages: Sequence[str]) -> float:
        """The largest absolute number of a reading; 0 if there is none."""
        return largest(self.frame, stages, reading)

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
        place = self.place_of(example_id)
        return None if place is None else place // PAGE_SIZE + 1

    def neighbour(self, example_id: str | None, step: int) -> str | None:
        """The example ``step`` further on; the first if none is chosen; None beyond the ends."""
        place = self.place_of(example_id)
        place = 0 if place is None else place + step
        if not 0 <= place < len(self):
            return None
        return str(self.every.frame["example_id"].iloc[self.order[place]])

    def place_of(self, example_id: str | None) -> int | None:
        """How many of these examples come before one; None where it is not among them."""
        row = None if example_id is None else self.every.places.get(example_id)
        found = np.flatnonzero(self.order == row) if row is not None else np.empty(0)
        return int(found[0]) if len(found) else None


def largest(frame: pd.DataFrame, stages: Sequence[str], reading: str = WITHOUT) -> float:
    """The largest absolute effect, or number of another reading; 0 if there is none."""
    sizes = [float(frame[number_column(reading, stage)].abs().max()) for stage in stages]
    return max((size for size in sizes if np.isfinite(size)), default=0.0)


# From the gains of a stage, and those of them that the filters ask for: the largest comes first.
_RANKS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "strongest effect": lambda _, asked: np.abs(asked),
    WRONG_FIRST: lambda gains, _: -gains,
    "most blame": lambda gains, _: -gains,
    "most credit": lambda gains, _: gains,
}


def select(
    every: Every,
    filters: Filters,
    behaviour: Behaviour,
    stages: Sequence[str],
    searched: pd.Series | None = None,
    on_path: np.ndarray | None = None,
) -> Chosen:
    """The examples that the filters ask for, sorted.

    Args:
        every: All examples.
        filters: What is asked for.
        behaviour: The behaviour that ``every`` holds; tells credit from blame.
        stages: Stage names in training order.
        searched: Text that a search looks at, in the order of ``every``; needed for a search only.
        on_path: (N,) bool, in the same order: the examples on the path that is asked for.
    """
    frame = every.frame
    # A link may name a stage that this run does not have.
    chosen = [stage for stage in stages if filters.stage in (stage, None)] or list(stages)
    keep = np.ones(len(frame), dtype=bool)
    if filters.label is not None:
        keep &= _says(frame["label"], filters.label)
    if filters.answer is not None:
        keep &= _says(frame["prediction"], filters.answer)
    if filters.by in frame and filters.group is not None:
        keep &= _says(frame[filters.by], filters.group)
    if filters.answers is not None:
        # NaN, where an example has no label, equals neither.
        keep &= frame["right"].to_numpy() == (1.0 if filters.answers == "right" else 0.0)
    if filters.search and searched is not None:
        # Not a pattern: people type brackets and dots, and mean them.
        found = searched.str.contains(filters.search, case=False, regex=False)
        keep &= found.to_numpy(dtype=bool)
    if on_path is not None:
        keep &= on_path
    if filters.changed:
        differs = np.zeros(len(frame), dtype=bool)
        for stage in chosen:
            other = frame[answer_column(stage)]
            # A refused stage has no answer, and a missing one must not count as another answer.
            differs |= (other.ne(frame["prediction"]) & other.notna()).to_numpy()
        keep &= differs
    rank = _RANKS.get(filters.sort)
    key = np.full(len(frame), np.nan)
    strong = np.zeros(len(frame), dtype=bool)
    # Stage by stage: all effects of a large set at once take as much memory as the set.
    for stage in chosen:
        # Positive is credit and negative blame, whichever direction of the behaviour is better.
        gains = behaviour.sign * frame[number_column(filters.credit, stage)].to_numpy()
        # Side and strength must hold for the same stage, so the other side is blanked out first.
        asked = gains
        if filters.side is not None:
            asked = np.where(gains > 0 if filters.side == "credit" else gains < 0, gains, np.nan)
        strong |= np.abs(asked) >= filters.strength
        # fmax ignores the NaN of refused stages.
        key = key if rank is None else np.fmax(key, rank(gains, asked))
    if filters.side is not None or filters.strength > 0:
        keep &= strong
    rows = np.flatnonzero(keep)
    if filters.sort == "id":
        order = np.argsort(every.rank_of_id[rows])
    elif filters.sort == WRONG_FIRST:
        # Where an example has no label, its answer is not known to be wrong.
        right = frame["right"].to_numpy()[rows] != 0.0
        order = np.lexsort((-key[rows], right))
    elif rank is not None:
        # Rows that are all NaN come last, and ties keep the set's order.
        order = np.argsort(-key[rows], kind="stable")
    else:
        order = np.arange(len(rows))  # in the order of the set already
    return Chosen(behaviour, filters, every, rows[order])


def _says(column: pd.Series, text: str) -> np.ndarray:
    """Mask of the rows whose value, as text, is this one."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        # Text is made of the few categories only, not of every row.
        named = [code for code, value in enumerate(column.cat.categories) if str(value) == text]
        return np.isin(column.cat.codes.to_numpy(), named)
    return (column.astype(str) == text).to_numpy()


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
