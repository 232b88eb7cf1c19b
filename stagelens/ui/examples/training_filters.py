"""Which training examples of a stage are listed, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
import pandas as pd
import streamlit as st

from stagelens.analyses.training_data.groups import CONTRIBUTION
from stagelens.analyses.training_data.marks import (
    BOTH,
    ELSEWHERE,
    FINAL,
    LEAK,
    NEAR,
    SAME,
    SUSPECT,
    WITHOUT,
)
from stagelens.contracts import Behaviour
from stagelens.runs.schema import digest
from stagelens.ui.reading import training_loaders
from stagelens.ui.reading.sources import Source
from stagelens.ui.reading.training_loaders import Loaded
from stagelens.wording.signs import gain

_STYLE = (
    "<style>.st-key-training-filters{display:grid;gap:.5rem;align-items:center;"
    "grid-template-columns:repeat(auto-fit,minmax(min(15rem,100%),1fr))}"
    "@media (max-width:640px){.st-key-training-filters{grid-template-columns:1fr 1fr}"
    '[class*="st-key-training-"]:has([data-testid="stDataFrame"])::after'
    '{content:"More columns: scroll sideways.";display:block;opacity:.75;font-size:.9em}}</style>'
)

ANY = "any model"
IN_SET, IN_STAGE, NEARLY, NOWHERE = LEAK, ELSEWHERE, "nearly the same text", "nowhere else"
HURT, HELPED, LARGEST = "hurt most", "helped most", "largest contribution"
UNBELIEVED, LEARNED_LEAST = "hardest to believe", "own loss now"
OFTEN, ORDER = "seen most often", "order of training"

_USUAL = "t-sort-usual"
"""Key of the order that came first when the list was last drawn."""

Side = Literal["helped", "hurt"]


@dataclass(frozen=True)
class Wanted:
    """What is asked of training examples; with None everywhere, all of them.

    Attributes:
        search: Part of an id or of a text, whether in capitals or not.
        label: As trained on.
        doubt: Who answers otherwise than the label says.
        elsewhere: Where else the input occurs.
        side: Whether it helped or hurt.
        column: A metadata column, and
        value: what it has to say.
        sort: One of the orders.
    """

    search: str = ""
    label: str | None = None
    doubt: str | None = None
    elsewhere: str | None = None
    side: Side | None = None
    column: str | None = None
    value: str | None = None
    sort: str = ORDER

    @property
    def key(self) -> str:
        """The same for the same list."""
        return digest(list(astuple(self)))[:12]

    def words(self) -> str:
        """What is asked for, to follow a number of examples; empty where that is nothing."""
        said = []
        if self.side is not None:
            said.append(f"that {self.side}")
        if self.label is not None:
            said.append(f"labelled {self.label}")
        if self.doubt is not None:
            said.append(f"doubted by {self.doubt}")
        if self.elsewhere is not None:
            said.append(self.elsewhere)
        if self.column is not None and self.value is not None:
            said.append(f"with {self.column} {self.value}")
        if self.search:
            said.append(f"with “{self.search}”")
        return ", ".join(said)

    def first(self, about: str) -> str:
        """What the first of the list are, to follow a number of examples.

        Args:
            about: Whose behaviour they helped or hurt.
        """
        did = {HURT: "hurt", HELPED: "helped"}.get(self.sort)
        if did is not None:
            return f"that {did} {about} most"
        return f"that come first by “{self.sort}”"


def choose(loaded: Loaded, frame: pd.DataFrame, groups: dict[str, pd.Series], bad: bool) -> Wanted:
    """The controls in one row.

    Args:
        loaded: The stage's training examples.
        frame: The same, with contributions where these are known.
        groups: What they can be grouped by.
        bad: Whether the stage's effect is blame: then what hurt comes first.
    """
    st.html(_STYLE)
    data = loaded.data
    text = data.facts.kind == "text"
    with st.container(key="training-filters"):
        search = st.text_input(
            "Search training examples",
            key="t-q",
            bind="query-params",
            max_chars=200,
            placeholder="Words of a text, or an id" if text else "Part of an id",
            icon=":material/search:",
            label_visibility="collapsed",
            help="Training examples that contain this; upper and lower case count as the same.",
        )
        label = doubt = None
        if data.labelled:
            labels = sorted(frame["label"].dropna().unique().tolist())
            label = _pick("Label", labels, "t-label", "Any label", "What it was trained on.")
        if SUSPECT in frame and data.labelled:
            doubt = _pick(
                "Doubted by",
                [ANY, BOTH, FINAL, WITHOUT],
                "t-doubt",
                "Doubted or not",
                "Whose answer differs from the label. The final model may have learned a wrong "
                "label; the model without the stage never saw it.",
            )
        elsewhere = None
        if SAME in frame:
            elsewhere = _pick(
                "Elsewhere",
                [IN_SET, IN_STAGE, *([NEARLY] if text else []), NOWHERE],
                "t-else",
                "Found elsewhere or not",
                "Where else the same input occurs, or nearly the same text.",
            )
        side = None
        if CONTRIBUTION in frame:
            side = _pick(
                "Helped or hurt",
                ["helped", "hurt"],
                "t-side",
                "Helped or hurt",
                "Which way its contribution points, to first order.",
            )
        column, value = _by_column(data.columns, groups)
        sort = _sort(frame, bad)
    return Wanted(
        (search or "").strip(),
        label,
        doubt,
        elsewhere,
        # Spelled out, because the control returns any str and not one of the two literals.
        "helped" if side == "helped" else "hurt" if side == "hurt" else None,
        column,
        value,
        sort,
    )


def _pick(label: str, options: Sequence[str], key: str, none: str, text: str) -> str | None:
    return st.selectbox(
        label,
        options,
        index=None,
        placeholder=none,
        key=key,
        bind="query-params",
        help=text,
        label_visibility="collapsed",
    )


def _by_column(
    columns: Sequence[str], groups: dict[str, pd.Series]
) -> tuple[str | None, str | None]:
    known = [name for name in columns if name in groups]
    if not known:
        return None, None
    column = _pick("Column", known, "t-column", "Any column", "Of the data set, or of your file.")
    if column is None:
        return None, None
    values = sorted(groups[column].unique().tolist())
    value = _pick(column, values, f"t-value-{column}", f"Any {column}", "Only these.")
    return column, value


def _sort(frame: pd.DataFrame, bad: bool) -> str:
    orders = []
    if CONTRIBUTION in frame:
        orders = [HURT, HELPED, LARGEST] if bad else [HELPED, HURT, LARGEST]
    if "value_without" in frame and frame["value_without"].notna().any():
        orders.append(UNBELIEVED)
    if "answer" in frame:
        orders.append(LEARNED_LEAST)
    orders += [ORDER, OFTEN]
    # What is known by now may bring a better order, which leads until another is chosen.
    if _USUAL in st.session_state and st.session_state.get("t-sort") == st.session_state[_USUAL]:
        st.session_state["t-sort"] = orders[0]
    st.session_state[_USUAL] = orders[0]
    return st.selectbox(
        "Sort training examples by",
        orders,
        key="t-sort",
        bind="query-params",
        icon=":material/sort:",
        label_visibility="collapsed",
        help=f"“{UNBELIEVED}”: the largest own loss of the model that never saw them.",
    )


def select(
    at: Source,
    loaded: Loaded,
    frame: pd.DataFrame,
    groups: dict[str, pd.Series],
    wanted: Wanted,
    behaviour: Behaviour,
) -> pd.DataFrame:
    """The examples that are asked for, in the order that is."""
    keep = np.ones(len(frame), dtype=bool)
    if wanted.search:
        said = training_loaders.searchable(
            at, loaded, loaded.data.facts.stage, loaded.stamp, at.path
        )
        # Not a pattern: people type brackets and dots, and mean them.
        keep &= said.str.contains(wanted.search, case=False, regex=False).to_numpy(dtype=bool)
    if wanted.label is not None:
        keep &= _is(frame["label"], wanted.label)
    if wanted.doubt is not None and SUSPECT in frame:
        doubts = frame[SUSPECT]
        keep &= doubts.notna().to_numpy() if wanted.doubt == ANY else _is(doubts, wanted.doubt)
    if wanted.elsewhere is not None and SAME in frame:
        keep &= _ELSEWHERE[wanted.elsewhere](frame).to_numpy(dtype=bool)
    if CONTRIBUTION in frame:
        gains = gain(frame[CONTRIBUTION], behaviour).to_numpy(float)
        if wanted.side is not None:
            keep &= gains > 0 if wanted.side == "helped" else gains < 0
    if wanted.column in groups and wanted.value is not None:
        keep &= _is(groups[wanted.column], wanted.value)
    rows = np.flatnonzero(keep)
    if CONTRIBUTION in frame and wanted.sort in (HURT, HELPED, LARGEST):
        key = {HURT: -gains, HELPED: gains, LARGEST: np.abs(gains)}[wanted.sort]
    elif wanted.sort == OFTEN:
        key = frame["uses"].to_numpy(float)
    elif wanted.sort in (UNBELIEVED, LEARNED_LEAST):
        last = 0 if loaded.data.answers is None else len(loaded.data.answers.moments) - 1
        name = "value_without" if wanted.sort == UNBELIEVED else f"value_{last}"
        key = frame[name].to_numpy(float)
    else:
        key = np.zeros(len(frame))
    # Missing numbers come last, and ties keep the order of training.
    return frame.iloc[rows[np.argsort(-key[rows], kind="stable")]]


def _is(column: pd.Series, value: str) -> np.ndarray:
    return (column == value).fillna(False).to_numpy(dtype=bool)


_ELSEWHERE: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    IN_SET: lambda frame: frame[LEAK],
    IN_STAGE: lambda frame: frame[ELSEWHERE],
    NEARLY: lambda frame: frame[NEAR].notna(),
    NOWHERE: lambda frame: frame[SAME].isna() & frame[NEAR].isna(),
}
