"""Files over workers, and what was skipped."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

import pytest

FIRST = (
    *("tests/unit/test_linters.py", "tests/unit/test_comments_demo.py"),
    *("tests/unit/test_unrolled.py", "tests/unit/test_adjoint.py"),
)
"""They wait for nothing, while a third worker builds the demo that most others wait for."""
LONG = (
    *("tests/unit/test_report.py", "tests/unit/test_estimates.py", "tests/pages/test_bar.py"),
    *("tests/pages/test_trust.py", "tests/unit/test_trainer_callback.py"),
    *("tests/unit/test_tasks_of_all_kinds.py", "tests/unit/test_odd_runs.py"),
    *("tests/unit/test_run_folder.py", "tests/unit/test_replay.py", "tests/pages/test_draws.py"),
)
"""Without their slow tests these take longest, so none of them shall be begun last."""


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
    """FIRST, then files with most slow tests, then LONG; the same order in every worker."""
    files: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        files[item.nodeid.split("::")[0]].append(item)

    def place(name: str) -> tuple[int, int, bool]:
        first = FIRST.index(name) if name in FIRST else len(FIRST)
        slow = sum(item.get_closest_marker("slow") is not None for item in files[name])
        return first, -slow, name not in LONG

    items[:] = [item for name in sorted(files, key=place) for item in files[name]]


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
