"""An exported report as a tree of elements, and reports of findings that are made up."""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pandas as pd

from stagelens.report.finding import Finding, Rows
from stagelens.report.page import Report, Section
from tests.support.findings import finding

VOID = {"meta", "img", "br", "link", "input"}


@dataclass
class Element:
    """One element of a page, with its text."""

    tag: str
    attributes: dict[str, str | None]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(one if isinstance(one, str) else one.text for one in self.children)

    def all(self, tag: str = "", of: str = "") -> list[Element]:
        """Elements below, by tag and by class."""
        found = []
        for one in self.children:
            if isinstance(one, Element):
                classes = (one.attributes.get("class") or "").split()
                if (not tag or one.tag == tag) and (not of or of in classes):
                    found.append(one)
                found += one.all(tag, of)
        return found


class Page(HTMLParser):
    """A page as a tree."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(content.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open[-1].tag == tag, f"{tag} ends {self.open[-1].tag}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def page_of(content: bytes) -> Element:
    page = Page(content)
    assert len(page.open) == 1, "everything that is opened is closed"
    return page.root


PACKED = "text/plain"


def unpacked(element: Element) -> str:
    return gzip.decompress(base64.b64decode(element.text)).decode()


def figures_of(root: Element) -> list[str]:
    """The figures that a page holds, as JSON."""
    return [unpacked(each) for each in root.all("script", "packed")]


def report_of(*findings: Finding, **changes: Any) -> Report:
    return Report("mine", "d" * 64, [Section("Findings", "", findings)], **changes)


def table_of(frame: pd.DataFrame, **changes: object) -> Finding:
    return finding(kind="table", figure=None, rows=Rows.of(frame), **changes)
