"""Links in markup and in components turn pages as Streamlit's own do: nothing is loaded anew.

They are plain links, so that they can be copied and opened in another tab.
Each click adds one entry to the browser's history; ``st.switch_page`` adds two where the address
has a query.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

_KEY = "links"
STYLE = f"<style>.st-key-{_KEY}{{display:none}}</style>"
_component = st.components.v2.component(
    "stagelens_links", js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
)


def follow() -> None:
    """Let links turn pages; the first call of every page makes it."""
    _component(key=_KEY)
