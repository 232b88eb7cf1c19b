"""How large a report of twenty findings is, and how long it takes to open.

Wanted: under 8 MB, open in under 2 seconds without a network.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from playwright.sync_api import Browser, sync_playwright

from stagelens.report.finding import Finding
from stagelens.report.page import LARGEST, Report, Section, as_html
from tests.browser.conftest import CHROMIUM_ARGS, CHROMIUM_NAMES
from tests.support.findings import finding, scatter

TIMES = 5

Made = Callable[[], list[Finding]]


def bars() -> list[Finding]:
    return [finding(title=f"Finding {number}") for number in range(20)]


def with_scatters() -> list[Finding]:
    return [*bars()[:14], *(Finding(seen=scatter(10_000)) for _ in range(6))]


SHOWN = ("words", "page loaded", "charts of the first window", "all charts")


def opened(browser: Browser, file: Path) -> tuple[float, ...]:
    """Seconds until each of :data:`SHOWN` is there."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    began = time.perf_counter()
    page.goto(file.as_uri(), wait_until="commit")
    page.locator("article").first.wait_for()
    words = time.perf_counter() - began
    page.wait_for_load_state("load")
    loaded = time.perf_counter() - began
    page.locator("html[data-drawn]").wait_for(state="attached")
    window = time.perf_counter() - began
    page.locator("html[data-drawn=all]").wait_for(state="attached")
    drawn = time.perf_counter() - began
    context.close()
    return words, loaded, window, drawn


@pytest.mark.benchmark
@pytest.mark.parametrize("made", [bars, with_scatters], ids=["bars", "with 6 of 10,000 marks"])
def test_time_to_open(made: Made, tmp_path: Path) -> None:
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        pytest.skip("no Chromium")
    began = time.perf_counter()
    content = as_html(Report("mine", "d" * 64, [Section("Findings", "", made())]))
    written = time.perf_counter() - began
    assert len(content) < LARGEST["interactive"]
    file = tmp_path / "report.html"
    file.write_bytes(content)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS)
        seconds = [opened(browser, file) for _ in range(TIMES)]
        browser.close()
    for name, values in zip(SHOWN, zip(*seconds, strict=True), strict=True):
        print(f"  {name}: median {median(values):.2f} s, longest {max(values):.2f} s")
    print(
        f"  {len(content) / 1e6:.2f} MB, made and written in {written:.2f} s; {TIMES} times, load "
        f"{os.getloadavg()[0]:.1f}"
    )
