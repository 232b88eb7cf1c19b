"""One recorder at a time per run folder."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import IO

from stagelens.contracts import RecordingError


class FolderLock:
    """Holds a folder for this process; the system releases it however the process ends.

    The lock belongs to an open file, which forked processes share: workers of a ``DataLoader``
    would hold it for as long as they live. So they close their copy of the file at once.

    Args:
        folder: The run folder.

    Raises:
        RecordingError: Another recorder holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._file: IO[str] | None = None
        if os.name != "posix":
            return
        import fcntl  # not there on Windows

        # Before the file is opened, or a worker that is started in between would inherit it.
        _held.add(self)
        self._file = open(folder / ".recording.lock", "w")  # noqa: SIM115 - held until closed
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise RecordingError(
                f"another recorder has {folder} open; wait until its process ends (in this "
                "process, call its close method), or choose another folder"
            ) from None
        except OSError:  # a file system without locks, as some of clusters are
            self.close()

    def close(self) -> None:
        """Release the folder."""
        if self._file is not None:
            self._file.close()
            self._file = None


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _let_go_in_a_fork() -> None:
    for lock in list(_held):
        lock.close()


if hasattr(os, "register_at_fork"):  # not there on Windows
    os.register_at_fork(after_in_child=_let_go_in_a_fork)
