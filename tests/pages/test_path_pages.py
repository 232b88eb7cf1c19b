"""Paths on the Overview and Examples pages: learned, forgotten and flipped answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stagelens.analyses.paths.answers import kind_of
from stagelens.charts.alluvial import marks
from stagelens.effects.results import load_result
from stagelens.runs.run import open_run
from tests.pages.reading import check, figures, words

BOUNDARIES = ("base", "pretrain", "shortcut", "mislabelled", "adapt")


@pytest.fixture(scope="module")
def codes(demo: Path) -> pd.Series:
    """Example id to its path, straight from the stored answers."""
    run = open_run(demo)
    table = load_result(run, "test", "boundaries").table
    table = table[table["behaviour"] == table["behaviour"].iloc[0]]
    labels = run.evaluation_set("test").table().set_index("example_id")["label"]
    wide = table.pivot(index="example_id", columns="boundary", values="prediction")
    right = wide[list(BOUNDARIES)].eq(labels.reindex(wide.index), axis=0)
    return right.apply(lambda row: "".join("R" if one else "W" for one in row), axis=1)


def _kind_with_end(code: str) -> str:
    ends = "ends right" if code.endswith("R") else "ends wrong"
    return f"flipped, {ends}" if kind_of(code) == "flipped" else kind_of(code)


def test_the_chart_has_every_example_on_its_path(open_page, demo: Path, codes: pd.Series) -> None:
    app = check(open_page(demo.parent, "run=digits&wall=all"))
    drawn = figures(app)[-1]
    kinds = codes.map(_kind_with_end).value_counts()
    assert drawn["alt"].startswith("Paths of 894 images: ")
    for kind, count in kinds.items():
        assert f"{count:,} {kind}" in drawn["alt"]
    # The points that can be clicked know their path.
    points = [trace for trace in drawn["data"] if trace.get("mode") == "markers+text"]
    assert set(points[0]["customdata"]) <= set(codes)
    tables = [frame.value for frame in app.dataframe]
    counted = next(t for t in tables if "without lucky guesses" in t)
    assert counted["images"].sum() == 894
    stages = next(t for t in tables if "seen after" in t)
    right = [codes.str[place].eq("R").sum() for place in (0, -1)]
    assert stages["seen after"].sum() == right[1] - right[0]
    assert stages["trust"].tolist() == ["exact"] * 4
    assert "Where it became visible" in words(app)


@pytest.mark.parametrize("link", ["&group=stamped", ""])
def test_the_section_is_of_the_group_that_the_page_is_about(
    open_page, demo: Path, codes: pd.Series, link: str
) -> None:
    app = check(open_page(demo.parent, f"run=digits{link}"))
    groups = open_run(demo).evaluation_set("test").table().set_index("example_id")["group"]
    stamped = codes[groups.reindex(codes.index) == "stamped"]
    assert figures(app)[-1]["alt"].startswith(f"Paths of {len(stamped)} images: ")


@pytest.mark.parametrize("single", [False, True])
def test_examples_can_be_filtered_by_path(
    single: bool, open_page, demo: Path, codes: pd.Series
) -> None:
    code = codes[codes.map(kind_of) == "learned"].value_counts().index[0]
    asked = f"{marks(code)} learned" if single else "learned"
    wanted = codes == code if single else codes.map(kind_of) == "learned"
    app = check(open_page(demo.parent, f"run=digits&set=test&path={asked}", "pages/1_Examples.py"))
    assert f"{int(np.sum(wanted)):,} of 894 images" in words(app)
    shown = next(frame.value for frame in app.dataframe if "id" in frame.value)
    assert wanted.reindex(shown["id"]).all()
