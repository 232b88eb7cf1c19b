"""Every page on sets and runs that are unusual: no exception, and no number that is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from stagelens.ui.server import jobs
from stagelens.wording.trust_words import MARKS
from tests.pages.reading import check, drawn, figures, words
from tests.support.every_standing import SET, STANDINGS, every_standing
from tests.support.odd_runs import add_odd_sets, measure_all, record

REMOVE = "pages/3_Remove_a_stage.py"
PAGES = {
    "app.py": "measure=margin",
    "pages/1_Examples.py": "example=0",
    "pages/2_Spurious_features.py": "",
    REMOVE: "remove-0=100",
    "pages/4_Trust.py": "",
    "pages/6_Regression_gate.py": "",
}
SETS = ("one-example", "one-class", "some-labels", "no-labels")
NONSENSE = re.compile(r"(?<![\w/])[-−+]?(nan|inf|infinity)(?![\w/])", re.IGNORECASE)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a stage of one step, one that changes nothing, and odd sets."""
    home = tmp_path_factory.mktemp("odd")
    stages = {"first": (6, 0.05), "single": (1, 0.05), "still": (4, 0.0), "last": (6, 0.05)}
    run = record(home / "odd", stages)
    for name in add_odd_sets(run):
        measure_all(run, name)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_pages_show_no_nonsense(open_page, home: Path, name: str) -> None:
    for page, link in PAGES.items():
        app = check(open_page(home, f"run=odd&set={name}&{link}", page))
        said = [words(app), *(figure["alt"] for figure in figures(app))]
        said += [f"{metric.value} {metric.delta}" for metric in app.metric]
        assert [found for text in said for found in NONSENSE.findall(text)] == [], page
        if page == REMOVE:
            none = "None of these examples has a label" in words(app)
            assert none == (name == "no-labels") == (not app.metric)


def test_a_run_that_diverged_says_so_where_numbers_would_stand(open_page, tmp_path: Path) -> None:
    run = record(tmp_path / "home" / "run", {"first": (3, 0.05), "second": (3, 0.05)}, ("second",))
    app = check(open_page(run.path.parent, "run=run"))
    command = ("attribute", str(run.path), "--set", "test", "--time", "120")
    job = jobs.find(command)
    assert job is not None
    while job.running:
        job._reaper.join(400)
    check(app.run())
    assert "training diverged in stage 'second'" in words(app)


@pytest.fixture(scope="module")
def standings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stages have one standing each."""
    home = tmp_path_factory.mktemp("standings")
    every_standing(home / "run")
    return home


@pytest.mark.slow
def test_every_page_says_of_each_stage_what_is_known(
    open_page, standings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGELENS_READ_ONLY", "1")  # no replay begins, which would change it

    def shown(page: str, link: str = "") -> tuple[AppTest, str]:
        app = check(open_page(standings, f"run=run&set={SET}{link}", page))
        return app, words(app)

    app, overview = shown("app.py")
    for bar, (stage, word) in zip(
        figures(app)[0]["layout"]["yaxis"]["ticktext"], STANDINGS.items(), strict=True
    ):
        assert f"{MARKS[word]} {word}<" in bar and stage in bar
        assert re.search(rf"{stage}: {word}( \(|\])", overview), stage
    table = app.dataframe[0].value
    assert dict(zip(table["stage"], table["trust"], strict=True)) == STANDINGS

    _, listed = shown("pages/1_Examples.py")
    app, examples = shown("pages/1_Examples.py", "&example=0")
    (bars,) = drawn(app)
    for stage, word in STANDINGS.items():
        assert f"{MARKS[word]} {word}: {stage}." in listed
        assert re.search(rf"without {stage} .{{,40}}{MARKS[word]} {word}", examples), stage
        assert re.search(rf"{stage}: (no number|[a-z,: ]+ [\d.]+), {word}", bars), stage

    app, gaps = shown("pages/2_Spurious_features.py")
    alt = drawn(app)[0]
    table = app.dataframe[0].value
    for stage, word in STANDINGS.items():
        assert f"without {stage} ({MARKS[word]} {word})" in alt
        assert re.search(rf"{stage}: {word}( \(|\])", gaps), stage
        assert set(table.loc[table["model"] == f"without {stage}", "trust"]) == {word}

    app, removal = shown("pages/3_Remove_a_stage.py", "&remove-2=100")
    assert "exact: measured on the edited weights" in removal
    assert "without gamma: does not agree (r 0.40, error 130 %)" in removal
    _, trust = shown("pages/4_Trust.py")
    for word in STANDINGS.values():
        assert f": {word}]" in removal and re.search(rf"\b{word}[\].]", trust), word
