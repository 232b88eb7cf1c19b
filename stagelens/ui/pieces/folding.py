"""Parts of a page that are drawn when they are opened."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

OPEN = "show-"
"""How query parameters begin that say what is open."""


def when_opened(name: str, label: str, body: Callable[[], None], folded: bool = True) -> None:
    """Draw a part of a page below a line that opens it, and nothing of it before.

    The first figure of a page makes the browser read all of plotly.js, during which it answers to
    nothing. So what few people look at first waits until it is asked for; the address says what is
    open, as ``show-NAME=true``.

    Args:
        name: Unique on the page.
        label: What is in it; shown in either case.
        body: Draws it.
        folded: Whether it waits; else it is drawn at once, without a line to open.
    """
    if not folded:
        body()
        return
    place = st.expander(label, key=f"{OPEN}{name}", bind="query-params")
    if place.open:
        with place:
            body()
