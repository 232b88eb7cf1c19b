"""Files of a run folder, checked against the digests that the recording names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, get_ident

from stagelens.contracts import RunError

from .files import is_as_recorded
from .remote import Origin
from .schema import FileRef


def _times(path: Path) -> tuple[int, int]:
    # A file is hashed once, and again only if one of these shows that it was written since.
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


class CheckedFiles:
    """Files of one run folder, checked against their references once, when first used.

    If the folder is the copy of a run elsewhere, files are fetched when they are used.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()  # as `inside` compares paths after following links
        self._checked: dict[str, tuple[int, int]] = {}
        self._beside: _Beside | None = None
        self._origin: Origin | None = None
        if (self.root.parent / "origin.json").is_file():
            self._origin = Origin.of(self.root)

    @property
    def is_copy(self) -> bool:
        """Whether the run lies elsewhere, and its files are fetched when they are used."""
        return self._origin is not None

    def path(self, reference: FileRef) -> Path:
        """The file's path, once its size and its quickest digest are found to be as recorded.

        Raises:
            RunError: Missing, outside the run folder, truncated or edited; names the file.
        """
        path = self.present(reference)
        if self._checked.get(reference.path) != _times(path):
            if (beside := self._own_beside()) is not None:
                beside.hash([(reference, path)])
                return path
            fits = is_as_recorded(path, reference)
            # The copy in the cache may be what was damaged: fetch it again before refusing the run.
            if self._origin is not None and not fits:
                self._origin.drop(reference.path)
                fits = is_as_recorded(self.present(reference), reference)
            if not fits:
                raise _changed(path)
            self._checked[reference.path] = _times(path)
        return path

    def verified(self, reference: FileRef) -> Path:
        """As :meth:`path`, by every digest of the file, and anew.

        Raises:
            RunError: As there.
        """
        path = self.path(reference)
        if not is_as_recorded(path, reference, whole=True):
            raise _changed(path)
        return path

    def written(self, references: Sequence[FileRef]) -> None:
        """Say that files are as recorded, because this process has just written or compared them.

        Raises:
            RunError: One is missing, or of another size.
        """
        for reference in references:
            self._checked[reference.path] = _times(self.present(reference))

    @contextmanager
    def hashed_beside(self) -> Iterator[None]:
        """Within the block files are hashed while they are used, and all are checked at its end.

        So each is read from the disk once. What the block makes must be thrown away if this raises.
        Files that are fetched from elsewhere are checked first, as usual; so are those that another
        thread asks for meanwhile, which knows nothing of the block, and would keep what it makes.

        Raises:
            RunError: A file that was used in the block was edited; in place of any other error,
                which may come of that.
        """
        if self._origin is not None or self._beside is not None:
            yield
            return
        self._beside = beside = _Beside()
        try:
            yield
        except Exception:
            self._checked |= beside.checked()
            raise
        else:
            self._checked |= beside.checked()
        finally:
            self._beside = None
            beside.close()

    def _own_beside(self) -> _Beside | None:
        """Of the block of :meth:`hashed_beside` that this thread is in."""
        beside = self._beside
        return beside if beside is not None and beside.thread == get_ident() else None

    def paths(self, references: Sequence[FileRef]) -> Iterator[Path]:
        """As :meth:`path` for several files, in order; local ones are hashed on all cores.

        Use each before asking for the next: the cache of a remote run may be too small for all.

        Raises:
            RunError: As there, for one of the files.
        """
        if self._origin is not None:
            yield from map(self.path, references)
            return
        if (beside := self._own_beside()) is not None:
            paths = [self.present(reference) for reference in references]
            new = [
                (reference, path)
                for reference, path in zip(references, paths, strict=True)
                if self._checked.get(reference.path) != _times(path)
            ]
            beside.hash(new)
            yield from paths
            return
        # Threads are enough: hashlib releases the interpreter's lock.
        with ThreadPoolExecutor(min(len(references), os.cpu_count() or 1)) as pool:
            yield from pool.map(self.path, references)

    def listed(self, reference: FileRef) -> None:
        """Check a file's size only, without fetching it; cheap enough for opening a run.

        Raises:
            RunError: Missing, outside the run folder, or truncated.
        """
        entry = self._origin.entry(reference.path) if self._origin is not None else None
        if entry is None or entry.bytes != reference.bytes:
            self.present(reference)

    def present(self, reference: FileRef) -> Path:
        """The file's path, after checking only its size."""
        path = self.inside(reference.path)
        if self._origin is not None:
            self._origin.bring(reference)
        try:
            size = path.stat().st_size
        except OSError:
            raise RunError(
                f"{path} is missing; restore it from where the run was recorded"
            ) from None
        if size != reference.bytes:
            raise RunError(
                f"{path} has {size:,} bytes, but {reference.bytes:,} were recorded: it is "
                "truncated or was replaced; restore the original file"
            )
        return path

    def inside(self, relative: str) -> Path:
        """The path of a file or folder, whether or not it exists, checked with its links followed.

        Raises:
            RunError: It leads out of the run folder.
        """
        path = self.root / relative
        try:
            inside = path.resolve().is_relative_to(self.root)
        except (OSError, ValueError) as error:  # a loop of links, or a null byte
            raise RunError(f"{path} cannot be opened ({error}); restore the run folder") from None
        if not inside:
            raise RunError(f"{path} leads out of the run folder; it is not opened")
        return path


class _Beside:
    """Files that are hashed by threads while others read them.

    Those that were asked for together are hashed one after the other, as they are read; by hashing
    them all at once, the disk would be kept from what is read now.

    Attributes:
        thread: The one whose block it is.
    """

    def __init__(self) -> None:
        self.thread = get_ident()
        self._stop = Event()
        # They mostly wait: for the disk, and for their turn on the cores.
        self._pool = ThreadPoolExecutor(_AT_ONCE, "hash")
        self._known: dict[str, tuple[int, int]] = {}
        self._jobs: list[tuple[FileRef, Path, Future[bool]]] = []

    def hash(self, files: Sequence[tuple[FileRef, Path]]) -> None:
        """Begin to hash files, but those that are being hashed already."""
        new = [(reference, path) for reference, path in files if reference.path not in self._known]
        for reference, path in new:
            self._known[reference.path] = _times(path)
            job: Future[bool] = Future()
            self._jobs.append((reference, path, job))
        if new:
            self._pool.submit(self._work, self._jobs[-len(new) :])

    def _work(self, jobs: Sequence[tuple[FileRef, Path, Future[bool]]]) -> None:
        for reference, path, job in jobs:
            try:
                job.set_result(is_as_recorded(path, reference, stop=self._stop.is_set))
            except OSError as error:
                job.set_exception(error)

    def checked(self) -> dict[str, tuple[int, int]]:
        """What is known of the files once all are hashed.

        Raises:
            RunError: One is not as it was recorded, or was written to meanwhile.
        """
        for reference, path, job in self._jobs:
            if not job.result() or _times(path) != self._known[reference.path]:
                raise _changed(path)
        return self._known

    def close(self) -> None:
        """Give up what is not finished."""
        self._stop.set()
        self._pool.shutdown()


_AT_ONCE = 4
"""Groups of files hashed at the same time: an edit reads three models or four."""


def _changed(path: Path) -> RunError:
    return RunError(
        f"{path} was changed after it was recorded (its digest differs); restore the original file"
    )
