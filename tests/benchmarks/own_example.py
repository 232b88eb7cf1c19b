"""How long an own example takes to be answered, in Chromium, by every model of a demo.

    python -m tests.benchmarks.own_example HOME [--times 20]

HOME is a STAGELENS_HOME with the demos ``digits`` and ``comments`` and their effects. Timed is from
the last key of a word, or from the file that was given, until the effect of every stage on the new
example is shown. Every example is another one; the first of each demo is told apart, since
the models are loaded then.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page

from stagelens.demos.comment_templates import HARMLESS, MENTION, write
from tests.benchmarks.slider import looked_at, report
from tests.browser.conftest import IDLE

LINK = "/Examples?run={demo}&view=Own+example"

ANSWERED = """shown => {
    const echoes = document.querySelectorAll('[data-testid="stCode"], [data-testid="stHtml"]');
    const main = [...echoes].map(each => each.textContent).join();
    if (document.querySelector('[data-stale="true"]') !== null) return null;
    const bars = document.querySelectorAll('[data-testid="stHtml"] [role="figure"]').length;
    if (window.began === undefined || !main.includes(shown) || !bars) return null;
    return performance.now() - window.began;
}"""
"""Milliseconds since the example was given, once its words and the bars of the stages are there."""

_BEGIN = """() => {
    window.began = undefined;
    const begin = () => { window.began = performance.now(); };
    for (const kind of ["click", "change"]) addEventListener(kind, begin, {capture: true});
}"""


def _open(page: Page, url: str, demo: str) -> None:
    page.goto(url + LINK.format(demo=demo))
    page.get_by_text("answer at once").first.wait_for(timeout=120_000)
    page.wait_for_function(IDLE)
    page.evaluate(_BEGIN)


def _answered(page: Page, shown: str) -> float:
    found = page.wait_for_function(ANSWERED, arg=shown, timeout=120_000)
    milliseconds = float(found.json_value())
    page.wait_for_function(IDLE)
    return milliseconds


def images(page: Page, url: str, times: int) -> list[float]:
    """Milliseconds for ``times`` + 1 images, the first of them included."""
    _open(page, url, "digits")
    random = np.random.default_rng(0)
    found = []
    for number in range(times + 1):
        data, name = io.BytesIO(), f"digit-{number:03d}.png"
        Image.fromarray(random.integers(0, 255, (64, 64), np.uint8)).save(data, "png")
        box = page.get_by_test_id("stFileUploader").locator("input")
        page.evaluate("() => { window.began = undefined; }")
        box.set_input_files({"name": name, "mimeType": "image/png", "buffer": data.getvalue()})
        found.append(_answered(page, f"{name}, as the model sees it"))
    return found


_CHANGED = """before => {
    const bars = document.querySelector('[data-testid="stHtml"] [role="figure"]')?.innerHTML;
    if (window.began === undefined || bars === undefined || bars === before) return null;
    return performance.now() - window.began;
}"""
"""Milliseconds since a key was pressed, once the bars of the stages are others than before."""


def texts(page: Page, url: str, times: int) -> list[float]:
    """Milliseconds for ``times`` + 1 words, typed one after the other."""
    _open(page, url, "comments")
    page.evaluate(
        "() => addEventListener('keydown', () => { window.began = performance.now(); }, true)"
    )
    text = page.get_by_role("textbox", name="A text of your own")
    bars = page.locator('[data-testid="stHtml"] [role="figure"]').first
    found, before = [], ""
    comments = write(HARMLESS, times + 1, MENTION, np.random.default_rng(0))
    for comment in comments:
        page.evaluate("() => { window.began = performance.now(); }")
        text.fill(comment.text)
        page.wait_for_function(_CHANGED, arg=before, timeout=120_000)
        page.wait_for_function(IDLE)
        before = bars.inner_html()
        # One more letter is one more token, or another, so that answers differ.
        page.keyboard.type("x")
        found.append(
            float(page.wait_for_function(_CHANGED, arg=before, timeout=120_000).json_value())
        )
        page.wait_for_function(IDLE)
        before = bars.inner_html()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--only", choices=("images", "texts"))
    options = parser.parse_args()
    with looked_at(options.home) as (page, url):
        for name, measure in (("images", images), ("texts", texts)):
            if options.only in (None, name):
                first, *others = measure(page, url, options.times)
                report(f"own example, {name}", others)
                print(f"own example, the first of the {name}: {first:.0f} ms")


if __name__ == "__main__":
    main()
