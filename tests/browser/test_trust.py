"""The Trust page as a person meets it: press verify, watch it, and read the result."""

from __future__ import annotations

import re
import shutil
from itertools import combinations
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from stagelens.charts import DARK, LIGHT
from stagelens.charts.calibration import OwnEstimate, calibration_plot
from stagelens.charts.style import Palette
from stagelens.estimators import calibration
from stagelens.estimators.stage_trust import AGREES_ERROR, AGREES_R
from stagelens.runs.run import open_run
from stagelens.trust.verification import load_verification
from tests.browser.conftest import Server
from tests.conftest import DemoRun

TEXTS = """plot => [...plot.querySelectorAll("text")].filter(text => text.textContent.trim())
    .map(text => [text.textContent, text.getBoundingClientRect().toJSON()])"""


@pytest.fixture(scope="module")
def server(own_server: Server, own_home: Path, digits_run: DemoRun) -> Server:
    """A server whose home has the demo, and copies of it that have no results."""
    shutil.copytree(digits_run.path, own_home / "checked")
    for name in ("bare", "early"):
        shutil.copytree(own_home / "checked", own_home / name)
        shutil.rmtree(own_home / name / "results")
    return own_server


@pytest.mark.essential
def test_press_verify_and_read_how_far_each_number_can_be_trusted(
    server, own_home: Path, page: Page, settle, screenshot, check_narrow
) -> None:
    page.goto(f"{server.url}/Trust?run=bare")
    settle(page, "Nothing has been compared with a replay on this set yet")
    expect(page.get_by_text(re.compile("Predicted: "))).to_be_visible()
    screenshot(page, "trust-nothing-yet")
    page.get_by_role("button", name="Verify by replay").click()
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.get_by_text("You can close this page: it goes on")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.get_by_role("link", name="Overview").click()  # the page stays usable
    settle(page, "Stages")
    # As the page says: closed, the work goes on, and the result is there.
    page.goto("about:blank")
    page.goto(f"{server.url}/Trust?run=bare")
    verdict = page.get_by_text(re.compile(r"^Checked against a replay, on the margin: r 0\.\d\d"))
    expect(verdict.first).to_be_visible()
    settle(page)
    page.get_by_text("Points to click").nth(1).click()
    expect(page.locator(".js-plotly-plot .scatterlayer .point").first).to_be_attached()
    chart = page.get_by_role("figure", name=re.compile("Stage effect of shortcut on the margin"))
    expect(chart.first).to_be_attached()
    table = load_verification(open_run(own_home / "bare"))
    rows = table[(table["behaviour"] == "margin") & (table["budget"] == 0.25)]
    row = rows.set_index("stage").loc["shortcut"]
    expect(page.get_by_text(f"r {row['r']:.2f}, slope {row['slope']:.2f}").first).to_be_visible()
    agrees = row["r"] >= AGREES_R and row["relative_error"] <= AGREES_ERROR
    badge = "verified" if agrees else "does not agree"
    expect(page.get_by_text(badge).filter(visible=True).first).to_be_visible()
    expect(page.get_by_text("Noise-floor r").first).to_be_visible()
    expect(page.get_by_text(re.compile("1 other order of the recorded batches"))).to_be_visible()
    screenshot(page, "trust")
    check_narrow(page, "trust")


def test_cancelling_leaves_the_page_as_it_was(server, page: Page, settle) -> None:
    page.goto(f"{server.url}/Trust?run=early&orders=5")
    settle(page, "Nothing has been compared with a replay on this set yet")
    page.get_by_role("button", name="Verify by replay").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("button", name="Verify by replay")).to_be_enabled()
    settle(page)


def test_a_link_opens_the_same_comparison(server, page: Page, settle) -> None:
    page.goto(f"{server.url}/Trust?run=checked&estimate=task-vector&measure=loss")
    settle(page, "Checked against a replay")
    chart = page.get_by_role("figure", name=re.compile("on the loss by task-vector"))
    expect(chart.first).to_be_attached()
    page.reload()
    settle(page, "Checked against a replay")
    assert "estimate=task-vector" in page.url and "measure=loss" in page.url


def test_the_button_is_reached_by_keyboard(server, page: Page, settle) -> None:
    page.goto(f"{server.url}/Trust?run=checked&budgets=1/8&orders=0")
    settle(page, "Verify by replay")
    page.get_by_role("button", name="Verify by replay").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("progressbar")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_on_a_telephone_no_label_of_the_calibration_plot_covers_another(
    page: Page, palette: Palette
) -> None:
    own = [
        OwnEstimate("shortcut", 0.22, 0.12, "verified"),
        OwnEstimate("mislabelled", 0.3, float("nan"), "rough"),
    ]
    figure = calibration_plot(calibration.points(), own, palette).figure
    page.set_viewport_size({"width": 390, "height": 600})
    page.set_content(figure.to_html(include_plotlyjs=True, config={"responsive": True}))
    plot = page.locator(".js-plotly-plot")
    expect(plot.locator(".legendtext").last).to_be_visible()
    texts = plot.evaluate(TEXTS)
    assert len(texts) > 20
    for (one, a), (other, b) in combinations(texts, 2):
        beside = a["right"] <= b["left"] + 1 or b["right"] <= a["left"] + 1
        assert beside or a["bottom"] <= b["top"] + 1 or b["bottom"] <= a["top"] + 1, (one, other)
    assert all(at["left"] >= 0 and at["right"] <= 390 for _, at in texts)
