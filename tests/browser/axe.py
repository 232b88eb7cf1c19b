"""What axe-core, run in Chromium, finds wrong with a page for people who cannot see or point."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

SERIOUS = ("serious", "critical")
EVERYTHING: dict[str, Any] = {"resultTypes": ["violations"]}
COLOURS = {
    **EVERYTHING,
    "runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]},
}
"""Those that another colour scheme can break; all others go by what the page is made of."""

HEADINGS = """[...document.querySelectorAll("h1,h2,h3,h4,h5,h6")]
    .filter(each => each.checkVisibility()).map(each => Number(each.tagName[1]))"""
"""JavaScript: the levels of all headings, in the order of the page."""


def violations(page: Page, asked: dict[str, Any] = EVERYTHING) -> list[str]:
    """What is serious or critical, element by element, with what would mend it.

    Nothing is left out: Streamlit itself has none on these pages.
    """
    return [
        f"{rule['id']}: {node['target'][0]}: {node['failureSummary']}"
        for rule in Axe().run(page, options=asked).response["violations"]
        if rule["impact"] in SERIOUS
        for node in rule["nodes"]
    ]
