"""What the canvas and the editable words have in common: their look, and the row to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

_HERE = Path(__file__).parent


def component(name: str) -> Any:
    """The component whose parts are files of this name.

    Args:
        name: ``canvas`` or ``words``; ``{start_from}`` in its markup is the row that starts from an
            example of the set, and its script calls ``startFrom``.
    """
    return st.components.v2.component(
        f"stagelens_{name}",
        html=_read(f"{name}.html").replace("{start_from}", _read("start_from.html")),
        css=_read("editor.css") + _read(f"{name}.css"),
        js=_read("start_from.js") + _read(f"{name}.js"),
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
