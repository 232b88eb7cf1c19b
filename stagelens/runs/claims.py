"""One process at a time does a piece of work on a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def claim(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a file for this process; the system releases it however the process ends.

    On a file system without locks every process believes that it holds it.

    Args:
        path: Of the file, which nothing else is in.
        wait: Whether to wait where another process holds it.

    Yields:
        Whether this process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, held = FileLock(path), True
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        held = False
    except (OSError, NotImplementedError):
        pass  # as some file systems of clusters have none
    try:
        yield held
    finally:
        lock.release()
