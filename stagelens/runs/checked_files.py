"""Files of a run folder, checked against the digests that the recording names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stagelens.contracts import RunError

from .files import sha256_of
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
        self._origin: Origin | None = None
        if (self.root.parent / "origin.json").is_file():
            self._origin = Origin.of(self.root)

    @property
    def is_copy(self) -> bool:
        """Whether the run lies elsewhere, and its files are fetched when they are used."""
        return self._origin is not None

    def path(self, reference: FileRef) -> Path:
        """The file's path, once its size and sha256 are found to be as recorded.

        Raises:
            RunError: Missing, outside the run folder, truncated or edited; names the file.
        """
        path = self.present(reference)
        if self._checked.get(reference.path) != _times(path):
            found = sha256_of(path)
            # The copy in the cache may be what was damaged: fetch it again before refusing the run.
            if self._origin is not None and found != reference.sha256:
                self._origin.drop(reference.path)
                found = sha256_of(self.present(reference))
            if found != reference.sha256:
                raise RunError(
                    f"{path} was changed after it was recorded (its sha256 differs); restore the "
                    "original file"
                )
            self._checked[reference.path] = _times(path)
        return path

    def paths(self, references: Sequence[FileRef]) -> Iterator[Path]:
        """As :meth:`path` for several files, in order; local ones are hashed on all cores.

        Use each before asking for the next: the cache of a remote run may be too small for all.

        Raises:
            RunError: As there, for one of the files.
        """
        if self._origin is not None:
            yield from map(self.path, references)
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
