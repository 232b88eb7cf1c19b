"""The choice between "Without it", "Share" and "Seen after", the same on every page."""

from __future__ import annotations

import streamlit as st

from stagelens.analyses.shares.sentences import QUESTIONS, TITLES
from stagelens.analyses.shares.share_table import WITHOUT

from . import components

KEY = "credit"
"""Of the control, and in links."""
DIFFERENCE = "seen after"
"""What a bar of the waterfall is where boundaries are compared."""


def choose(told: bool = True) -> str:
    """The control, and a sentence of what the choice answers; returns a reading.

    Args:
        told: Whether the sentence is shown, and not only on demand.
    """
    readings = {title: reading for reading, title in TITLES.items()}
    picked = st.segmented_control(
        "Credit by",
        list(readings),
        default=TITLES[WITHOUT],
        key=KEY,
        bind="query-params",
        required=True,
        help=" ".join(f"**{title}**: {QUESTIONS[reading]}" for title, reading in readings.items()),
    )
    reading = readings[picked or TITLES[WITHOUT]]
    if told:
        components.text_block(QUESTIONS[reading], muted=True)
    return reading
