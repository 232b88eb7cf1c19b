"""Files of a run folder, checked against the digests that the recording names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stagelens.contracts import RunError

from .files import sha256_of
from .remote import Origin
from .schema import FileRef


def _times(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


class CheckedFiles:
    """Files of one run folder, checked against their references once, when first used.

    Where the folder is the copy of a run elsewhere, files are fetched when they are used.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._checked: dict[str, tuple[int, int]] = {}
        self._origin: Origin | None = None
        if (self.root.parent / "origin.json").is_file():
            self._origin = Origin.of(self.root)

    def path(self, reference: FileRef) -> Path:
        """The file's path, after its size and sha256 were found to be as recorded.

        Raises:
            RunError: Missing, outside the run folder, truncated or edited; names the file.
        """
        path = self.present(reference)
        if self._checked.get(reference.path) != _times(path):
            found = sha256_of(path)
            if self._origin is not None and found != reference.sha256:  # the copy was damaged
                self._origin.drop(reference.path)
                found = sha256_of(self.present(reference))
            if found != reference.sha256:
                raise RunError(
                    f"{path} was changed after it was recorded (its sha256 differs); restore the "
                    "original file"
                )
            self._checked[reference.path] = _times(path)
        return path

    def paths(self, references: Sequence[FileRef]) -> list[Path]:
        """As :meth:`path` of several files, in order, on all cores: a digest is slower than a disk.

        Raises:
            RunError: Of one of them.
        """
        for reference in references:
            self.present(reference)  # one after another where they have to be fetched
        with ThreadPoolExecutor(min(len(references), os.cpu_count() or 1)) as pool:
            return list(pool.map(self.path, references))

    def listed(self, reference: FileRef) -> None:
        """Look at a file's size only, without fetching it; cheap enough for opening a run.

        Raises:
            RunError: Missing, outside the run folder, or truncated.
        """
        entry = self._origin.entry(reference.path) if self._origin is not None else None
        if entry is None or entry.bytes != reference.bytes:
            self.present(reference)

    def present(self, reference: FileRef) -> Path:
        """The file's path, after a look at its size only."""
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
        """The path of a file or folder that may be there, once links on the way are followed.

        Raises:
            RunError: It leads out of the run folder.
        """
        path = self.root / relative
        try:
            inside = path.resolve().is_relative_to(self.root)
        except (OSError, ValueError) as error:  # a loop of links, or a character of no path
            raise RunError(f"{path} cannot be opened ({error}); restore the run folder") from None
        if not inside:
            raise RunError(f"{path} leads out of the run folder; it is not opened")
        return path
