"""Large files checked while they are used: threads read them a little ahead."""

from __future__ import annotations

import hashlib
import mmap
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .checked_files import CheckedFiles
from .schema import FileRef

_WINDOW = 16 * 2**20


class CheckedAhead:
    """Checks sequences of files against their digests, each sequence in a thread of its own.

    Who uses the files waits until the checks of all sequences have come as far. What it maps is
    then in memory already, so the disk is read once and in long stretches. A digest takes longer
    than a disk, so it is what sequences are best shared out over the processor's cores for.

    Args:
        files: Of the run folder.
        sequences: Files that follow each other, as the shards of a state.
    """

    def __init__(self, files: CheckedFiles, sequences: Sequence[Sequence[FileRef]]) -> None:
        self._files = files
        self._sequences = sequences
        self._shares = [0.0] * len(sequences)
        self._error: BaseException | None = None
        self._stopped = False
        self._moved = threading.Condition()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Check for as long as the block runs; afterwards everything is checked.

        Raises:
            RunError: A file is missing, truncated or edited.
        """
        threads = [
            threading.Thread(target=self._run, args=(n,), name="stagelens-checking", daemon=True)
            for n in range(len(self._sequences))
        ]
        for thread in threads:
            thread.start()
        try:
            yield
            self.wait(1.0)
        finally:
            self._stopped = True
            for thread in threads:
                thread.join()

    def wait(self, share: float) -> None:
        """Wait until this share of every sequence was checked.

        Raises:
            RunError: A file is missing, truncated or edited.
        """
        with self._moved:
            self._moved.wait_for(lambda: self._error is not None or min(self._shares) >= share)
            if self._error is not None:
                raise self._error

    def _run(self, number: int) -> None:
        try:
            for share in self._walk(self._sequences[number]):
                self._tell(number, share)
                if self._stopped:
                    break
        except BaseException as raised:  # raised again where someone waits
            self._tell(number, 1.0, raised)
        else:
            self._tell(number, 1.0)

    def _tell(self, number: int, share: float, error: BaseException | None = None) -> None:
        with self._moved:
            self._shares[number] = share
            self._error = self._error or error
            self._moved.notify_all()

    def _walk(self, sequence: Sequence[FileRef]) -> Iterator[float]:
        """Check one sequence, a window at a time; yields the share that is done."""
        total, done = sum(file.bytes for file in sequence), 0
        for reference in sequence:
            if self._files.is_checked(reference):
                done += reference.bytes
                continue
            hasher = hashlib.sha256()
            with (
                open(self._files.present(reference), "rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            ):
                _read_ahead(mapped, 0)
                for first in range(0, len(mapped), _WINDOW):
                    _read_ahead(mapped, first + _WINDOW)
                    with memoryview(mapped)[first : first + _WINDOW] as window:
                        hasher.update(window)
                        done += len(window)
                    yield min(done / total, 0.999)
            self._files.confirm(reference, hasher.hexdigest())


def _read_ahead(mapped: mmap.mmap, first: int) -> None:
    """Ask for a window before it is needed, so that it is read in one stretch."""
    if sys.platform != "win32" and first < len(mapped):
        mapped.madvise(mmap.MADV_WILLNEED, first, min(_WINDOW, len(mapped) - first))
