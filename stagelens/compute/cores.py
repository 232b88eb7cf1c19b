"""How many processor cores this process may use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from . import cgroups

LIMIT = "STAGELENS_CORES"
"""Names a lower number; the dashboard sets it for its jobs where it limits their threads."""


def usable() -> int:
    """Cores that affinity, the container and ``STAGELENS_CORES`` leave; at least 1."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # there is none on macOS and Windows
        allowed = os.cpu_count() or 1
    # Half a core more runs no further process at full speed.
    return max(1, int(min([allowed, *_in_container(), *_limit()])))


def _limit() -> Iterator[int]:
    text = os.environ.get(LIMIT, "")
    if text.isdigit() and int(text) > 0:
        yield int(text)


def _in_container() -> Iterator[float]:
    """What the control groups of this process leave it."""
    for group, version in cgroups.groups("cpu"):
        names = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        # Without a limit the quota is "max", or -1.
        with contextlib.suppress(OSError, ValueError):
            words = " ".join((group / name).read_text() for name in names).split()
            quota, period = map(int, words)
            if quota > 0 and period > 0:
                yield quota / period
