"""Pages of a run with 200 stages: the strongest are shown, and the others are counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from stagelens import charts
from stagelens.runs.run import open_run
from stagelens.ui.reading import loaders
from stagelens.wording.folding import MOST
from stagelens.wording.numbers import amount_text
from tests.conftest import made_once
from tests.pages.conftest import OpenPage

STAGES = 200


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a run of 200 stages, whose effects were drawn at random."""
    from tests.support.large_runs import large_run

    def make(folder: Path) -> dict[str, str]:
        large_run(folder / "many", STAGES, 30)
        return {}

    return made_once(tmp_path_factory, "many-stages", make)[0]


def words(app: AppTest) -> str:
    """Everything that the page says, in its main part."""
    said = []
    for kind in ("title", "header", "markdown", "caption", "html", "badge"):
        said += [str(getattr(each.proto, "body", each.value)) for each in app.main.get(kind)]
    return "\n".join(said)


def marks(app: AppTest) -> Iterator[int]:
    """How many marks each trace of each figure has."""
    for chart in app.get("plotly_chart"):
        for trace in json.loads(chart.proto.spec)["data"]:
            yield len(trace.get("customdata", trace.get("text", ())))


@pytest.mark.slow
def test_the_overview_of_200_stages_is_read_at_a_glance(home: Path, open_page: OpenPage) -> None:
    app = open_page(home, "run=many&set=large")
    assert not app.exception
    assert "Not drawn: 188 stages with less credit and blame than these" in words(app)
    assert len(words(app)) < 12_000  # with its markup; it was 118,000
    assert sum(marks(app)) < 1500
    assert len(app.get("plotly_chart")) == 2
    table = app.dataframe[0].value
    assert table["stage"].nunique() == STAGES  # none is lost


def test_an_example_of_200_stages_names_the_strongest(home: Path, open_page: OpenPage) -> None:
    link = "run=many&set=large&stage=stage+123"
    app = open_page(home, link, "pages/1_Examples.py")
    assert not app.exception
    columns = [c for c in app.dataframe[0].value if c.startswith("effect without")]
    assert len(columns) == MOST + 1  # the stage that was chosen is not among the strongest
    assert "effect without stage 123" in columns
    # Many columns run wide: the input and the id stay where they are.
    config = json.loads(app.dataframe[0].proto.columns)
    assert config["input"]["pinned"] and config["id"]["pinned"]
    app = open_page(home, f"{link}&example=3", "pages/1_Examples.py")
    assert not app.exception
    assert f"{STAGES - MOST} more stages have smaller effects" in words(app)
    assert len(words(app)) < 40_000


@pytest.mark.extensive
def test_gaps_of_200_stages_are_those_that_change_most(home: Path, open_page: OpenPage) -> None:
    app = open_page(home, "run=many&set=large", "pages/2_Spurious_features.py")
    assert not app.exception
    assert f"Drawn are the {MOST} of {STAGES} stages that change the gap most" in words(app)
    drawn = [each.proto.body for each in app.get("html") if "role='figure'" in each.proto.body]
    assert drawn[0].count("<b>") == MOST + 1  # the names of its rows, the final model's among them
    assert app.dataframe[0].value["model"].nunique() == STAGES + 1


def test_what_is_folded_adds_up_to_the_whole(home: Path) -> None:
    at = loaders.source(home / "many")
    means = loaders.stage_summary(at, "large", "replay", "loss", None, None)
    shown = means.iloc[charts.shown_stages(means)]
    rest = means.drop(shown.index)
    assert len(shown) == MOST and len(rest) == STAGES - MOST
    assert shown["stage"].tolist() == sorted(shown["stage"])  # in training order
    size = means[["credit", "blame"]].abs().max(axis=1)
    assert size[shown.index].min() >= size[rest.index].max()
    kinds = open_run(home / "many").task.behaviour_kinds
    behaviour = next(kind for kind in kinds if kind.name == "loss")
    average = rest["credit"].mean()
    assert f"credit {amount_text(average, behaviour)}" in charts.rest_text(means, behaviour)
    total = shown["credit"].sum() + len(rest) * average
    assert total == pytest.approx(means["credit"].sum())
