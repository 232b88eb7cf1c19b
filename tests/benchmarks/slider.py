"""How long a slider on Remove a stage takes to answer, in Chromium on the digits demo.

    python -m tests.benchmarks.slider HOME [--times 19]

HOME is a STAGELENS_HOME that holds the digits demo; it is copied, so every strength is new. Timed
is from the key that moves the slider until the page shows the preview, and until the exact figures
have taken its place.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from tests.browser.conftest import CHROMIUM_ARGS, CHROMIUM_NAMES, IDLE, launch

LINK = "/Remove_a_stage?run=digits&set=test&remove-2=5"
"""A second stage is taken out in part, so that no strength is one of the computed ones."""

_STEPS = 19
"""A slider has no more, after the one that warms up."""

ANSWERED = """async slider => {
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
        if (preview === null && said.includes("a preview, interpolated"))
            preview = performance.now() - began;
        if (preview !== null && said.includes("exact: measured"))
            return [preview, performance.now() - began];
    }
    return [preview ?? NaN, NaN];
}"""
"""Milliseconds from a press on a slider until a preview, and until exact figures, are shown."""


def measured(page: Page, url: str, times: int) -> list[tuple[float, float]]:
    """Milliseconds until the preview and until the exact figures, for every step of the slider."""
    page.goto(url + LINK)
    page.get_by_text("exact: measured").wait_for(timeout=120_000)
    slider = page.get_by_role("slider", name="Strength of shortcut")
    found = []
    for number in range(min(times, _STEPS) + 1):
        page.wait_for_function(IDLE)
        slider.focus()
        preview, exact = slider.evaluate(ANSWERED)
        if number:  # the first one warms up
            found.append((preview, exact))
    return found


def report(name: str, times: Sequence[float]) -> None:
    """Print the median and the 95th percentile."""
    print(
        f"{name}: median {np.median(times):.0f} ms, 95 % {np.percentile(times, 95):.0f} ms "
        f"(n={len(times)}, load {os.getloadavg()[0]:.1f})",
        flush=True,
    )


@contextmanager
def looked_at(home: Path) -> Iterator[tuple[Page, str]]:
    """A page in Chromium, and the address of a server whose home is a copy of this one."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM_NAMES)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        shutil.copytree(home, Path(folder) / "home")
        server = launch(Path(folder), {"STAGELENS_HOME": f"{folder}/home"})
        try:
            browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
            yield browser.new_page(viewport={"width": 1280, "height": 900}), server.url
            browser.close()
        finally:
            server.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--times", type=int, default=_STEPS)
    options = parser.parse_args()
    with looked_at(options.home) as (page, url):
        previews, exact = zip(*measured(page, url, options.times), strict=True)
    report("slider, preview shown", previews)
    report("slider, exact figures shown", exact)


if __name__ == "__main__":
    main()
