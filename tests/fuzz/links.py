"""Links into every page: query parameters that nobody would write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from stagelens.runs.run import Run
from stagelens.ui.pieces import state
from tests.fuzz.inputs import NAMES

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("app.py", *(f"pages/{path.name}" for path in sorted((ROOT / "pages").glob("*.py"))))

_PLAUSIBLE = (
    *("test", "first", "last", "loss", "margin", "a", "b", "replay", "task-vector", "blame"),
    *("right", "true", "100", "0", "-1", "1e309", "nan", "999999999999999999999", "[]", "null"),
    *(state.OWN, state.COMPARED, state.WHEN, state.DATA, state.INPUT, state.SIDE_BY_SIDE),
    *(state.GAPS, state.FOUND, state.WHERE, "remove", "most credit"),
)
KEYS = (
    *(state.EXAMPLE, state.PAGE, state.BESIDE, state.VIEW, state.LOOK, state.PART),
    *("set", "estimator", "by", "group", "behaviour", "stage", "label", "answers", "side", "q"),
    *("changed", "strength", "sort", "tokens", "within", "gap", "crossed", "errors", "left-out"),
    *("measure", "remove-0", "remove-1", "remove-mode", "trusted-slice", "compared", "all-data"),
    *("of-stage", "kind", "baseline", "compared-stage", "compared-run", "compared-behaviour"),
)


def links(ids: list[str]) -> st.SearchStrategy[tuple[str, dict[str, list[str]]]]:
    """A page and its query parameters."""
    sent = [name for name in NAMES if not any("\ud800" <= letter <= "\udfff" for letter in name)]
    value = st.sampled_from([*_PLAUSIBLE, *sent, *ids[:3]]) | st.text(max_size=12)
    several = st.lists(value, min_size=1, max_size=3)
    named = st.dictionaries(st.sampled_from(KEYS) | st.text(min_size=1, max_size=8), several)
    run = st.sampled_from(["mine"] * 8 + ["", "..", "../mine", "nope", "mine/../mine", "\x00"])
    return st.tuples(
        st.sampled_from(PAGES),
        st.tuples(run, named).map(lambda pair: {**pair[1], state.RUN: [pair[0]]}),
    )


def open_link(value: tuple[str, dict[str, list[Any]]]) -> None:
    """Open a page by a link; it may say what is wrong, and never fails.

    Nothing is computed: the dashboard only shows here.
    """
    page, query = value
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    for name, values in query.items():
        app.query_params[name] = values
    if page != "app.py":
        app.switch_page(page)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("STAGELENS_READ_ONLY", "1")
        app.run()
    assert [error.message for error in app.exception] == []


def home_with(run: Run, folder: Path) -> list[str]:
    """Put a copy of a run into the dashboard's home; returns the ids of its examples."""
    shutil.copytree(run.path, folder / "home" / "mine")
    return run.evaluation_set("test").table([])["example_id"].tolist()
