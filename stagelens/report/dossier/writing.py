"""A dossier as a file: one HTML page, JSON, or a section of a model card."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict

from markupsafe import Markup

from stagelens.charts.style import written_out
from stagelens.report.exported import policy, sealed, sources, style, templates
from stagelens.runs.files import sealed as with_checksum
from stagelens.wording.trust_words import MARKS, MEANINGS

from .content import COMPUTING_NOTE, MEASURED_NOTE, NOT_KNOWN, Computing, Dossier

VERSION = 1
"""Of the JSON document; fields may be added without another one."""


def as_json(dossier: Dossier) -> bytes:
    """The dossier as one JSON document with a checksum, which ``stagelens check`` reads."""
    content = {
        "dossier": VERSION,
        "made": dossier.made.isoformat(timespec="seconds"),
        "run": {"name": dossier.run_name, "digest": dossier.run_digest},
        "facts": [asdict(fact) for fact in dossier.facts],
        "stages": [asdict(stage) for stage in dossier.stages],
        "sets": [asdict(one) for one in dossier.sets],
        "limits": list(dossier.limits),
        "checks": [{"what": what, "command": command} for what, command in dossier.checks],
        "tables": [asdict(table) for table in dossier.tables],
        "notes": [COMPUTING_NOTE, MEASURED_NOTE],
    }
    return (json.dumps(with_checksum(content), indent=1, ensure_ascii=False) + "\n").encode()


def as_html(dossier: Dossier) -> bytes:
    """The dossier as one page that needs nothing else and runs no script."""
    page = (
        templates(__package__)
        .get_template("dossier.html")
        .render(
            dossier=dossier,
            rows=[computing_row(stage.name, stage.computing) for stage in dossier.stages],
            marks=[(MARKS[one], one, MEANINGS[one]) for one in MARKS],
            mark_of=MARKS,
            notes={
                "computing": COMPUTING_NOTE,
                "measured": MEASURED_NOTE,
                "base": dossier.base_counted,
            },
            style=Markup(style()),
            policy=policy([]),
            sources=sources(dossier.run_digest, dossier.tables),
        )
    )
    return sealed(page.encode())


def as_markdown(dossier: Dossier) -> bytes:
    """The dossier as a section of a model card, headings from the second level on."""
    lines = [
        f"## How {_escaped(dossier.run_name)} was trained, stage by stage",
        "",
        f"Made by StageLens on {dossier.made:%d %B %Y} from run `{dossier.run_digest[:16]}`.",
        "",
        *_table(("", ""), [(fact.name, fact.words) for fact in dossier.facts]),
    ]
    for stage in dossier.stages:
        lines += ["", f"### {_escaped(stage.name)}", ""]
        lines += _table(("", ""), [(fact.name, fact.words) for fact in stage.facts])
        lines += ["", "What it is measured to have done:", ""]
        lines += [
            f"- {_escaped(one.text)} *{one.trust or 'observed'}*, set {_escaped(one.set_name)}"
            for one in stage.measured
        ]
        lines += [f"- {_escaped(text)}" for text in stage.silent]
        if not stage.measured and not stage.silent:
            lines.append("- Nothing was measured.")
        if stage.limits:
            lines += ["", "Known limits:", "", *(f"- {_escaped(each)}" for each in stage.limits)]
    lines += ["", "### Computing", ""]
    lines += _table(
        ("stage", "operations", "share of the whole", "share up to then"),
        [computing_row(stage.name, stage.computing)[:4] for stage in dossier.stages],
    )
    lines += ["", f"{COMPUTING_NOTE} {MEASURED_NOTE}", "", "### Limits", ""]
    lines += [f"- {_escaped(each)}" for each in dossier.limits]
    lines += ["", "### Sets", ""]
    lines += _table(
        ("set", "examples", "what it holds", "digest"),
        [(o.name, f"{o.count:,}", o.description, o.digest[:16]) for o in dossier.sets],
    )
    lines += ["", "### How to check it", ""]
    lines += [f"- {_escaped(what)}: {_code(command)}" for what, command in dossier.checks]
    return ("\n".join(lines) + "\n").encode()


def computing_row(name: str, found: Computing) -> tuple[str, str, str, str, str]:
    """A stage, its operations, its share of the whole and up to then, and why it is not known."""
    of = NOT_KNOWN if found.operations is None else f"{found.operations:.3g}"
    return name, of, _percent(found.share), _percent(found.before), found.why_not


def _percent(share: float | None) -> str:
    if share is None:
        return NOT_KNOWN
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


_MARKDOWN = "\\`*_{}[]<>#|"


def _escaped(text: str) -> str:
    """Text from data, so that it is neither markup nor a new line of a model card.

    Characters that would hide or reverse others are written out.
    """
    marked = "".join(f"\\{c}" if c in _MARKDOWN else c for c in written_out(text))
    return " ".join(marked.split())


def _code(text: str) -> str:
    """A command as a code span, whatever backticks it holds; in one nothing else is markup."""
    shown = " ".join(written_out(text).split())
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    pad = " " if "`" in shown[:1] + shown[-1:] else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(_escaped(cell) for cell in cells)} |"

    return [line(head), f"|{'---|' * len(head)}", *map(line, rows)]
