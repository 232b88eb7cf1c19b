"""The choice between "Without it", "Share" and "Seen after", the same on every page."""

from __future__ import annotations

import streamlit as st

from stagelens.analyses.shares.sentences import QUESTIONS, TITLES, WHICH
from stagelens.analyses.shares.share_table import WITHOUT

from . import components, state

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
    asked = state.chosen(KEY)
    state.prepare(KEY, asked if asked in readings else TITLES[WITHOUT])
    picked = st.segmented_control(
        "Credit by",
        list(readings),
        key=KEY,
        on_change=state.take,
        args=(KEY,),
        required=True,
        help=" ".join(f"**{title}**: {QUESTIONS[reading]}" for title, reading in readings.items())
        + f" {WHICH}",
    )
    state.write()  # the page may be a fragment's, which does not begin anew
    reading = readings[picked or TITLES[WITHOUT]]
    if told and reading != WITHOUT:
        components.text_block(QUESTIONS[reading], muted=True)
    return reading
