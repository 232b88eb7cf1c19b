"""Large files checked while they are used: a thread reads them a little ahead."""

from __future__ import annotations

import hashlib
import mmap
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .files import CheckedFiles
from .schema import FileRef

_WINDOW = 16 * 2**20


class CheckedAhead:
    """Checks sequences of files against their digests, all sequences at the same pace.

    Who uses the files waits until the checks have come as far. What it maps is then in memory
    already, so the disk is read once and in long stretches.

    Args:
        files: Of the run folder.
        sequences: Files that follow each other, as the shards of a state.
    """

    def __init__(self, files: CheckedFiles, sequences: Sequence[Sequence[FileRef]]) -> None:
        self._files = files
        self._sequences = sequences
        self._share = 0.0
        self._error: BaseException | None = None
        self._stopped = False
        self._moved = threading.Condition()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Check for as long as the block runs; afterwards everything is checked.

        Raises:
            RunError: A file is missing, truncated or edited.
        """
        thread = threading.Thread(target=self._run, name="stagelens-checking", daemon=True)
        thread.start()
        try:
            yield
            self.wait(1.0)
        finally:
            self._stopped = True
            thread.join()

    def wait(self, share: float) -> None:
        """Wait until this share of every sequence was checked.

        Raises:
            RunError: A file is missing, truncated or edited.
        """
        with self._moved:
            self._moved.wait_for(lambda: self._error is not None or self._share >= share)
            if self._error is not None:
                raise self._error

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            walks = [self._walk(sequence) for sequence in self._sequences]
            while walks and not self._stopped:
                shares = [next(walk, None) for walk in walks]
                walks = [walk for walk, at in zip(walks, shares, strict=True) if at is not None]
                self._tell(min((at for at in shares if at is not None), default=1.0))
        except BaseException as raised:  # raised again where someone waits
            error = raised
        self._tell(1.0, error)

    def _tell(self, share: float, error: BaseException | None = None) -> None:
        with self._moved:
            self._share, self._error = share, error
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
