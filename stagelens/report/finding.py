"""What a finding is: something that was seen, and what people say about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.sentences import Sentence

VERSION = 1
MOST_ROWS = 5_000
"""Most rows that a finding keeps; of more, the first ones, beside their total number."""

LONGEST_NOTE = 4_000
"""Most characters of a note."""

LONGEST_TITLE = 200
"""Most characters of a title that people give."""
_LONGEST_CLAIM = 190
"""Most characters of a sentence that stands as a title."""

Cell = str | float | int | bool | None


class Rows(BaseModel):
    """Rows of a table, or those that a chart is drawn from, as plain values.

    Attributes:
        columns: Names in order.
        values: One tuple per row, as long as ``columns``; None where a number is missing.
        total: How many rows there were; more than ``values`` where some were left out.
        formats: Column to the ``%`` format of its numbers.
    """

    model_config = ConfigDict(frozen=True)

    columns: tuple[str, ...] = ()
    values: tuple[tuple[Cell, ...], ...] = ()
    total: int = 0
    formats: dict[str, str] = {}

    @classmethod
    def of(cls, frame: pd.DataFrame, formats: Mapping[str, str] | None = None) -> Rows:
        """The rows of a frame, at most :data:`MOST_ROWS`."""
        kept = frame.head(MOST_ROWS)
        return cls(
            columns=tuple(str(name) for name in kept.columns),
            values=tuple(
                tuple(_cell(value) for value in row)
                for row in kept.itertuples(index=False, name=None)
            ),
            total=len(frame),
            formats=dict(formats or {}),
        )

    def records(self) -> list[dict[str, Cell]]:
        """One dictionary per row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.values]


def _cell(value: object) -> Cell:
    if isinstance(value, str):
        return value
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    # Before the integers, because a bool of Python is one.
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None  # JSON knows neither NaN nor inf
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(str(each) for each in value)
    return str(value)


class FindingView(BaseModel):
    """Where something was seen: a page, and the query parameters that show it again.

    Attributes:
        page: Its part of the address; empty for the Overview.
        title: What the page is called.
        query: Query parameters except the run, which may have another name on another server.
    """

    model_config = ConfigDict(frozen=True)

    # Neither colon nor slash: a file must not make a link that leads to another site.
    page: str = Field(default="", pattern=r"^[A-Za-z0-9_]*$")
    title: str = ""
    query: dict[str, str] = {}


class Seen(BaseModel):
    """What was seen. Written once and never changed, so that a finding stays what it was.

    Attributes:
        version: Of this schema.
        id: Name of the finding in the run folder.
        kind: A chart, a table, or only sentences.
        title: What it shows, in a few words.
        said: Its takeaway in words; a chart's alternative text.
        sentences: Stage effects in the sentence form, each with its trust.
        run_name: Name of the run.
        run_digest: Digest of the recorded training.
        set_name: The evaluation set.
        set_digest: Digest of its content.
        noun: What an example is called.
        behaviour: What was measured; empty if it was more than one.
        estimator: How the counterfactuals were obtained, with settings; empty if nothing is
            counterfactual.
        trust: What is known of every counterfactual that is shown.
        trust_of: The behaviour that each of these is about, where they are about several; empty
            where all are about ``behaviour``.
        observed: The models that everything was measured on, if nothing is estimated; else empty.
        filters: Which examples were asked for, by name of the filter.
        view: Where it was seen.
        figure: A plotly figure, as plotly's JSON; None for a table.
        rows: The rows of the table, or those that the figure is drawn from.
        pinned: When it was pinned.
    """

    model_config = ConfigDict(frozen=True)

    version: int = VERSION
    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    kind: Literal["chart", "table", "sentences"]
    title: str
    said: str
    sentences: tuple[Sentence, ...] = ()
    run_name: str
    run_digest: str
    set_name: str
    set_digest: str
    noun: str = "example"
    behaviour: str = ""
    estimator: str = ""
    trust: tuple[StageTrust, ...] = ()
    trust_of: tuple[str, ...] = ()
    observed: str = ""
    filters: dict[str, str] = {}
    view: FindingView = FindingView()
    figure: dict[str, Any] | None = None
    rows: Rows = Rows()
    pinned: datetime = Field(default_factory=lambda: datetime.now(UTC))


class FindingEdit(BaseModel):
    """One change to what people say about a finding; only what it changes is set.

    Attributes:
        version: Of this schema.
        at: Nanoseconds since 1970, UTC; later than every edit that its writer saw.
        note: The note, in Markdown.
        title: The title; empty for the finding's own.
        place: The key that findings are ordered by.
        removed: Whether the finding is taken out of the report.
    """

    model_config = ConfigDict(frozen=True)

    version: int = VERSION
    at: int
    note: str | None = Field(default=None, max_length=LONGEST_NOTE)
    title: str | None = Field(default=None, max_length=LONGEST_TITLE)
    place: float | None = None
    removed: bool | None = None

    @property
    def time(self) -> datetime:
        """When it was made."""
        return datetime.fromtimestamp(self.at / 1e9, UTC)


class Finding(BaseModel):
    """Something that was seen, with what people say about it now and said before.

    Attributes:
        seen: What was seen.
        history: Every edit, oldest first. Of note, title, place and removal, the last value set
            counts.
    """

    model_config = ConfigDict(frozen=True)

    seen: Seen
    history: tuple[FindingEdit, ...] = ()

    @property
    def id(self) -> str:
        """Its name in the run folder."""
        return self.seen.id

    @property
    def notes(self) -> list[FindingEdit]:
        """The edits that wrote a note, oldest first."""
        return [edit for edit in self.history if edit.note is not None]

    @property
    def note(self) -> str:
        """The note as it is now."""
        return self._last("note", "")

    @property
    def title(self) -> str:
        """The title that somebody gave, else what it claims.

        Without either it is what the finding shows, ``seen.title``.
        """
        return self._last("title", "") or self.claim or self.seen.title

    @property
    def claim(self) -> str:
        """Its first sentence without the full stop; empty where there is none, or a long one.

        A chart about several stages claims nothing: its first sentence is about the stage that
        comes first in training, whatever stands out.
        """
        said = self.seen.sentences
        if not said or (self.seen.kind == "chart" and len(said) > 1):
            return ""
        first = str(said[0]).rstrip(".")
        return first if len(first) <= _LONGEST_CLAIM else ""

    @property
    def place(self) -> float:
        """The key that findings are ordered by; by default the time of pinning."""
        return self._last("place", self.seen.pinned.timestamp())

    @property
    def removed(self) -> bool:
        """Whether it is taken out of the report."""
        return self._last("removed", False)

    def _last(self, name: str, default: Any) -> Any:
        # None is "not changed by this edit"; a note that was emptied is "" and counts.
        values = [getattr(edit, name) for edit in self.history]
        return next((value for value in reversed(values) if value is not None), default)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """By place, and by id where two share one, so that the order is the same everywhere."""
    return sorted(findings, key=lambda finding: (finding.place, finding.id))
