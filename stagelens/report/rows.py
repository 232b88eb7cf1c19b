"""The rows that findings rest on, as CSV and JSON; each carries what is needed to read it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stagelens.runs.files import sealed
from stagelens.wording.cells import cell

from . import provenance
from .finding import Cell, Finding, Rows
from .page import Report

LEADING = (
    *("finding", "title", "set", "set_digest", "run_digest", "estimator", "trust_of_row"),
    *("known_of_row", "reliable_of_row", "expected_error_of_row", "filters", "sentence", "note"),
)
"""First columns of the CSV; the findings' own columns follow under their own names."""


def as_json(report: Report) -> bytes:
    """All findings of a report with their rows."""
    document = {
        "made_by": "StageLens",
        "made": report.made.isoformat(timespec="seconds"),
        "run": {"name": report.run_name, "digest": report.run_digest},
        "title": report.title,
        "author": report.cover.author,
        "summary": report.cover.summary,
        "tables": [asdict(each) for each in report.tables],
        "findings": [_finding(each) for each in report.findings],
    }
    sealed_one = sealed(document)
    return (json.dumps(sealed_one, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _finding(finding: Finding) -> dict[str, Any]:
    seen = finding.seen
    return {
        "id": seen.id,
        "kind": seen.kind,
        "title": seen.title,
        "claim": finding.title,
        "sentences": [str(each) for each in provenance.sentences(seen)],
        "note": finding.note,
        "run_digest": seen.run_digest,
        "set": {"name": seen.set_name, "digest": seen.set_digest},
        "behaviour": seen.behaviour,
        "estimator": provenance.estimator(seen),
        "trust": [
            {
                "stage": each.stage,
                "estimator": each.by,
                "trust": each.word,
                "known": each.words,
                "means": each.meaning,
                "reliable": each.reliable,
                "expected_error": _finite(each.expected_error),
            }
            for each in provenance.known(seen)
        ],
        "filters": seen.filters,
        "view": seen.view.model_dump(),
        "pinned": seen.pinned.isoformat(timespec="seconds"),
        "total_rows": seen.rows.total,
        "rows": [
            {name: None if is_picture(value) else value for name, value in row.items()}
            for row in seen.rows.records()
        ],
    }


def as_csv(report: Report) -> bytes:
    """One line per row of every finding; lines that begin with # come before the table."""
    text = io.StringIO()
    for line in (
        f"StageLens, {report.made.isoformat(timespec='seconds')}",
        f"run: {report.run_name}",
        f"run digest: {report.run_digest}",
        *(
            f"finding {number}: {each.seen.title}; filters: "
            f"{provenance.filters_text(each.seen.filters)}"
            for number, each in enumerate(report.findings, 1)
        ),
    ):
        # A line break in a title would end the comment in the middle.
        text.write(f"# {' '.join(line.split())}\n")
    own = list(dict.fromkeys(c for each in report.findings for c in each.seen.rows.columns))
    writer = csv.writer(text, lineterminator="\n")
    # Column names must stay unique, or readers of the CSV would mix up the two.
    writer.writerow([*LEADING, *(f"{c} of row" if c in LEADING else c for c in own)])
    for number, finding in enumerate(report.findings, 1):
        writer.writerows(_lines(number, finding, own))
    return text.getvalue().encode()


def _lines(number: int, finding: Finding, own: Sequence[str]) -> list[list[Cell]]:
    seen = finding.seen
    said = " ".join(str(each) for each in provenance.sentences(seen))
    lines = []
    # A finding without rows has one line all the same, for its sentence and its note.
    for row in (seen.rows if seen.rows.values else Rows(values=((),), total=1)).records():
        leading = (
            *(number, seen.title, seen.set_name, seen.set_digest, seen.run_digest),
            *(provenance.estimator(seen), *provenance.trust_of_row(seen, row)),
            *provenance.promise_of_row(seen, row),
            *(provenance.filters_text(seen.filters), said, finding.note),
        )
        lines.append([_cell(each) for each in (*leading, *(row.get(name) for name in own))])
    return lines


def _finite(value: float | None) -> float | None:
    """A number that JSON knows."""
    return value if value is not None and math.isfinite(value) else None


def _cell(value: Cell) -> Cell:
    """A cell in which text from data is never a formula, and pictures are left out."""
    if is_picture(value):
        return ""
    kept: Cell = cell(value)
    return kept


def is_picture(value: object) -> bool:
    """Whether a cell is an image rather than words."""
    return isinstance(value, str) and value.startswith("data:image/")
