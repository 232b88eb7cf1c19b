"""A report as one HTML page that needs nothing else: no network, no server, no second file.

Everything that comes from data goes through the template's escaping; plotly.js is in the page once,
and a content security policy lets the browser run that, the script that draws, and nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Literal
from urllib.parse import urlencode, urljoin

import jinja2
from markupsafe import Markup

from stagelens.charts.style import EITHER_STYLE, short
from stagelens.wording.numbers import number
from stagelens.wording.trust_words import MARKS, MEANINGS

from . import provenance
from .cover import Cover
from .exported import TableUsed, file_text, policy, sealed, sources, style, templates
from .figures import drawn, fitted, packed
from .finding import Cell, Finding, FindingView, Rows
from .markdown import as_markup
from .method_text import GLOSSARY, METHOD, SOURCE

Charts = Literal["interactive", "static"]
"""How a report draws: by plotly.js, which is in it, or as pictures that need no script."""

LARGEST: Mapping[Charts, int] = {"interactive": 2_500_000, "static": 1_000_000}
"""Most bytes that a report may have."""

_MOST_ROOM = 150_000
"""Most bytes of one packed figure, even if the report has room for more."""
_WORDS = 400
"""Most bytes of what is said about a figure."""
_HEIGHT = 360
_CONTENTS_FROM = 3
"""Findings from which on a report has a table of contents."""
_SHOWN_ROWS = 40
_LONGEST = 600
"""Most characters of a cell."""
_SMALLEST = 0.001
"""Smaller numbers of a table are bounded by it, as the dashboard does with q values."""


@dataclass(frozen=True)
class Section:
    """Some findings under a heading.

    Attributes:
        title: The heading.
        about: What the reader is looking at, in a sentence.
        findings: In order.
        leads: Whether it stands before the contents: what people pinned is what they want to say.
    """

    title: str
    about: str = ""
    findings: Sequence[Finding] = ()
    leads: bool = False


def pinned(findings: Sequence[Finding]) -> Section:
    """What people pinned, ahead of what the run says by itself."""
    return Section("Findings", "Pinned by people who looked at this run.", findings, leads=True)


@dataclass(frozen=True)
class Report:
    """What a report holds.

    Attributes:
        run_name: Name of the run.
        run_digest: Digest of its recorded training.
        sections: In order; those without findings are left out.
        made: When it was made.
        address: Where the dashboard is, for links back to a view; empty if not known.
        run_reference: How the dashboard's links name the run.
        tables: The stored effect tables that it can have been made from.
        cover: Title, author and summary, as far as people gave them.
    """

    run_name: str
    run_digest: str
    sections: Sequence[Section]
    made: datetime = field(default_factory=lambda: datetime.now(UTC))
    address: str = ""
    run_reference: str = ""
    tables: Sequence[TableUsed] = ()
    cover: Cover = field(default_factory=Cover)

    @property
    def title(self) -> str:
        """What it is called."""
        return self.cover.title or self.run_name

    @property
    def findings(self) -> list[Finding]:
        """All findings, in order."""
        return [finding for section in self.sections for finding in section.findings]


def as_html(report: Report, charts: Charts = "interactive") -> bytes:
    """The report as one file.

    Args:
        report: What it holds. A figure that leaves no room for the others is thinned, and a line
            under it says so.
        charts: How it draws.
    """
    static = charts == "static"
    shown = {f.id: f for f in report.findings if f.seen.figure is not None}
    scripts = [] if static else [file_text("report.js")]
    if shown and not static:
        from plotly.offline import get_plotlyjs

        scripts.append(get_plotlyjs())

    def render(figures: Mapping[str, tuple[Markup | None, int, str]]) -> bytes:
        return (
            _templates()
            .get_template("report.html")
            .render(
                report=report,
                sections=[section for section in report.sections if section.findings],
                figures=figures,
                static=static,
                plotly=Markup(packed(scripts[1]) if scripts[1:] else ""),
                draw=Markup("".join(scripts[:1])),
                style=Markup(style()),
                chart_style=Markup(EITHER_STYLE),
                policy=policy(scripts),
                marks=[(MARKS[one], one, MEANINGS[one]) for one in MARKS],
                method=METHOD,
                source=SOURCE,
                glossary=GLOSSARY,
                links={each.id: _link(report, each.seen.view) for each in report.findings},
                sources=sources(report.run_digest, report.tables),
                as_markup=as_markup,
                contents=_contents(report),
            )
            .encode()
        )

    draw = _picture if static else _figure
    nothing = (Markup("" if static else packed("{}")), 0, "")
    # Rendered without figures first: what the words leave is divided among the figures.
    left = LARGEST[charts] - len(render(dict.fromkeys(shown, nothing))) - _WORDS * len(shown)
    wanted = {name: draw(finding, _MOST_ROOM) for name, finding in shown.items()}
    sizes = {name: len((text or "").encode()) for name, (text, _, _) in wanted.items()}
    room = _room(list(sizes.values()), left)
    figures = {
        name: found if sizes[name] <= room else draw(shown[name], room)
        for name, found in wanted.items()
    }
    return sealed(render(figures))


def _room(sizes: Sequence[int], left: int) -> int:
    """The most that one figure may take: small ones leave what they do not need to large ones."""
    for at, size in enumerate(ordered := sorted(sizes)):
        share = left // (len(ordered) - at)
        if size > share:
            return share
        left -= size
    return _MOST_ROOM


def _contents(report: Report) -> list[tuple[int, str, list[tuple[str, str]]]]:
    """Number and title of every section that follows, and its claims; none of a short report."""
    shown = [section for section in report.sections if section.findings]
    if len(report.findings) < _CONTENTS_FROM:
        return []
    return [
        (number, section.title or "Findings", [(f.id, f.title) for f in section.findings])
        for number, section in enumerate(shown, 1)
        if not section.leads
    ]


def _picture(finding: Finding, room: int) -> tuple[Markup | None, int, str]:
    """A figure as SVG, and what was left out; it brings its height with it."""
    seen = finding.seen
    text, said = drawn(seen.figure or {}, f"c{seen.id}", seen.title, seen.said, room)
    return (None if text is None else Markup(text), 0, said)


def _figure(finding: Finding, room: int) -> tuple[Markup | None, int, str]:
    """A figure as packed JSON for a script block, its height, and what was left out."""
    figure = finding.seen.figure or {}
    text, said = fitted(figure, room)
    height = figure["layout"].get("height")
    pixels = int(height) if isinstance(height, int | float) else _HEIGHT
    return (None if text is None else Markup(text), pixels, said)


def _link(report: Report, view: FindingView) -> tuple[str, bool]:
    """A link that shows a finding's view again, and whether it can be followed."""
    query = {"run": report.run_reference, **view.query} if report.run_reference else view.query
    words = f"{view.page}?{urlencode(query)}" if query else view.page
    # The address comes from a request; only these schemes may become a link.
    if report.address.startswith(("http://", "https://")):
        return urljoin(report.address, words), True
    return words, False


# ------------------------------------------------------------------------------------ template


@cache
def _templates() -> jinja2.Environment:
    made = templates(__package__)
    made.globals.update(telling=provenance, cell=_cell, is_number=_is_number, most=_SHOWN_ROWS)
    made.globals.update(mark_of=MARKS)
    return made


def _cell(rows: Rows, column: str, value: Cell) -> str | Markup:
    """A cell as it is printed."""
    if value is None:
        return "–"
    if isinstance(value, str):
        if value.startswith("data:image/png;base64,"):
            return Markup('<img src="{}" alt="">').format(value)
        return short(value, _LONGEST)
    # Before the numbers, because a bool is an int.
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column in rows.formats:
        # Formats come from the file of a finding and may fit no number.
        try:
            return (rows.formats[column] % value).replace("-", "−")
        except (TypeError, ValueError):
            return number(value)
    if isinstance(value, int):
        return f"{value:,}"
    if 0 < abs(value) < _SMALLEST:  # a q that is small is not 0
        return f"< {number(_SMALLEST)}" if value > 0 else f"> {number(-_SMALLEST)}"
    return number(value)


def _is_number(value: Cell) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
