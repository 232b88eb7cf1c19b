"""Files over workers, and what was skipped."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

import pytest

FIRST = ("tests/unit/test_linters.py", "tests/unit/test_comments_demo.py")
"""They wait for nothing, while a third worker builds the demo that most others wait for."""


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, for the one that waits for a browser."""
    return min((os.cpu_count() or 1) + 1, 4)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As --dist loadfile; the first worker prefers browser files, the others all the rest."""
    from xdist.scheduler import LoadFileScheduling

    class Spread(LoadFileScheduling):
        def _assign_work_unit(self, node: Any) -> None:
            in_browser = node is self.nodes[0]
            for scope in self.workqueue:
                if scope.startswith("tests/browser/") == in_browser:
                    self.workqueue.move_to_end(scope, last=False)
                    break
            super()._assign_work_unit(node)

    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # it would go by the number of tests
    return Spread(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first, but for FIRST; the same order in every worker."""
    files: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        files[item.nodeid.split("::")[0]].append(item)
    slow = {n: sum(i.get_closest_marker("slow") is not None for i in f) for n, f in files.items()}
    slow |= {name: len(items) for name in FIRST if name in files}
    items[:] = [i for n in sorted(files, key=slow.__getitem__, reverse=True) for i in files[n]]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        by_reason[reason.removeprefix("Skipped: ")].append(report.nodeid.split("::")[0])
    if by_reason:
        terminalreporter.section("skipped, and why")
    for reason, names in sorted(by_reason.items()):
        tests = "1 test" if len(names) == 1 else f"{len(names)} tests"
        terminalreporter.line(f"{tests}: {reason} ({', '.join(sorted(set(names)))})")
