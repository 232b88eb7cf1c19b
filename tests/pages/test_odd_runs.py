"""Every page on sets and runs that are unusual: no exception, and no number that is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stagelens.ui.server import jobs
from tests.pages.reading import check, figures, words
from tests.support.odd_runs import add_odd_sets, measure_all, record

REMOVE = "pages/3_Remove_a_stage.py"
PAGES = {
    "app.py": "measure=margin",
    "pages/1_Examples.py": "example=0",
    "pages/2_Spurious_features.py": "",
    REMOVE: "remove-0=100",
    "pages/4_Trust.py": "",
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
    command = ("attribute", str(run.path), "--estimator", "task-vector", "--set", "test")
    job = jobs.find(command)
    assert job is not None
    while job.running:
        job._reaper.join(60)
    check(app.run())
    assert "training diverged in stage 'second'" in words(app)
