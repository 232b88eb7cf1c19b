"""Runs on any file system that ``fsspec`` knows, through a local copy that fills as it is read.

Each copy has its own folder in the cache: ``run/`` is the run folder, ``origin.json`` says where
the run is and which files are there, ``fetched/`` holds a note for every file that was fetched.
Small files are fetched when the run is opened; weights, batches and evaluation sets when they are
first used, and are then checked against the sha256 in the recording. The cache is bounded: the
least recently used files make room, and are fetched again when needed. Results are written into
the copy, and :meth:`Origin.upload` brings them to where the run is.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stagelens.compute import temporaries
from stagelens.contracts import RunError, StageLensError

from .files import atomic_path, is_as_recorded, read_json, write_json
from .schema import FileRef, check_relative

SIZE = "20GB"
"""What the cache may hold if ``STAGELENS_CACHE_SIZE`` is not set."""

_WHEN_USED = re.compile(r"\.safetensors$|^sets/[^/]+/(?!set\.json$)")
"""Files that are fetched when they are used: the recording has the sha256 of each of them."""

_NEVER = re.compile(r"(^|/)\.|\.tmp$|^results/shards/")
"""Files that are still being written."""

_ADDED = ("results/", "findings/", "slices/", "scores/", "sets/")
"""Results, and what people add; both go back to where the run is."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)/")
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


class Entry(BaseModel):
    """A file where the run is.

    Attributes:
        bytes: Its size.
        stamp: Changes when the file is written again.
    """

    bytes: int
    stamp: str


class _Note(BaseModel):
    """A file as it was fetched, or brought to where the run is.

    Attributes:
        entry: The file there.
        modified: When the file here was modified, in nanoseconds; if that differs now, the file
            was written here since.
    """

    entry: Entry
    modified: int


class _Listing(BaseModel):
    url: str
    files: dict[str, Entry]


def is_remote(path: str | Path) -> bool:
    """Whether a run is named by an address such as ``s3://bucket/run``, not by a folder."""
    return "://" in str(path)


def cache_folder() -> Path:
    """Where the copies of runs are kept."""
    own = os.environ.get("STAGELENS_CACHE")
    if own:
        return Path(own).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(base) / "stagelens").expanduser().resolve()


def cache_size() -> int:
    """Bytes that the cache may hold.

    Raises:
        StageLensError: ``STAGELENS_CACHE_SIZE`` is not an amount of bytes.
    """
    text = (os.environ.get("STAGELENS_CACHE_SIZE") or SIZE).strip()
    amount = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT]B)", text, re.IGNORECASE)
    if amount is None:
        raise StageLensError(
            f"STAGELENS_CACHE_SIZE is {text!r}; give an amount such as 500MB or 20GB"
        )
    return int(float(amount[1]) * _UNITS[amount[2].upper()])


def copy_of(url: str) -> Path:
    """The local copy of a run, with its small files as they are now.

    Raises:
        RunError: The address cannot be read, or there is no run folder.
    """
    name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:24]
    folder = cache_folder() / name
    # Private: the run may be, whatever the umask is.
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _reading(url):
        files, root = _file_system(url)
        files.invalidate_cache()  # fsspec keeps listings, which may be older than the run
        found = files.find(root, detail=True)
    listed = {
        _relative(root, path, url): Entry(bytes=int(facts["size"] or 0), stamp=_stamp(facts))
        for path, facts in found.items()
    }
    if "run.json" not in listed:
        raise RunError(f"{url} is not a run folder (it has no run.json); check the address")
    write_json(folder / "origin.json", _Listing(url=url, files=listed))
    origin = Origin(folder / "run")
    origin.refresh()
    return origin.root


def _read_listing(root: Path) -> _Listing:
    return read_json(root.parent / "origin.json", _Listing)


@contextmanager
def local_folders(paths: Sequence[str | Path]) -> Iterator[list[Path]]:
    """Checkpoint folders; those elsewhere as copies, which are removed when the block ends.

    Of the folders ``checkpoint-N`` that a Trainer writes, only the last is fetched.

    Args:
        paths: Folders, or addresses of folders.

    Raises:
        RunError: An address cannot be read.
    """
    if not any(map(is_remote, paths)):
        yield [Path(path) for path in paths]
        return
    cache_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    with temporaries.folder("checkpoints", cache_folder()) as temporary:
        found = []
        for path in paths:
            if not is_remote(path):
                found.append(Path(path))
                continue
            # Folders of one name may lie in different places, and neighbours have to stay
            # neighbours: the order of training is checked by their numbers.
            above, _, name = str(path).rstrip("/").rpartition("/")
            folder = Path(temporary) / hashlib.sha256(above.encode()).hexdigest()[:8] / name
            with _reading(str(path)):
                _fetch_checkpoint(str(path), folder)
            found.append(folder)
        yield found


def _fetch_checkpoint(url: str, folder: Path) -> None:
    files, root = _file_system(url)
    names = {_relative(root, path, url): path for path in files.find(root)}
    if not names:
        raise RunError(f"{url} holds no files; give the folder of a saved model")
    steps = {int(m[1]) for name in names if (m := _CHECKPOINT.match(name))}
    for name, path in names.items():
        numbered = _CHECKPOINT.match(name)
        own = folder / name
        own.parent.mkdir(parents=True, exist_ok=True)  # also for earlier ones, which are then named
        if numbered is None or int(numbered[1]) == max(steps):
            files.get_file(path, str(own))


class Origin:
    """Where the local copy of a run comes from.

    Args:
        root: The copy, a run folder in the cache.

    Raises:
        RunError: What the cache says about it is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        listing = _read_listing(root)
        self.url, self.listed = listing.url, listing.files

    @classmethod
    def of(cls, root: Path) -> Origin | None:
        """The origin of a run folder; None if that is not a copy in the cache."""
        # Only below the cache: a folder from elsewhere must not make this process fetch anything.
        inside = root.name == "run" and root.parent.parent == cache_folder()
        return cls(root) if inside and (root.parent / "origin.json").is_file() else None

    def refresh(self) -> None:
        """Fetch small files that are new or changed there, and drop those that are gone."""
        for relative in [*self._notes()]:  # a list, because notes are removed on the way
            if relative not in self.listed and not self._changed_here(relative):
                self.drop(relative)
        for relative, entry in self.listed.items():
            note = self._note(relative)
            stale = note is None or note.entry != entry
            if _WHEN_USED.search(relative):
                if note is not None and stale:
                    self.drop(relative)
            elif stale and not _NEVER.search(relative) and not self._changed_here(relative):
                self._fetch(relative, entry)

    def bring(self, reference: FileRef) -> None:
        """Make sure that a recorded file is here; its sha256 is checked when it is fetched.

        Raises:
            RunError: It is not there, does not fit into the cache, or is not what was recorded.
        """
        path, note = self.root / reference.path, self._note_path(reference.path)
        if path.is_file() and path.stat().st_size == reference.bytes:
            if note.is_file():
                os.utime(note)  # a note's time is when its file was last used
            return
        entry = self.entry(reference.path)
        if entry is None:
            raise RunError(
                f"{self.url}/{reference.path} is missing; restore it from where the run was "
                "recorded"
            )
        self._fetch(reference.path, entry, reference)

    def entry(self, relative: str) -> Entry | None:
        """What is there of a file, or None."""
        if relative not in self.listed:
            self.listed = _read_listing(self.root).files  # it may have been uploaded since
        return self.listed.get(relative)

    def drop(self, relative: str) -> None:
        """Remove a fetched file from the copy."""
        (self.root / relative).unlink(missing_ok=True)
        self._note_path(relative).unlink(missing_ok=True)

    def _fetch(self, relative: str, entry: Entry, reference: FileRef | None = None) -> None:
        self._make_room(entry.bytes, relative)
        with _reading(self.url), atomic_path(self.root / relative, sync_folder=False) as temporary:
            files, root = _file_system(self.url)
            files.get_file(f"{root}/{relative}", str(temporary))
            # Whoever brings it from elsewhere brings what it is: by sha256 too.
            if reference is not None and not is_as_recorded(temporary, reference, whole=True):
                raise RunError(
                    f"{self.url}/{relative} was changed after it was recorded (its digest "
                    "differs); restore the original file"
                )
        self._write_note(relative, entry)

    def upload(self) -> list[str]:
        """Bring what was computed here to where the run is; return the paths of these files.

        Raises:
            RunError: Nothing can be written there.
        """
        every = (path.relative_to(self.root).as_posix() for path in sorted(self.root.rglob("*")))
        added = (name for name in every if name.startswith(_ADDED) and not _NEVER.search(name))
        fresh = [name for name in added if self._changed_here(name)]
        with _reading(self.url, "written"):
            files, root = _file_system(self.url)
            for relative in fresh:
                there = f"{root}/{relative}"
                files.makedirs(there.rpartition("/")[0], exist_ok=True)
                files.put_file(str(self.root / relative), there)
                files.invalidate_cache()  # else `info` may describe the file that was there before
                facts = files.info(there)
                entry = Entry(bytes=int(facts["size"] or 0), stamp=_stamp(facts))
                self._write_note(relative, entry)
                self.listed[relative] = entry
        write_json(self.root.parent / "origin.json", _Listing(url=self.url, files=self.listed))
        return fresh

    # Notes of what was fetched

    def _note_path(self, relative: str) -> Path:
        return self.root.parent / "fetched" / f"{relative}.json"

    def _note(self, relative: str) -> _Note | None:
        try:
            return read_json(self._note_path(relative), _Note)
        except RunError:
            return None  # as if never fetched: the file counts as written here, and is kept

    def _write_note(self, relative: str, entry: Entry) -> None:
        modified = (self.root / relative).stat().st_mtime_ns
        write_json(self._note_path(relative), _Note(entry=entry, modified=modified))

    def _notes(self) -> Iterator[str]:
        folder = self.root.parent / "fetched"
        for path in folder.rglob("*.json"):
            yield path.relative_to(folder).as_posix().removesuffix(".json")

    def _changed_here(self, relative: str) -> bool:
        """Whether a file was written here since it was fetched or uploaded, if it ever was."""
        path, note = self.root / relative, self._note(relative)
        return path.is_file() and (note is None or note.modified != path.stat().st_mtime_ns)

    def _make_room(self, size: int, relative: str) -> None:
        """Remove the least recently used files, of any run, until the cache can take ``size``."""
        most = cache_size()
        if size > most:
            raise RunError(
                f"{self.url}/{relative} has {size:,} bytes, but the cache may hold {most:,}; set "
                "STAGELENS_CACHE_SIZE to more"
            )
        held = sorted(_held(), key=itemgetter(0))
        total = sum(size for _, size, _, _ in held)
        for _, own, origin, name in held:
            if total + size <= most:
                return
            if _WHEN_USED.search(name):  # others are fetched only when a run is opened
                origin.drop(name)
                total -= own


def _held() -> Iterator[tuple[int, int, Origin, str]]:
    """Every file fetched into the cache: time of last use, size, origin, path."""
    for folder in cache_folder().glob("*/origin.json"):
        origin = Origin(folder.parent / "run")
        for name in origin._notes():
            try:
                used = origin._note_path(name).stat().st_mtime_ns
                yield used, (origin.root / name).stat().st_size, origin, name
            except FileNotFoundError:  # another process removed it
                continue


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path on it."""
    import fsspec

    files, root = fsspec.core.url_to_fs(url)
    return files, str(root).rstrip("/")


@contextmanager
def _reading(url: str, done: str = "read") -> Iterator[None]:
    """Turn whatever a file system raises into an error that names the address."""
    try:
        yield
    except StageLensError:
        raise
    except Exception as error:  # each file system has errors of its own libraries
        told = " ".join(str(error).split()) or "no reason is given"
        raise RunError(
            f"{url} cannot be {done} ({type(error).__name__}: {told}); check the address, and that "
            "you have access"
        ) from None


def _relative(root: str, path: str, url: str) -> str:
    try:  # the listing is foreign, and must not make a copy write outside its folder
        return check_relative(path[len(root) :].lstrip("/"))
    except ValueError as error:
        raise RunError(f"{url}: {error}; it is not opened") from None


def _stamp(facts: dict[str, Any]) -> str:
    """A stamp of a file, from what its file system says about it."""
    # All of it: file systems differ in whether they tell a time, a version or a checksum.
    told = {key: str(value) for key, value in sorted(facts.items())}
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]
