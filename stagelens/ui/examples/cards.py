"""One page of the table as cards, in windows that are too narrow for the columns of stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from stagelens.ui.pieces import state
from stagelens.ui.pieces.components import tint

MOST = 4
"""Stages that a card has room for: those with the strongest effects on its example."""

TABLE = "examples-as-table"
"""Key of the container of the table, which cards stand for where the window is narrow."""
_KEY = "examples-as-cards"
_OPEN = "open"
STYLE = (
    f"@media (max-width:640px){{.st-key-{TABLE}{{display:none}}}}"
    f"@media (min-width:641px){{.st-key-{_KEY}-place{{display:none}}}}"
)
_HERE = Path(__file__).parent


def _part(kind: str) -> str:
    return (_HERE / f"cards.{kind}").read_text(encoding="utf-8")


_component = st.components.v2.component(
    "stagelens_cards",
    html='<ul class="cards" aria-label="Examples"></ul>',
    css=_part("css"),
    js=_part("js"),
)


def show(
    rows: pd.DataFrame,
    texts: Sequence[str],
    answers: Sequence[str],
    effects: Mapping[str, Sequence[str]],
    gains: Mapping[str, Sequence[float]],
    without: Mapping[str, Sequence[str]],
    ends: Mapping[str, Sequence[str]],
) -> None:
    """The examples of a page of the table; a card that is pressed opens its own.

    Args:
        rows: ``id``, for images ``input``, where there are labels ``label``: the words of the
            table.
        texts: What stands in the place of the picture; empty for images.
        answers: What the final model says, and what that is called.
        effects: Stage to the words of its effect on each example.
        gains: Stage to the same effects on the credit scale; 1 is the largest of the set.
        without: Stage to what the model without it answers; empty where no answer is meant.
        ends: Stage to the interval of its effect on each example, where it is known.
    """
    cards = [
        {
            "id": row["id"],
            "picture": row.get("input"),
            "text": texts[at] if texts else None,
            "answer": answers[at],
            "label": row.get("label"),
            "effects": [
                _effect(stage, at, effects, gains, without, ends) for stage in _strongest(gains, at)
            ],
        }
        for at, row in enumerate(rows.to_dict("records"))
    ]

    def opened() -> None:
        asked = st.session_state[_KEY].get(_OPEN)
        # Whoever speaks to the server may name any.
        if isinstance(asked, str) and asked in set(rows["id"]):
            state.choose(asked)

    with st.container(key=f"{_KEY}-place"):
        _component(key=_KEY, data={"cards": cards}, on_open_change=opened)


def _strongest(gains: Mapping[str, Sequence[float]], at: int) -> list[str]:
    """The stages on a card, in the order of training."""
    sizes = {stage: abs(of_rows[at]) for stage, of_rows in gains.items()}
    # NaN, which a refused effect is, is larger than nothing.
    chosen = sorted(sizes, key=lambda stage: -sizes[stage] if sizes[stage] >= 0 else 1.0)[:MOST]
    return [stage for stage in gains if stage in chosen]


def _effect(
    stage: str,
    at: int,
    effects: Mapping[str, Sequence[str]],
    gains: Mapping[str, Sequence[float]],
    without: Mapping[str, Sequence[str]],
    ends: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    amount = effects[stage][at]
    answer = without.get(stage, [""] * (at + 1))[at]
    # A direction is told only where the words tell one.
    signed = amount[:1] in ("▲", "▼")
    share = 100 * tint(gains[stage][at]) if signed else 0.0
    shown = {
        "stage": stage,
        "amount": amount,
        "tint": round(-share if amount[:1] == "▼" else share, 1),
    }
    # Left out where there is none: a page has hundreds of these.
    if answer:
        shown["without"] = answer
    if stage in ends and ends[stage][at]:
        shown["ends"] = ends[stage][at]
    return shown
