"""Notes and summaries, which people write in Markdown, as HTML that can do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from stagelens.charts.style import written_out

_SAFE = ("http://", "https://", "mailto:")


def as_markup(text: str) -> Markup:
    """Markdown as HTML: no HTML of its own, no pictures, and links only to the web or a mailbox.

    Args:
        text: What somebody wrote; characters that would hide or reverse others are written out.
    """
    # Line by line: a line break is no character to write out.
    shown = "\n".join(written_out(line) for line in text.splitlines())
    return Markup(_renderer().render(shown))


@cache
def _renderer() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("table")
    # Headings would stand among those of the page.
    made.disable(["image", "heading", "lheading"])
    made.validateLink = lambda url: url.lower().startswith(_SAFE)  # type: ignore[method-assign]
    made.add_render_rule("link_open", _link)
    return made


def _link(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    tokens[at].attrSet("rel", "noopener noreferrer")
    opened: str = renderer.renderToken(tokens, at, options, env)
    return opened
