"""The control groups that limit this process, as containers and job queues set them up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ALL, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def groups(controller: str) -> Iterator[tuple[Path, int]]:
    """The folder of every control group that this process is in, and its version, 1 or 2.

    Args:
        controller: What is controlled, for instance ``"memory"``.
    """
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if not controllers:
            root, version = _ALL, 2
        elif controller in controllers.split(","):
            root, version = _ALL / controller, 1
        else:
            continue
        folder = root / own.lstrip("/")
        # Every group above limits it too. Inside a container the path is often not to be seen.
        for each in (folder, *folder.parents):
            if not each.is_relative_to(root):
                break
            yield each, version
