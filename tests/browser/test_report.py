"""From a chart on a page to a report that opens anywhere: pin, note, order, export, read, print."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from stagelens.report.store import FindingStore
from stagelens.runs.run import open_run
from tests.browser.conftest import OUTPUT, PICTURES, Server
from tests.conftest import DemoRun

NOTE = "The shortcut stage is to blame. <b>Remove it?</b>"


def pin(page: Page, name: str, note: str) -> None:
    page.get_by_role("button", name=re.compile(f"Pin to findings: {name}")).click()
    page.get_by_role("textbox", name="Note").fill(note)
    page.get_by_role("dialog").get_by_role("button", name="Pin", exact=True).click()
    expect(page.get_by_text(re.compile("^Pinned: "))).to_be_visible()


def read_report(chromium: Browser, file: Path, name: str) -> None:
    """Open a report without any network, in light and dark and narrow, and print it."""
    context = chromium.new_context(offline=True, reduced_motion="reduce")
    page = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: errors.append(said.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    for scheme, width in (("light", 1100), ("dark", 1100), ("light", 420)):
        page.emulate_media(color_scheme=scheme, media="screen")  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 1000})
        page.goto(file.as_uri())
        expect(page.locator("html[data-drawn=all]")).to_be_attached()
        charts = page.locator("article.of-chart")
        assert charts.count() >= 2
        for chart in charts.all():
            expect(chart.locator(".main-svg").first).to_be_attached()
        text = charts.first.locator(".ytick text").first
        paper, ink = (
            [int(part) for part in re.findall(r"\d+", colour)[:3]]
            for colour in (
                page.locator("html").evaluate("e => getComputedStyle(e).backgroundColor"),
                text.evaluate("e => getComputedStyle(e).fill"),
            )
        )
        assert (max(paper) < 128) == (scheme == "dark") == (min(ink) > 128)
        assert page.locator("html").evaluate("e => e.scrollWidth - e.clientWidth") <= 0
        if PICTURES:
            page.screenshot(path=OUTPUT / f"{name}-{width}-{scheme}.png", full_page=True)
        if scheme == "dark":  # printed pages are light all the same
            printed = page.pdf(path=OUTPUT / f"{name}.pdf", format="A4", print_background=True)
            assert printed.startswith(b"%PDF") and len(printed) > 20_000
            page.set_viewport_size({"width": 703, "height": 1000})
            page.emulate_media(media="print")
            if PICTURES:
                page.screenshot(path=OUTPUT / f"{name}-print.png", full_page=True)
            background = page.locator("html").evaluate("e => getComputedStyle(e).backgroundColor")
            assert background == "rgb(255, 255, 255)"
            for chart in page.locator(".chart").all():
                box = chart.locator(".main-svg").first.bounding_box()
                assert box is not None and box["x"] + box["width"] <= 703
        assert errors == [] and asked == [file.as_uri()]
        asked.clear()
    context.close()


def read_static(chromium: Browser, downloaded: Path, interactive: Path) -> None:
    """Open a report of pictures where no script runs: each has a form for wide and for narrow."""
    file = interactive.with_name("static.html")
    file.write_bytes(downloaded.read_bytes())
    assert file.stat().st_size < min(1_000_000, interactive.stat().st_size)
    context = chromium.new_context(offline=True, java_script_enabled=False)
    page = context.new_page()
    for width, shown, hidden in ((1100, "wide", "narrow"), (420, "narrow", "wide")):
        page.set_viewport_size({"width": width, "height": 1000})
        page.goto(file.as_uri())
        pictures = page.locator(f".in-{shown} svg")
        assert pictures.count() >= 2
        for picture in pictures.all():
            expect(picture).to_be_visible()
            box = picture.bounding_box()
            assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
        expect(page.locator(f".in-{hidden} svg").first).to_be_hidden()
    context.close()


@pytest.mark.essential
def test_a_chart_is_pinned_and_its_report_opens_anywhere(
    own_server: Server,
    own_home: Path,
    digits_run: DemoRun,
    page: Page,
    chromium: Browser,
    settle,
    screenshot,
    check_narrow,
    tmp_path: Path,
) -> None:
    run, server = shutil.copytree(digits_run.path, own_home / "report"), own_server
    page.goto(server.url + "/?run=report&group=stamped&show-bars=true&show-stages=true")
    settle(page, "Credit and blame")
    pin(page, "Credit and blame", NOTE)
    settle(page)
    pin(page, "Stages in training order", "When it happened.")
    page.goto(server.url + "/Examples?run=report&example=stamped-001")
    settle(page, "Effect of each stage")
    pin(page, "Effect of each stage on example stamped-001", "One of them.")
    page.get_by_role("link", name="Report").click()
    settle(page, "3 findings")
    heads = page.get_by_role("heading", level=2)
    expect(heads).to_have_text(
        [
            re.compile(r"1\. Credit and blame of each stage for the accuracy on stamped"),
            re.compile(r"2\. Stages in training order"),
            re.compile(r"3\. Effect of each stage on example stamped-001"),
        ]
    )
    screenshot(page, "report-page")
    check_narrow(page, "report")
    page.get_by_role("button", name="Up", exact=True).nth(2).click()
    expect(heads.nth(1)).to_have_text(re.compile(r"2\. Effect of each stage on example"))
    settle(page)
    note = page.get_by_role("textbox", name="Note").nth(1)
    note.fill("One of many.")
    note.blur()
    expect(page.get_by_text("Earlier notes (1)")).to_be_visible()
    settle(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Rows as JSON").click()
    document = json.loads(Path(download.value.path()).read_text())
    page.get_by_text("Add the run's own report").click()
    settle(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export HTML").click()
    file = tmp_path / "report.html"
    download.value.save_as(file)
    notes = [each.note for each in FindingStore(open_run(run)).read().kept]
    assert notes == [NOTE, "One of many.", "When it happened."]
    assert len(document["findings"]) > 3
    assert [each["note"] for each in document["findings"]][:3] == notes
    read_report(chromium, file, "report")
    content = file.read_text()
    assert f"{server.url}/Examples?run=report" in content
    assert "&lt;b&gt;Remove it?&lt;/b&gt;" in content
    page.get_by_text("Pictures, under 1 MB").click()
    settle(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export HTML").click()
    assert download.value.suggested_filename.endswith("-report-pictures.html")
    read_static(chromium, Path(download.value.path()), file)
    page.get_by_role("link", name="Open on the Examples page").click()
    settle(page, "Effect of each stage")
    expect(page.get_by_role("heading", name="stamped-001")).to_be_visible()
