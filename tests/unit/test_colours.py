"""Colours stand in one place, and charts say more than colour."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "stagelens"
COLOUR = re.compile(r"#[0-9A-Fa-f]{6}\b|rgba?\(\s*\d")


def test_only_the_charts_style_knows_colours() -> None:
    style = PACKAGE / "charts" / "style.py"
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != style
        for line in path.read_text().splitlines()
        if COLOUR.search(line)
    ]
    assert found == []
    assert COLOUR.search(style.read_text())
