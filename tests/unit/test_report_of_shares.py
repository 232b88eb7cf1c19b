"""Shares in the report of a run, and in its rows."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pandas as pd
import pytest

from stagelens.report.page import Report
from stagelens.report.rows import as_csv
from stagelens.report.sections import whole_report
from stagelens.runs.run import open_run
from tests.conftest import DemoRun
from tests.support.made_draws import write_drawn_coalitions


@pytest.fixture(scope="module")
def whole(digits_run: DemoRun) -> Report:
    return whole_report(open_run(digits_run.path), "test")[0]


def test_shares_have_a_section_with_charts_sentences_and_trust(whole: Report) -> None:
    (section,) = [one for one in whole.sections if one.title == "Shares"]
    charts = [one.seen for one in section.findings if one.seen.kind == "chart"]
    assert {one.behaviour for one in charts} == {"accuracy", "margin"}
    assert all({trust.trust for trust in one.trust} == {"exact"} for one in charts)
    said = " ".join(str(each) for one in charts for each in one.sentences)
    assert "Training as a whole made the mean margin on all images" in said
    assert "pretrain was measured to make accuracy on all images" in said


def test_rows_of_shares_add_up_and_have_their_trust(whole: Report) -> None:
    table = pd.read_csv(io.BytesIO(as_csv(whole)), comment="#", keep_default_na=False)
    own = table[table["title"].str.startswith("Share of each stage in the margin")]
    assert own["stage"].tolist() == ["pretrain", "shortcut", "mislabelled", "adapt"]
    assert set(own["trust_of_row"]) == {"exact"}
    assert set(own["estimator"]) == {"shares by replay"}
    read = table[table["title"] == "Four readings of each stage, for the margin, in nats"]
    assert len(read) == 4
    sums = read[["share", "seen after"]].astype(float).sum()
    assert sums["share"] == pytest.approx(sums["seen after"], abs=1e-6)
    title = "Four readings of each stage, for the accuracy, in points"
    points = table[table["title"] == title]["seen after"].astype(float)
    assert points.abs().max() > 1  # no fractions
    pairs = table[table["title"].str.startswith("What pairs of stages do to the margin")]
    assert len(pairs) == 6 and set(pairs["trust_of_row"]) == {"exact"}


def test_shares_of_the_recipe_stand_beside_those_of_the_run(
    digits_run: DemoRun, tmp_path: Path
) -> None:
    run = open_run(shutil.copytree(digits_run.path, tmp_path / "run"))
    write_drawn_coalitions(run, "test", [0.8, 0.9, 1.0, 1.1, 1.2])
    made = whole_report(run, "test")[0]
    (section,) = [one for one in made.sections if one.title == "Shares"]
    seen = [one.seen for one in section.findings]
    titles = [one.title for one in seen]
    title = "Share of each stage in the margin on all images"
    assert titles.index(f"{title}, of this recipe") > titles.index(title)
    own = next(one for one in seen if one.title == f"{title}, of this recipe")
    assert own.estimator == "shares over 5 redraws of the recipe"
    assert "Over 5 redraws of the recipe, training as a whole" in str(own.sentences[0])
    assert "exact" not in {trust.trust for trust in own.trust}
