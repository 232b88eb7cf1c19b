"""How long a slider on Remove a stage takes to answer, in Chromium on the digits demo.

    python -m tests.benchmarks.slider HOME [--times 20]

HOME is a STAGELENS_HOME that holds the digits demo; it is copied, so every strength is new. Timed
is from the key that moves the slider until the page shows the preview, and until the exact figures
have taken its place.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from tests.browser.conftest import CHROMIUM_ARGS, CHROMIUM_NAMES, IDLE, launch

LINK = "/Remove_a_stage?run=digits&set=test&remove-2=5"
"""A second stage is taken out in part, so that no strength is one of the computed ones."""

ANSWERED = """async slider => {
    const badge = () => document.querySelector('[data-testid="stMarkdownBadge"]');
    const words = () => document.querySelector('[data-testid="stMain"]').textContent;
    const figures = () => [...document.querySelectorAll('[data-testid="stMetricValue"]')]
        .map(each => each.textContent).join();
    const before = figures();
    const began = performance.now();
    let preview = null;
    slider.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
    while (performance.now() - began < 20000) {
        await new Promise(done => setTimeout(done, 2));
        if (figures() === before) continue;
        const said = words();
        if (preview === null && said.includes("Preview: interpolated"))
            preview = performance.now() - began;
        if (preview !== null && said.includes("Exact: measured"))
            return [preview, performance.now() - began];
    }
    return [preview ?? NaN, NaN];
}"""
"""Milliseconds from a press on a slider until a preview, and until exact figures, are shown."""


def measured(page: Page, url: str, times: int) -> list[tuple[float, float]]:
    """Milliseconds until the preview and until the exact figures, for every step of the slider."""
    page.goto(url + LINK)
    page.get_by_text("Exact: measured").wait_for(timeout=120_000)
    slider = page.get_by_role("slider", name="Strength of shortcut")
    found = []
    for number in range(times + 1):
        page.wait_for_function(IDLE)
        if number and number % 19 == 0:
            raise ValueError("a slider has nineteen steps")
        slider.focus()
        preview, exact = slider.evaluate(ANSWERED)
        if number:  # the first one warms up
            found.append((preview, exact))
    return found


def report(found: list[tuple[float, float]]) -> None:
    """Print medians and 95th percentiles."""
    for name, times in zip(("preview shown", "exact figures shown"), zip(*found, strict=True)):
        print(
            f"slider, {name}: median {statistics.median(times):.0f} ms, 95 % "
            f"{np.percentile(times, 95):.0f} ms (n={len(times)}, load {os.getloadavg()[0]:.1f})",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--times", type=int, default=18)
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, CHROMIUM_NAMES)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = Path(folder) / "home"
        shutil.copytree(options.home / "digits", home / "digits")
        server = launch(Path(folder), {"STAGELENS_HOME": str(home)})
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            report(measured(page, server.url, options.times))
        finally:
            browser.close()
            server.stop()


if __name__ == "__main__":
    main()
