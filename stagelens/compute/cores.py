"""How many processor cores this process may use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

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
    """What the control groups of this process leave it, as containers and job queues limit it."""
    try:
        groups = _OWN_CGROUP.read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, own = line.split(":", 2)
        if not controllers:  # version 2
            root, names = _CGROUPS, ["cpu.max"]
        elif "cpu" in controllers.split(","):
            root, names = _CGROUPS / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        folder = root / own.lstrip("/")
        # Every group above limits it too. Inside a container the path is often not to be seen.
        for each in (folder, *folder.parents):
            if not each.is_relative_to(root):
                break
            # Without a limit the quota is "max", or -1.
            with contextlib.suppress(OSError, ValueError):
                words = " ".join((each / name).read_text() for name in names).split()
                quota, period = map(int, words)
                if quota > 0 and period > 0:
                    yield quota / period
