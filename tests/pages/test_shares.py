"""Shares on the pages: the choice, the waterfall, pairs, and what to do where there are none."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from stagelens.analyses.shares.sentences import (
    BY_TASK_VECTOR,
    NO_INTENT,
    QUESTIONS,
    SPLITTING,
)
from stagelens.analyses.shares.share_table import SEEN_AFTER, SHARE, WITHOUT, shares_of
from stagelens.analyses.shares.stored import best_coalitions
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import open_run
from stagelens.ui.server import jobs
from tests.conftest import DemoRun
from tests.pages.conftest import OpenPage
from tests.pages.reading import check, figures, labels, table, words
from tests.support.coalitions import store
from tests.support.stage_trust import trust

LINK = "run=digits&wall=all&measure=margin"
EXAMPLES = "pages/1_Examples.py"


@pytest.fixture(scope="module")
def shared(digits_run: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with made-up coalitions; read it only."""
    path = tmp_path_factory.mktemp("shares") / "digits"
    shutil.copytree(digits_run.path, path)
    shutil.rmtree(path / "results" / "coalitions", ignore_errors=True)
    store(open_run(path), "test")
    return path


@pytest.fixture
def unshared(demo_copy: Path) -> Path:
    """The demo without coalitions."""
    shutil.rmtree(demo_copy / "results" / "coalitions", ignore_errors=True)
    return demo_copy


def alts(app: AppTest) -> list[str]:
    return [figure["alt"] for figure in figures(app)]


def test_the_overview_shows_shares_with_pairs_and_a_table(
    open_page: OpenPage, shared: Path
) -> None:
    app = check(open_page(shared.parent, f"{LINK}&credit=Share"))
    said = words(app)
    assert QUESTIONS[SHARE] in said and SPLITTING in said and NO_INTENT in said
    found = best_coalitions(open_run(shared), "test")
    assert found is not None
    margin = shares_of(found, "margin")
    assert "Training as a whole made the mean margin on all images" in said
    assert "shortcut does its harm only because pretrain came before" in said
    waterfall, pairs = alts(app)[:2]
    assert waterfall.startswith("Share of each stage in the margin on all images, from ")
    assert pairs.startswith("What pairs of stages do to the margin on all images only together")
    rows = table(app)
    assert rows["stage"].tolist() == ["pretrain", "shortcut", "mislabelled", "adapt"]
    total = margin.level(15) - margin.level(0)
    assert rows["share"].sum() == pytest.approx(total)
    assert rows["seen after"].sum() == pytest.approx(total)
    assert set(rows["trust"]) == {"exact"}


def test_the_choice_begins_with_effects_and_leads_to_what_is_seen_after(
    open_page: OpenPage, shared: Path
) -> None:
    app = check(open_page(shared.parent, LINK))
    said = words(app)
    assert QUESTIONS[WITHOUT] in said and "the rest is what stages do only together" in said
    assert alts(app)[0].startswith("Credit and blame of each stage for the margin")
    (choice,) = [one for one in app.button_group if one.label == "Credit by"]
    app = check(choice.set_value("Seen after").run())
    assert QUESTIONS[SEEN_AFTER] in words(app)
    assert alts(app)[0].startswith("Seen after of each stage in the margin on all images")


def test_groups_have_shares_of_their_own_and_stages_can_be_taken_as_one(
    open_page: OpenPage, shared: Path
) -> None:
    app = check(open_page(shared.parent, f"{LINK}&credit=Share&group=stamped"))
    assert alts(app)[0].startswith("Share of each stage in the margin on stamped images")
    assert set(table(app)["examples"]) == {447}
    (picker,) = [one for one in app.multiselect if one.label == "Take as one"]
    app = check(picker.set_value(["pretrain", "shortcut"]).run())
    assert table(app)["stage"].tolist() == ["pretrain + shortcut", "mislabelled", "adapt"]
    said = "counted apart, the sum of their shares would change by"
    assert said in words(app)


def test_where_no_coalitions_are_known_a_button_computes_them(
    open_page: OpenPage, unshared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(jobs, "start", lambda words, title, **_: started.append(tuple(words)))
    app = check(open_page(unshared.parent, f"{LINK}&credit=Share"))
    said = words(app)
    assert "have not been measured yet" in said
    assert "16 models, 5 of them recorded: 11 stages trained again" in said
    (button,) = [one for one in app.button if one.label == "Compute shares"]
    check(button.click().run())
    wanted = ("--set", "test", "--estimator", "replay")
    assert started == [("shares", str(unshared), *wanted)]
    # What is seen after stages needs none.
    (choice,) = [one for one in app.button_group if one.label == "Credit by"]
    app = check(choice.set_value("Seen after").run())
    assert alts(app)[0].startswith("Seen after of each stage")
    assert "Compute shares" not in labels(app)


def test_shares_are_only_as_good_as_their_models(open_page: OpenPage, unshared: Path) -> None:
    rough = trust(expected_error=0.3, typical_error=0.1, group_error=0.2, reliable=False)
    known: dict[int, StageTrust] = {mask: rough for mask in range(15)}
    store(open_run(unshared), "test", known)
    app = check(open_page(unshared.parent, f"{LINK}&credit=Share"))
    assert "exact" not in alts(app)[0]
    assert re.search(r"pretrain: \w+ \(error up to", words(app))
    refused = trust("refused", stage="pretrain + adapt", reason="It diverged.")
    store(open_run(unshared), "test", {0b1001: refused})
    app = check(app.run())
    assert alts(app)[0].count("no number") == 4
    assert "It diverged." in words(app)


def test_estimated_shares_offer_better_ones(open_page: OpenPage, unshared: Path) -> None:
    store(open_run(unshared), "test", estimator="task-vector")
    app = check(open_page(unshared.parent, f"{LINK}&credit=Share"))
    assert BY_TASK_VECTOR in words(app)
    assert "These shares are by task-vector: what better ones take" in {
        one.label for one in app.expander
    }
    assert "Compute shares" in labels(app)


def test_examples_have_shares_as_columns_to_filter_and_sort(
    open_page: OpenPage, shared: Path
) -> None:
    link = "run=digits&measure=margin&credit=Share&stage=mislabelled&sort=most+credit"
    app = check(open_page(shared.parent, link, EXAMPLES))
    found = best_coalitions(open_run(shared), "test")
    assert found is not None
    margin = shares_of(found, "margin")
    best = margin.reading(SHARE)[2].max()
    rows = table(app)
    (column,) = [name for name in rows if "mislabelled" in str(name)]
    assert rows[column].iloc[0] == f"▲ {best:.2f}"
    assert "shares on the margin" in app.dataframe[0].proto.alt
    assert "Columns hold each stage's share, not what would be without it" in words(app)
    rows = rows[column].str.removeprefix("▲ ").astype(float)
    assert rows.is_monotonic_decreasing


def test_an_example_has_its_waterfall_and_its_shares_in_words(
    open_page: OpenPage, shared: Path
) -> None:
    link = "run=digits&measure=margin&credit=Share&example=clean-000"
    app = check(open_page(shared.parent, link, EXAMPLES))
    said, shown = words(app), alts(app)
    assert "pretrain 's share of the margin: +" in said and "(credit)" in said
    assert "Without pretrain, the margin would be" in said  # beside the effects, in any case
    assert shown[0].startswith("Share of each stage in the margin on example clean-000, from ")
    effects = check(open_page(shared.parent, link.replace("Share", "Without+it"), EXAMPLES))
    assert "Without pretrain, the margin would be" in words(effects)
    assert alts(effects)[0] == shown[0]  # the waterfall is there in any case
    next(one for one in app.button if one.label == "Back to the table").click()
    (caption,) = [one.value for one in check(app.run()).caption if "credit: " in one.value]
    assert "credit: margin higher by the stage's share. ▼ blame: lower." in caption


def test_shares_can_be_pinned_with_their_trust(open_page: OpenPage, unshared: Path) -> None:
    store(open_run(unshared), "test")
    app = check(open_page(unshared.parent, f"{LINK}&credit=Share"))
    (button,) = [one for one in app.button if one.key == "pin-to-waterfall"]
    app = check(button.click().run())
    (pin,) = [one for one in app.button if one.key == "pin-it"]
    check(pin.click().run())
    (path,) = unshared.glob("findings/*/seen.json")
    seen = json.loads(path.read_text())
    assert seen["estimator"] == "shares by replay"
    assert [one["trust"] for one in seen["trust"]] == ["exact"] * 4
    assert "pretrain was measured to make the mean margin" in "".join(
        part["text"] for part in seen["sentences"][0]["parts"]
    )
    frame = pd.DataFrame(seen["rows"]["values"], columns=seen["rows"]["columns"])
    assert frame["stage"].tolist() == ["pretrain", "shortcut", "mislabelled", "adapt"]
