"""What a million examples and six stages take: processor time to first numbers, and memory.

Wanted: under 10 s and 1 GB on every page that browses them, and 1.5 s for a filter.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("app.py", "pages/1_Examples.py", "pages/2_Spurious_features.py")
STAGES = 6


def measured(home: Path, page: str) -> dict[str, float]:
    """One page in a process of its own, as a server that was just started shows it."""
    done = subprocess.run(
        [sys.executable, __file__, page],
        cwd=ROOT,
        env={
            **os.environ,
            "STAGELENS_HOME": str(home),
            "STAGELENS_READ_ONLY": "1",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _peak() -> float:
    """MB that this process took at most; getrusage would count those of its parent."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main(page: str) -> None:
    """Print the seconds of processor time, and the MB at most, of a first visit and a filter."""
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=3000)
    app.query_params["run"], app.query_params["set"] = "run", "large"
    if page != "app.py":
        app.switch_page(page)
    began = time.process_time()
    app.run()
    first = time.process_time()
    assert not app.exception, app.exception
    for box in app.main.selectbox:
        if box.label == "Group":
            box.set_value("left")
    app.run()
    print(
        json.dumps(
            {
                "first": first - began,
                "filter": time.process_time() - first,
                "peak": _peak(),
            }
        )
    )


@pytest.mark.benchmark
def test_a_million_examples_fit_into_a_gigabyte(tmp_path: Path) -> None:
    from tests.support.large_runs import large_run

    sizes = (250_000, 1_000_000)
    for size in sizes:
        large_run(tmp_path / str(size) / "run", STAGES, size)
    for page in PAGES:
        small, large = (measured(tmp_path / str(size), page) for size in sizes)
        print(
            f"{page}: {large['first']:.1f} s of processor time to first numbers, "
            f"{large['filter']:.2f} s a filter, {large['peak']:,.0f} MB at most "
            f"({small['first']:.1f} s, {small['filter']:.2f} s and {small['peak']:,.0f} MB for a "
            "quarter)"
        )
        assert large["peak"] < 1000
        # Four times as many examples: nothing grows faster than they do.
        assert large["first"] < 5 * small["first"]
        assert large["filter"] < 5 * small["filter"] + 0.2


if __name__ == "__main__":
    main(sys.argv[1])
