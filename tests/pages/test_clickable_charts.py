"""Bars and points of charts lead to the examples that they stand for."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.pages.reading import check

EXAMPLES = "pages/1_Examples.py"


def clickable(app: AppTest, key: str) -> dict:
    """The figure of a chart that can be clicked."""
    (proto,) = [e.proto for e in app.get("plotly_chart") if key in e.proto.id]
    assert list(proto.selection_mode)
    return json.loads(proto.spec)


@pytest.mark.parametrize(
    ("page", "link", "key", "first"),
    [
        ("app.py", "group=stamped", "bars", "credit pretrain"),
        (EXAMPLES, "view=Comparison&compared-stage=shortcut", "comparison", "clean-"),
        ("pages/4_Trust.py", "estimate=task-vector", "points-1", ""),
    ],
)
def test_every_point_knows_what_it_stands_for(
    open_page, demo: Path, page: str, link: str, key: str, first: str
) -> None:
    figure = clickable(check(open_page(demo.parent, f"run=digits&{link}", page)), key)
    known = [trace for trace in figure["data"] if "ids" in trace]
    assert known and all(len(trace["ids"]) == len(trace["customdata"]) for trace in known)
    # Plotly draws only one of the points of a trace that have the same id.
    assert all(len(set(trace["ids"])) == len(trace["ids"]) for trace in known)
    assert not first or any(each.startswith(first) for each in known[0]["ids"])


def test_marks_of_groups_are_links_to_their_examples(open_page, demo: Path) -> None:
    def marks(link: str) -> list[str]:
        app = check(open_page(demo.parent, f"run=digits{link}", "pages/2_Spurious_features.py"))
        (body,) = [e.proto.body for e in app.get("html") if "Accuracy of " in e.proto.body]
        return re.findall(r"<a href='([^']*)'", body)

    found = marks("&stage=shortcut")
    assert len(found) == 10  # two groups under five models
    assert all("/" not in each and "stage=shortcut" in each for each in found)
    assert sum("group=stamped" in html.unescape(each) for each in found) == 5
    # Where groups are crossed with labels, a mark is neither the one nor the other.
    assert marks("&crossed=true") == []
