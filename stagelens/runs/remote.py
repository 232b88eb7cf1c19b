"""Runs on any file system that ``fsspec`` knows, through a local copy that fills as it is read.

The copy of a run stands in a folder of its own of the cache: ``run/`` is the run folder,
``origin.json`` says where the run is and what is there, ``fetched/`` holds a note for every file
that was fetched. Small files come when the run is opened; weights, batches and evaluation sets when
they are first used, and are checked then against the sha256 that the recording names. The cache is
bounded: what was not used for longest makes room, and is fetched again when it is used. What is
computed is written into the copy, and :meth:`Origin.upload` brings it to where the run is.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel, ValidationError

from stagelens.contracts import RunError, StageLensError

from .files import atomic_path, read_json, sha256_of, write_json
from .schema import FileRef, check_relative

SIZE = "20GB"
"""What the cache may hold where ``STAGELENS_CACHE_SIZE`` says nothing."""

_WHEN_USED = re.compile(r"\.safetensors$|^sets/[^/]+/(?!set\.json$)")
"""Files that come when they are used: all of them are named with their sha256."""

_NEVER = re.compile(r"(^|/)\.|\.tmp$|^results/shards/")
"""Files that are under way."""

_ADDED = ("results/", "findings/", "slices/", "sets/")
"""What is computed, or added by people, and goes back to where the run is."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)/")
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


class Entry(BaseModel):
    """A file where the run is.

    Attributes:
        bytes: Its size.
        stamp: Changes when it is written again.
    """

    bytes: int
    stamp: str


class _Note(BaseModel):
    """What was fetched of a file, or brought to where the run is.

    Attributes:
        entry: The file there.
        modified: Of the file here then, in nanoseconds; another one was written since.
    """

    entry: Entry
    modified: int


class _Listing(BaseModel):
    url: str
    files: dict[str, Entry]


def is_remote(path: str | Path) -> bool:
    """Whether a run is named by an address, as ``s3://bucket/run``, and not by a folder."""
    return "://" in str(path)


def cache_folder() -> Path:
    """Where the copies of runs stand."""
    own = os.environ.get("STAGELENS_CACHE")
    if own:
        return Path(own).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(base) / "stagelens").expanduser().resolve()


def cache_size() -> int:
    """Bytes that the cache may hold.

    Raises:
        StageLensError: ``STAGELENS_CACHE_SIZE`` is no such amount.
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
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _reading(url):
        files, root = _file_system(url)
        files.invalidate_cache()
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
    """Checkpoint folders; of those elsewhere copies, which go when the block ends.

    Of the folders ``checkpoint-N`` that a Trainer writes only the last one is fetched whole.

    Args:
        paths: Folders, or addresses of folders.

    Raises:
        RunError: An address cannot be read.
    """
    if not any(map(is_remote, paths)):
        yield [Path(path) for path in paths]
        return
    cache_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    with TemporaryDirectory(prefix="checkpoints-", dir=cache_folder()) as temporary:
        found = []
        for path in paths:
            if not is_remote(path):
                found.append(Path(path))
                continue
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
        own.parent.mkdir(parents=True, exist_ok=True)
        if numbered is None or int(numbered[1]) == max(steps):
            files.get_file(path, str(own))


class Origin:
    """Where the local copy of a run comes from.

    Args:
        root: The copy, a run folder in the cache.

    Raises:
        RunError: What the cache says of it is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        listing = _read_listing(root)
        self.url, self.listed = listing.url, listing.files

    @classmethod
    def of(cls, root: Path) -> Origin | None:
        """That of a run folder; None where it is no copy in the cache."""
        inside = root.name == "run" and root.parent.parent == cache_folder()
        return cls(root) if inside and (root.parent / "origin.json").is_file() else None

    def refresh(self) -> None:
        """Fetch small files that are new or changed there, and drop those that are gone."""
        for relative in [*self._notes()]:
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
        """See to it that a recorded file is here; its sha256 is checked when it is fetched.

        Raises:
            RunError: It is not there, does not fit into the cache, or is not what was recorded.
        """
        path, note = self.root / reference.path, self._note_path(reference.path)
        if path.is_file() and path.stat().st_size == reference.bytes:
            if note.is_file():
                os.utime(note)  # it was used now
            return
        entry = self.entry(reference.path)
        if entry is None:
            raise RunError(
                f"{self.url}/{reference.path} is missing; restore it from where the run was "
                "recorded"
            )
        self._fetch(reference.path, entry, reference.sha256)

    def entry(self, relative: str) -> Entry | None:
        """What is there of a file; None where there is none."""
        if relative not in self.listed:
            self.listed = _read_listing(self.root).files  # it was uploaded since, perhaps
        return self.listed.get(relative)

    def drop(self, relative: str) -> None:
        """Remove a fetched file from the copy."""
        (self.root / relative).unlink(missing_ok=True)
        self._note_path(relative).unlink(missing_ok=True)

    def _fetch(self, relative: str, entry: Entry, sha256: str | None = None) -> None:
        self._make_room(entry.bytes, relative)
        with _reading(self.url), atomic_path(self.root / relative, sync_folder=False) as temporary:
            files, root = _file_system(self.url)
            files.get_file(f"{root}/{relative}", str(temporary))
            if sha256 is not None and sha256_of(temporary) != sha256:
                raise RunError(
                    f"{self.url}/{relative} was changed after it was recorded (its sha256 "
                    "differs); restore the original file"
                )
        self._write_note(relative, entry)

    def upload(self) -> list[str]:
        """Bring what was computed here to where the run is; returns the paths of these files.

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
                files.invalidate_cache()
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
            return _Note.model_validate_json(self._note_path(relative).read_bytes())
        except (OSError, ValidationError):
            return None

    def _write_note(self, relative: str, entry: Entry) -> None:
        modified = (self.root / relative).stat().st_mtime_ns
        write_json(self._note_path(relative), _Note(entry=entry, modified=modified))

    def _notes(self) -> Iterator[str]:
        folder = self.root.parent / "fetched"
        for path in folder.rglob("*.json"):
            yield path.relative_to(folder).as_posix().removesuffix(".json")

    def _changed_here(self, relative: str) -> bool:
        """Whether a file was written here since it was fetched or uploaded, or never was."""
        path, note = self.root / relative, self._note(relative)
        return path.is_file() and (note is None or note.modified != path.stat().st_mtime_ns)

    def _make_room(self, size: int, relative: str) -> None:
        """Remove what was not used for longest, of any run, until the cache can take ``size``."""
        most = cache_size()
        if size > most:
            raise RunError(
                f"{self.url}/{relative} has {size:,} bytes, but the cache may hold {most:,}; set "
                "STAGELENS_CACHE_SIZE to more"
            )
        held = sorted(_held())
        total = sum(size for _, size, _, _ in held)
        for _, own, origin, name in held:
            if total + size <= most:
                return
            if _WHEN_USED.search(name):
                origin.drop(name)
                total -= own


def _held() -> Iterator[tuple[int, int, Origin, str]]:
    """What was fetched into the cache: when it was used last, its size, whose it is, its path."""
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
    """Whatever a file system raises, as an error that names the address."""
    try:
        yield
    except StageLensError:
        raise
    except Exception as error:  # of any library that a file system is made of
        told = " ".join(str(error).split()) or "no reason is given"
        raise RunError(
            f"{url} cannot be {done} ({type(error).__name__}: {told}); check the address, and that "
            "you have access"
        ) from None


def _relative(root: str, path: str, url: str) -> str:
    try:
        return check_relative(path[len(root) :].lstrip("/"))
    except ValueError as error:
        raise RunError(f"{url}: {error}; it is not opened") from None


def _stamp(facts: dict[str, Any]) -> str:
    """Of a file, from what its file system says of it."""
    told = {key: str(value) for key, value in sorted(facts.items())}
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]
