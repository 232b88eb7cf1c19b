"""Words from data made safe for places that read Markdown or HTML."""

from __future__ import annotations

import html
import re

from stagelens.charts.style import short, written_out

_LONGEST = 1500
"""Characters of a name or description that are shown; inputs are shown whole, in other places."""

# Beyond Markdown itself: Streamlit reads $ as a formula, and : as an icon or a colour.
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|~<>$:&@=])")


def plain(text: str) -> str:
    """Text for places that read Markdown, with everything in it shown as it is."""
    return _MARKUP.sub(r"\\\1", written_out(short(text, _LONGEST)))


def shown(text: str) -> str:
    """Text for places that read HTML, with everything in it shown as it is, cut to a few lines."""
    return html.escape(written_out(short(text, _LONGEST)), quote=True)
