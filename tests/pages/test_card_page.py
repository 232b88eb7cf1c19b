"""The card of an example: one click, shown and downloaded, with a link to the view."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from streamlit.testing.v1 import AppTest

from stagelens.ui.examples import card
from tests.pages.reading import check, words

_LINK = "run=digits&estimator=replay&measure=margin&example=stamped-133"


def test_one_click_on_an_example_makes_its_card(open_page, demo: Path) -> None:
    app: AppTest = check(open_page(demo.parent, _LINK, "pages/1_Examples.py"))
    assert not app.get("dialog") and not app.get("image")
    check(app.button(key="card").click().run())
    (shown,) = app.get("image")
    assert "Example stamped-133 says 3; without shortcut: 5" in str(shown.proto)
    labels = [each.proto.label for each in app.get("download_button")]
    assert {"PNG", "HTML"} <= set(labels)
    assert "finds where in the input shortcut acts" in words(app)


def test_the_link_is_that_of_the_page_below_any_path(monkeypatch) -> None:
    monkeypatch.setattr(card.components, "address", lambda page, **more: f"{page}?{more}")
    for at in ("https://host/lens/Examples", "https://host/lens/"):
        monkeypatch.setattr(card.st, "context", SimpleNamespace(url=at))
        assert card._link("x") == "https://host/lens/Examples?{'example': 'x'}"
    monkeypatch.setattr(card.st, "context", SimpleNamespace(url=None))
    assert card._link("x") == "Examples?{'example': 'x'}"
