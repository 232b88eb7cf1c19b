"""Where the server asks people to sign in, nothing is shown before."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagelens.ui.server import signing_in
from tests.pages.reading import check, words

PAGES = ("app.py", *(str(path) for path in sorted(Path("pages").glob("*.py"))))


@pytest.mark.parametrize("page", PAGES)
def test_nothing_of_a_run_is_shown_before(
    open_page, demo: Path, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGELENS_SIGN_IN", "1")
    app = check(open_page(demo.parent, "run=digits", page))
    assert [title.value for title in app.title] == ["Sign in to StageLens"]
    assert "no provider is set up" in app.error[0].value
    assert not app.selectbox and not app.dataframe and not app.sidebar.button
    assert "pretrain" not in words(app)


def test_who_has_signed_in_sees_the_run_and_can_sign_out(
    open_page, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGELENS_SIGN_IN", "1")
    monkeypatch.setattr(signing_in, "signed_in", lambda: True)
    app = check(open_page(demo.parent, "run=digits"))
    assert "pretrain" in words(app)
    assert "Sign out" in [button.label for button in app.sidebar.button]


def test_by_default_nobody_is_asked(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits"))
    assert "Sign out" not in [button.label for button in app.sidebar.button]
