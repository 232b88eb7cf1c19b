"""The dashboard as a person meets it: a real server, a real Chromium, the real demo."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Page, expect

from stagelens.effects.draws import FEWEST
from stagelens.effects.results import load_result
from stagelens.runs.run import open_run
from tests.conftest import DemoRun
from tests.support import warm

HEADER, ROW = 36, 46
"""Heights in the table of examples, in pixels."""


def click_row(page: Page, row: int, x: int = 140) -> None:
    page.get_by_test_id("stDataFrame").first.click(
        position={"x": x, "y": HEADER + ROW * row + ROW // 2}
    )


def choose(page: Page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def heading(page: Page, text: str):
    return page.get_by_test_id("stHeading").filter(has_text=text)


@pytest.fixture(scope="module")
def new_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home where nothing has been opened yet."""
    return tmp_path_factory.mktemp("new") / "home"


@pytest.fixture(scope="module")
def new_server(start_server, new_home: Path):
    few = {warm.FEW_DRAWS: f"{FEWEST}"}
    return start_server({"STAGELENS_HOME": str(new_home), **few})


def test_cancelling_the_demo_leaves_nothing(new_server, page: Page, settle, new_home: Path) -> None:
    page.goto(new_server.url)
    page.get_by_role("button", name="Open the digits demo").click()
    page.get_by_role("button", name="Cancel").click()
    settle(page)
    expect(page.get_by_text("Built on first use")).to_have_count(3)
    assert list(new_home.iterdir()) == []


def test_a_first_start_builds_the_demo_and_shows_the_bars(
    new_server, page: Page, settle, screenshot, new_home: Path
) -> None:
    page.goto(new_server.url)
    settle(page, "Which stage is to credit")
    expect(page.get_by_text("planted", exact=True).first).to_be_visible()
    screenshot(page, "welcome")
    page.get_by_role("button", name="Open the digits demo").click()
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    expect(heading(page, "Credit and blame")).to_be_visible()
    settle(page)
    expect(page.locator(".board .bar").first).to_be_attached()
    assert page.url.endswith("?run=digits")
    assert [path.name for path in new_home.iterdir()] == ["digits"]


@pytest.mark.essential
def test_the_overview_in_light_and_dark(server, page: Page, settle, screenshot) -> None:
    page.goto(f"{server.url}/?run=digits")
    settle(page, "Credit and blame")
    # At first sight, no figure holds the browser up.
    assert page.locator(".js-plotly-plot, [data-testid=stDataFrame]").count() == 0
    page.get_by_text("Bars of credit, blame and the net of the two").click()
    page.wait_for_url(re.compile("show-bars=true"))
    headline = page.get_by_text(re.compile("Without shortcut, accuracy on stamped images"))
    expect(headline.first).to_be_visible()
    chart = page.get_by_role("figure", name=re.compile("Credit and blame of each stage"))
    expect(chart.first).to_be_attached()
    screenshot(page, "overview")
    # The chart may be drawn again meanwhile; a text that is just going has no colour.
    colours = """() => {
        const text = document.querySelector('.js-plotly-plot .ytick text');
        return text ? (getComputedStyle(text).fill.match(/\\d+/g) || []).map(Number) : [];
    }"""
    page.wait_for_function(f"() => ({colours})().join() === '31,41,51'")
    page.emulate_media(color_scheme="dark")  # and nothing is run again
    page.wait_for_function(
        f"() => {{ const c = ({colours})(); return Math.min(255, ...c) > 200 && c.length; }}"
    )
    page.get_by_role("link", name="Regression gate").click()
    expect(page.get_by_text("worse anywhere than an older run")).to_be_visible()
    expect(heading(page, "Regression gate")).to_be_visible()


@pytest.mark.essential
def test_a_dot_of_a_path_leads_to_its_examples(server, page: Page, settle) -> None:
    # What is open stays open when pages change.
    page.goto(server.url + "/?run=digits&group=stamped&show-paths=true")
    picked = set()
    for number in range(2):  # a second choice replaces the first
        settle(page, "Click a dot to look at the images on its path")
        # The most frequent paths come first.
        dot = page.locator(".st-key-pinnable-chart-paths .scatterlayer .point").nth(number)
        dot.scroll_into_view_if_needed()
        place = dot.bounding_box()
        assert place is not None
        page.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
        settle(page, re.compile(r"\d+ of 894 images"))
        expect(page).to_have_url(re.compile("/Examples.*group=stamped.*path="))
        page.get_by_role("button", name="More (1)").click()
        chosen = page.get_by_role("combobox", name="Path")
        expect(chosen).to_have_value(re.compile("[✓✗]{5} "))
        picked.add(chosen.input_value())
        page.keyboard.press("Escape")
        page.get_by_role("link", name="Overview").click()
    assert len(picked) == 2


@pytest.mark.essential
def test_filter_pick_an_example_and_read_its_effect(
    server, page: Page, settle, screenshot, digits_run: DemoRun
) -> None:
    page.goto(f"{server.url}/?run=digits&measure=loss")
    settle(page, "Credit and blame")
    page.get_by_role("link", name="Examples", exact=True).click()
    settle(page, "894 images")
    choose(page, "Stage", "shortcut")
    choose(page, "Group", "stamped")
    choose(page, "Sort by", "most blame")
    page.get_by_role("button", name="More").click()
    choose(page, "Credit or blame", "blame")
    page.keyboard.press("Escape")
    result = load_result(open_run(digits_run.path), "test", "effects", "replay")
    assert result is not None
    table = result.table[result.table["behaviour"] == "loss"]
    blamed = table[(table["stage"] == "shortcut") & (table["effect"] > 0)]
    blamed = blamed[blamed["group"] == "stamped"]
    settle(page, f"{len(blamed)} of 894 images")
    click_row(page, 2)
    expect(heading(page, "stamped-")).to_be_visible()
    settle(page)
    example = heading(page, "stamped-").inner_text().strip()
    assert f"example={example}" in page.url
    effect = blamed.set_index("example_id")["effect"].sort_values(ascending=False)
    assert effect.index[2] == example
    said = page.get_by_text(re.compile("Without shortcut, the loss would be"))
    expect(said.first).to_contain_text(f"{effect.iloc[2]:.2f} lower")
    expect(page.get_by_role("img", name=f"The input of example {example}")).to_be_visible()
    screenshot(page, "examples")


def test_a_copied_link_opens_the_same_view_on_a_fresh_server_which_never_loads_torch(
    server, start_server, page: Page, settle, read_home: Path
) -> None:
    page.goto(f"{server.url}/?run=digits")
    settle(page, "Credit and blame")
    choose(page, "Group", "stamped")
    choose(page, "Behaviour", "margin")
    for name in ("Trust", "Report", "Spurious features", "Examples"):
        settle(page)
        page.get_by_role("link", name=name, exact=True).click()
        expect(page).to_have_url(re.compile(f"/{name.replace(' ', '_')}.*&measure=margin&group="))
    settle(page, "447 of 894 images")
    choose(page, "Stage", "shortcut")
    expect(page).to_have_url(re.compile("&stage=shortcut"))
    page.go_back()  # one step back takes the last choice back, and nothing else
    expect(page.get_by_role("combobox", name="Stage", exact=True)).to_have_value("")
    expect(page.get_by_role("combobox", name="Group", exact=True)).to_have_value("stamped")
    settle(page)
    page.go_forward()
    expect(page.get_by_role("combobox", name="Stage", exact=True)).to_have_value("shortcut")
    settle(page)
    click_row(page, 4)
    expect(heading(page, re.compile("clean-|stamped-"))).to_be_visible()
    settle(page)
    link = page.url.replace(server.url, "")
    before = page.get_by_test_id("stMain").inner_text()

    fresh = start_server({"STAGELENS_HOME": str(read_home)})
    page.goto(fresh.url + link)
    settle(page, "Back to the table")
    expect(page.get_by_role("heading", name="Answers")).to_be_visible()
    assert page.get_by_test_id("stMain").inner_text() == before
    assert page.url == fresh.url + link
    for path, text in (
        ("/?run=digits", "Credit and blame"),
        ("/Examples?run=digits", "894 images"),
        ("/Trust?run=digits&estimate=task-vector&measure=loss", "Checked against a replay"),
    ):
        page.goto(fresh.url + path)
        settle(page, text)
    maps = Path(f"/proc/{fresh.process.pid}/maps")
    assert not maps.exists() or "libtorch" not in maps.read_text()  # Linux tells


@pytest.mark.essential
def test_the_keyboard_walks_through_the_examples(server, page: Page, settle) -> None:
    page.goto(f"{server.url}/Examples?run=digits&sort=id&example=clean-010")
    settle(page, "Back to the table")
    expect(heading(page, "clean-010")).to_be_visible()
    for name in ("clean-011", "clean-012"):  # the second one is on the next page of the table
        page.keyboard.press("j")
        expect(heading(page, name)).to_be_visible()
        settle(page)
    page.keyboard.press("k")
    expect(heading(page, "clean-011")).to_be_visible()
    settle(page)
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("stDataFrame")).to_be_visible()
    settle(page)
    assert "example=" not in page.url
    page.keyboard.press("j")  # from the table, the first one
    expect(heading(page, "clean-000")).to_be_visible()
    # Where the columns have no room, examples are cards, which keys reach too.
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 420, "height": 900})
    expect(page.get_by_test_id("stDataFrame")).to_be_hidden()
    card = page.get_by_role("button", name="clean-003")
    expect(card).to_contain_text("without it")
    card.focus()
    page.keyboard.press("Enter")
    expect(heading(page, "clean-003")).to_be_visible()


@pytest.mark.essential
def test_the_export_is_what_the_filters_leave(
    server, page: Page, settle, digits_run: DemoRun
) -> None:
    page.goto(f"{server.url}/Examples?run=digits&label=3&answers=wrong&sort=id")
    settle(page, "of 894 images")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    result = load_result(open_run(digits_run.path), "test", "effects", "replay")
    assert result is not None
    table = result.table
    wanted = table[
        (table["behaviour"] == "margin")
        & (table["label"] == "3")
        & (table["prediction"] != table["label"])
    ]
    ids = sorted(wanted["example_id"].unique())
    assert list(dict.fromkeys(row["example_id"] for row in rows)) == ids
    assert len(rows) == len(wanted) and {row["trust"] for row in rows} == {"exact"}
    effects = pd.Series([float(row["effect"]) for row in rows])
    assert effects.sum() == pytest.approx(wanted["effect"].sum(), rel=1e-9)
