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
    """The control, and what the choice answers, where it is none that the page says itself.

    Args:
        told: Whether that is shown, and not only on demand.

    Returns:
        A reading.
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
    if told and reading != WITHOUT:
        components.text_block(QUESTIONS[reading], muted=True)
    return reading
