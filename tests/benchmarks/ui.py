"""How long a person waits for the dashboard, in Chromium, and what memory a large set takes.

    python -m tests.benchmarks.ui --cache DIR [--times 20] [--only filter,page]

Every time is from the event in the browser until what it asked for is shown and Streamlit has
nothing left to do; the median and the 95th percentile are printed beside the goal. The sets of
10,000 and 100,000 examples are the digits demo's test set over and over, each copy with a noise of
its own, and their results are computed by the product's own functions; ``--cache`` keeps them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from stagelens.contracts import no_progress
from stagelens.demos import digits
from stagelens.demos.building import build
from stagelens.effects.computing import attribute, boundaries
from stagelens.runs.run import open_run
from stagelens.runs.sets.writer import write_set
from tests.benchmarks.slider import looked_at, measured
from tests.browser.conftest import CHROMIUM_ARGS, CHROMIUM_NAMES, IDLE, Server, launch

RUN = "digits"
FIRST = 180_000
"""Milliseconds that a first visit may take: Remove a stage imports torch then, and measures every
stage at four strengths."""
SIZES = {"ten-thousand": 10_000, "hundred-thousand": 100_000}

WATCH = """() => {
    window.began = null;
    for (const kind of ["pointerdown", "keydown"])
        addEventListener(kind, () => { window.began = performance.now(); }, true);
}"""

SINCE = f"""(shown) => {{
    const settled = {IDLE};
    const asked = new Function("return " + shown);
    if (window.began === null || !settled() || !asked()) return null;
    return performance.now() - window.began;
}}"""


def large_set(path: Path, name: str, count: int) -> None:
    """Add a set of ``count`` images to the demo, with its effects by replay and by task vector."""
    run = open_run(path, digits.make_task())
    small = run.evaluation_set("test")
    examples = small.examples()
    random = np.random.default_rng(0)
    rows = np.arange(count) % len(examples)
    images = np.stack([np.asarray(example.input["image"]) for example in examples])[rows]
    noisy = images + random.integers(-1, 2, images.shape)
    write_set(
        path,
        run.task,
        name,
        images=noisy.clip(0, images.max()).astype(images.dtype),
        labels=[examples[row].label for row in rows],
        ids=[f"{examples[row].example_id}-{number:06d}" for number, row in enumerate(rows)],
        columns={"group": [examples[row].columns["group"] for row in rows]},
        description=f"{count:,} copies of the demo's test images, each with a noise of its own",
    )
    run = open_run(path, digits.make_task())
    for estimator in ("replay", "task-vector"):
        attribute(run, name, estimator)
    boundaries(run, name)


def prepared(cache: Path) -> Path:
    """A home with the demo and the large sets, made where it is not there yet."""
    home = cache / "home"
    if not home.exists():
        with tempfile.TemporaryDirectory(dir=cache) as making:
            path = Path(making) / "home" / RUN
            build(path, digits.record, 0, no_progress)
            for name, count in SIZES.items():
                large_set(path, name, count)
            shutil.move(path.parent, home)
    return home


@contextmanager
def serving(home: Path) -> Iterator[Server]:
    """A server of its own over the home."""
    with tempfile.TemporaryDirectory() as folder:
        server = launch(Path(folder), {"STAGELENS_HOME": str(home)})
        try:
            yield server
        finally:
            server.stop()


def memory(server: Server, what: str = "VmRSS") -> float:
    """MB that the server's process takes; ``VmHWM`` is the most that it ever took."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(rf"{what}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


@dataclass
class Bench:
    """One page in one browser, and what was measured on it."""

    page: Page
    url: str
    times: int

    def open(self, link: str, text: str) -> None:
        """Go to a link and wait until it is there; what is measured only once may take its time."""
        self.page.goto(self.url + link)
        self.page.get_by_text(text).filter(visible=True).first.wait_for(timeout=FIRST)
        self.page.wait_for_function(IDLE, timeout=FIRST)
        self.page.evaluate(WATCH)

    def timed(self, act: Callable[[], object], shown: str) -> float:
        """Milliseconds from the last event of ``act`` until ``shown`` (JavaScript) holds."""
        self.page.evaluate("() => { window.began = null; }")
        act()
        return float(self.page.wait_for_function(SINCE, arg=shown).json_value())

    def several(self, name: str, goal: float, once: Callable[[int], float]) -> None:
        """Measure one warm-up and then ``times``, and print what came of it."""
        once(-1)
        found = [once(number) for number in range(self.times)]
        report(name, goal, found)

    def choose(self, label: str, option: str, shown: str) -> float:
        """Pick an option of a selectbox."""
        self.page.get_by_role("combobox", name=label, exact=True).click()
        entry = self.page.get_by_role("option", name=option, exact=True)
        entry.wait_for()
        return self.timed(entry.click, shown)


def report(name: str, goal: float, found: list[float]) -> None:
    """One line: median and 95th percentile beside the goal."""
    middle, late = np.median(found), np.percentile(found, 95)
    met = "met" if middle <= goal else "MISSED"
    print(
        f"{name:46} median {middle:5.0f} ms, 95 % {late:5.0f} ms (n={len(found)}; goal "
        f"{goal:.0f} ms: {met})",
        flush=True,
    )


def count_is_not(text: str) -> str:
    """JavaScript: the line that counts examples is there, and another one than before."""
    return f"{COUNT} !== null && {COUNT} !== {text!r}"


COUNT = (
    "([...document.querySelectorAll('[data-testid=stMain] p')].map(each => each.textContent)"
    r".find(text => /^[\d,]+( of [\d,]+)? images$/.test(text)) || null)"
)
HEADING = "[...document.querySelectorAll('h2')].map(each => each.textContent).join()"


def filters(bench: Bench, set_name: str, goal: float) -> None:
    """Filter by label on the Examples page."""
    bench.open(f"/Examples?run={RUN}&set={set_name}&sort=id", "images")

    bench.page.get_by_role("button", name="More").click()

    def once(number: int) -> float:
        before = bench.page.evaluate(COUNT)
        return bench.choose("Label", str((number + 1) % 10), count_is_not(before))

    bench.several(f"filter, {SIZES[set_name]:,} examples", goal, once)


def drilldown(bench: Bench, set_name: str, goal: float) -> None:
    """Step to the next example."""
    bench.open(f"/Examples?run={RUN}&set={set_name}&sort=id", "images")
    bench.page.keyboard.press("j")
    bench.page.get_by_role("heading", name="Answers").wait_for()
    bench.page.wait_for_function(IDLE)

    def once(number: int) -> float:
        before = bench.page.evaluate(HEADING)
        return bench.timed(lambda: bench.page.keyboard.press("j"), f"{HEADING} !== {before!r}")

    bench.several(f"choose another example of {SIZES[set_name]:,}", goal, once)


PAGES = {
    "Overview": ("Credit and blame", "/"),
    "Examples": ("Export CSV", "/Examples"),
    "Spurious features": ("Gap in", "/Spurious_features"),
    "Remove a stage": ("exact: measured", "/Remove_a_stage"),
    "Trust": ("What each estimate costs", "/Trust"),
}


def pages(bench: Bench, goal: float) -> None:
    """Go from page to page through the navigation, each seen before."""
    for text, path in [*reversed(PAGES.values())]:
        bench.open(f"{path}?run={RUN}&set=test", text)
    names = list(PAGES)

    def go(to: str) -> float:
        text, path = PAGES[to]
        link = bench.page.get_by_test_id("stSidebar").get_by_role("link", name=to, exact=True)
        shown = (
            f"location.pathname === {path!r} && document.querySelector('[data-testid=stMain]')"
            f".textContent.includes({text!r})"
        )
        return bench.timed(link.click, shown)

    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, max(bench.times // len(names), 2)):
        for name in [*names[1:], names[0]]:
            took = go(name)
            if number >= 0:
                found[name].append(took)
    for name, times in found.items():
        report(f"page switch to {name}", goal, times)
    report("page switch, all", goal, [each for times in found.values() for each in times])


def slider(home: Path, times: int, goal: float) -> None:
    """Steps of a slider on Remove a stage, on a server of its own: see ``slider.py``."""
    with looked_at(home) as (page, url):
        found = measured(page, url, times)
    for name, took in zip(("preview", "exact figures"), zip(*found, strict=True), strict=True):
        report(f"slider, {name}", goal, list(took))


def large(bench: Bench, server: Server, goal: float) -> None:
    """Open 100,000 examples on a server that has not seen them, filter, and look at its memory."""
    name = "hundred-thousand"
    for path, text in (("/", "Credit and blame"), ("/Examples", "Export CSV")):
        bench.open(f"{path}?run={RUN}&set=test", text)
    base = memory(server)
    took = bench.choose("Evaluation set", name, f"({COUNT} || '').includes('100,000')")
    print(f"{'open 100,000 examples, first time':46} {took:5.0f} ms (goal {goal:.0f} ms)")
    filters(bench, name, goal)
    opened = memory(server)
    bench.open(f"/?run={RUN}&set={name}", "Credit and blame")
    overview = memory(server)
    bench.open(f"/Trust?run={RUN}&set={name}", "What each estimate costs")
    print(
        f"{'memory for 100,000 examples':46} {opened - base:5.0f} MB over the base of {base:.0f}; "
        f"with the Overview {overview - base:.0f} MB, with Trust {memory(server) - base:.0f} MB, "
        f"at most {memory(server, 'VmHWM') - base:.0f} MB (goal 600 MB)"
    )


def main() -> None:
    """Print a line per goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--only", default="filter,drill,page,slider,large")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    home, wanted = prepared(options.cache), options.only.split(",")
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    chromium = next(filter(None, map(shutil.which, CHROMIUM_NAMES)))
    with sync_playwright() as playwright, serving(home) as server:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
        bench = Bench(
            browser.new_page(viewport={"width": 1280, "height": 900}), server.url, options.times
        )
        if "large" in wanted:  # first: the server's base is one that has seen no large set
            large(bench, server, 1000)
        if "filter" in wanted:
            filters(bench, "ten-thousand", 300)
        if "drill" in wanted:
            drilldown(bench, "ten-thousand", 200)
        if "page" in wanted:
            pages(bench, 700)
        browser.close()
    if "slider" in wanted:
        slider(home, options.times, 300)
    print(f"load average {os.getloadavg()[0]:.2f} at the end")


if __name__ == "__main__":
    main()
