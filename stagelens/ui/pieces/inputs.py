"""Inputs as they are: texts as text, whatever is in them, and images with sharp pixels."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import streamlit as st

from . import components

TITLES: Mapping[str, str] = {
    "text": "Text",
    "prompt": "Prompt",
    "completion": "Completion",
    "rejected": "Rejected completion",
    "other": "Other text",
}
"""What the known fields are called; others go by their own name."""

_LONG = 1200
"""Characters; a longer text scrolls in its place."""


def title(field: str) -> str:
    """What a field of an input is called."""
    return TITLES.get(field, field)


def texts(content: Mapping[str, str | None]) -> None:
    """The texts of an example, each under its name where there are several."""
    given = {field: text for field, text in content.items() if text is not None}
    for field, text in given.items():
        if len(given) > 1 or field not in ("text",):
            components.text_block(title(field), muted=True)
        # As code: Markdown would read markup in the text, and fetch images that it names.
        height = 280 if len(text) > _LONG else "content"
        st.code(text, language=None, wrap_lines=True, height=height)  # type: ignore[arg-type]


def image(png: bytes, alt: str) -> None:
    """An image, as wide as its container."""
    st.image(png, width="stretch", alt=alt)


def image_html(png: bytes, alt: str) -> str:
    """The same as markup."""
    data = base64.b64encode(png).decode()
    return (
        f"<img src='data:image/png;base64,{data}' alt='{components.shown(alt)}' "
        "style='width:100%;display:block;image-rendering:pixelated'>"
    )
