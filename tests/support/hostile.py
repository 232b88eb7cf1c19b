"""Texts that try to be more than text: to run, to load, to turn the line, to hide, to overflow."""

from __future__ import annotations

OWNED = "document.title='owned';window.owned=1"

MARKUP = (
    f"<script>{OWNED}</script>",
    f'<img src=x onerror="{OWNED}"><svg onload="{OWNED}"></svg><body onload="{OWNED}">',
    '<iframe src="https://example.org/"></iframe><object data="https://example.org/"></object>',
    '<link rel=stylesheet href="https://example.org/x.css"><style>*{display:none}</style>',
    '<base href="https://example.org/"><meta http-equiv=refresh content="0;url=//example.org/">',
    f"</bdi></div></code></pre></textarea></title><!-- ]]> '\"`><b onclick='{OWNED}'>",
    '<form action="https://example.org/"><input autofocus onfocus="' + OWNED + '"></form>',
    f'<a href="javascript:{OWNED}">here</a> javascript:{OWNED} {{{{constructor}}}} %s%n ${{7*7}}',
)
MARKDOWN = (
    "![x](https://example.org/x.png) [a](https://example.org) <https://example.org> # head",
    ":red[red] :material/home: :smile: $x^2$ $$y$$ **b** _i_ `c` ~~d~~ | a | b |\n|---|---|",
)
DIRECTIONS = (
    "\u202etxet desrever \u2066isolate \u2067other \u200fmark",
    "שלום עולם English مرحبا 123",
)
UNSEEN = (
    "zero\u200bwidth\u200d\ufeff\u2060\u00ad",
    "\x00nul \x07bell \x1b[31mred\x1b[0m \x7f\x85\r\n\ttab",
)
MARKS = ("z" + "\u0301\u0489\u20dd" * 60 + " marks",)
LONG = ("w" * 100_000,)

TEXTS = (*MARKUP, *MARKDOWN, *DIRECTIONS, *UNSEEN, *MARKS, *LONG)
"""All of them, the long word last."""

EVERYTHING = "\n".join(3 * TEXTS[:-1])
"""More than 4 KB of them, in one text."""
