"""What pages send at first sight, before anything is opened or chosen: it cannot grow unseen."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.pages.reading import check, figures

TRUST = "pages/4_Trust.py"


def sent(app: AppTest) -> int:
    """Bytes of all elements of a page."""
    protos = [getattr(node, "proto", None) for node in app]  # the tree itself has none
    return sum(proto.ByteSize() for proto in protos if proto is not None)


@pytest.mark.parametrize(
    ("page", "most_figures", "most_tables", "most_bytes"),
    [
        # The switchboard is the largest of it: its pictures are sent once.
        ("app.py", 0, 0, 110_000),
        # A table and its cards; a kilobyte of it turns pages without loading them anew.
        ("pages/1_Examples.py", 0, 1, 44_000),
        ("pages/2_Spurious_features.py", 0, 0, 45_000),
        ("pages/3_Remove_a_stage.py", 0, 0, 25_000),
        (TRUST, 0, 1, 110_000),
        ("pages/5_Report.py", 0, 0, 20_000),
    ],
)
def test_a_page_sends_little_before_anything_is_opened(
    open_page, demo: Path, page: str, most_figures: int, most_tables: int, most_bytes: int
) -> None:
    app = check(open_page(demo.parent, "run=digits", page, folded=True))
    assert len(app.get("plotly_chart")) <= most_figures
    assert len(app.dataframe) <= most_tables
    assert 1_000 < sent(app) <= most_bytes


def test_what_is_folded_is_drawn_when_a_link_asks_for_it(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits", folded=True))
    assert not figures(app)
    titles = {h.value for h in app.header}
    # One group for all of the page: that of the strongest headline.
    of = "on stamped images", "of stamped images"
    assert {f"Credit and blame {of[0]}", "Stages", f"Paths {of[1]}", "Slices"} <= titles
    for part in ("bars", "stages", "paths"):
        app = check(open_page(demo.parent, f"run=digits&show-{part}=true", folded=True))
        assert len(figures(app)) == 1
    app = check(open_page(demo.parent, "run=digits&show-numbers=true", folded=True))
    assert "stage effect" in app.dataframe[0].value


def test_shares_that_were_asked_for_wait_for_nothing(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&credit=Share", folded=True))
    assert len(figures(app)) == 2  # the waterfall, and the pairs of stages
