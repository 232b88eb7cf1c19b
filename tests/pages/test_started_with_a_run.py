"""A dashboard that was started with a run (``stagelens app RUN``) opens it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.pages.reading import check, words

TRUST = "pages/4_Trust.py"
START = "Which stage is to credit, and which to blame?"


@pytest.fixture(autouse=True)
def started(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run that the dashboard was started with, outside of its home and of its roots."""
    run = Path(shutil.copytree(demo, tmp_path / "elsewhere" / "mine"))
    monkeypatch.setenv("STAGELENS_RUN", str(run))
    monkeypatch.setenv("STAGELENS_ROOTS", str(tmp_path / "roots"))
    return run


def test_a_visit_begins_with_the_run_and_may_leave_it(open_page, started: Path) -> None:
    app = check(open_page(None, page=TRUST))
    assert app.query_params["run"] == str(started)
    assert START not in words(app) and not app.error
    next(button for button in app.button if button.label == "Open another run").click()
    assert START in words(check(app.run()))
    # Still when the visitor goes on.
    assert START in words(check(app.run())) and "run" not in app.query_params


def test_an_address_that_names_a_run_opens_that_one(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits", TRUST))
    assert app.query_params["run"] == "digits"


def test_a_run_that_is_gone_is_said_to_be(open_page, started: Path) -> None:
    shutil.rmtree(started)
    app = check(open_page(None))
    assert START in words(app) and f"there is no folder {started}" in words(app)
