"""Reading and writing files of a run folder: atomically, and checked by digest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import xxhash
from pydantic import BaseModel, ValidationError

from stagelens.compute import temporaries
from stagelens.contracts import RunError, StageLensError

from .schema import VERSION, FileRef, Versioned, canonical_json

Schema = TypeVar("Schema", bound=BaseModel)


_FULL = {f"{code})": code for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
"""Out of space (disk, quota or file size), keyed by what safetensors' messages end with."""


_LARGEST_JSON = 256 * 2**20
_BLOCK = 2**20


class Hashing:
    """Both digests of a file, of its bytes in order: sha256, and xxh3-128."""

    def __init__(self) -> None:
        self._sha256, self._xxh3, self._size = hashlib.sha256(), xxhash.xxh3_128(), 0

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes."""
        # Without the interpreter's lock, where they are many.
        self._sha256.update(data)
        self._xxh3.update(data)
        self._size += len(data)

    def reference(self, relative: str) -> FileRef:
        """What is known of the file, at its place in the run folder."""
        return FileRef(
            path=relative,
            sha256=self._sha256.hexdigest(),
            xxh3=self._xxh3.hexdigest(),
            bytes=self._size,
        )


def reference_of(path: Path, relative: str) -> FileRef:
    """The reference of a file that is being brought into a run folder; reads it once.

    Args:
        path: Where it is now.
        relative: Where it will be in the run folder, with forward slashes.
    """
    hashing = Hashing()
    _each_block(path, hashing.update)
    return hashing.reference(relative)


def is_as_recorded(
    path: Path, reference: FileRef, whole: bool = False, stop: Callable[[], bool] = lambda: False
) -> bool:
    """Whether a file has the bytes that were recorded, by its quickest digest.

    Args:
        path: The file.
        reference: What was recorded of it.
        whole: Whether sha256 has to agree too, where another digest is quicker.
        stop: Asked between blocks whether to give up; what is returned then means nothing.
    """
    quick = None if reference.xxh3 is None else xxhash.xxh3_128()
    slow = hashlib.sha256() if whole or quick is None else None
    used = [each for each in (quick, slow) if each is not None]

    def update(block: memoryview) -> None:
        for each in used:
            each.update(block)

    _each_block(path, update, stop)
    return (quick is None or quick.hexdigest() == reference.xxh3) and (
        slow is None or slow.hexdigest() == reference.sha256
    )


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, read in blocks."""
    hasher = hashlib.sha256()
    _each_block(path, hasher.update)
    return hasher.hexdigest()


def _each_block(
    path: Path, use: Callable[[memoryview], object], stop: Callable[[], bool] = lambda: False
) -> None:
    block = memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while (size := file.readinto(block)) and not stop():
            use(block[:size])


def read_only() -> bool:
    """Whether ``STAGELENS_READ_ONLY`` is set, for a dashboard that only shows."""
    return os.environ.get("STAGELENS_READ_ONLY", "") not in ("", "0")


def check_changeable(what: str) -> None:
    """Refuse a change where everything is only shown.

    Args:
        what: What would be changed, in the plural, for the message.

    Raises:
        RunError: ``STAGELENS_READ_ONLY`` is set.
    """
    if read_only():
        raise RunError(
            f"{what} cannot be changed here: this server is read-only (STAGELENS_READ_ONLY); copy "
            "the run folder and start a dashboard of your own for that"
        )


@contextmanager
def atomic_path(path: Path, *, sync_folder: bool = True) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed onto it after fsync if the block succeeds.

    A killed process leaves at most a ``.tmp`` file behind, which the next one deletes, and never a
    half-written ``path``; a block that fails, or a full disk, leaves nothing.

    Args:
        path: The file to write.
        sync_folder: Whether to sync the folder too; not needed if another file of the folder,
            which names this one, is written next.

    Raises:
        OSError: It cannot be written; names ``path``.
    """
    temporaries.sweep_once(path.parent)
    there = next(each for each in path.absolute().parents if each.exists())
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, as a rename is atomic on one file system only; random, as several may write it.
    temporary = path.with_name(temporaries.name(f".{path.name}", ".tmp"))
    try:
        yield temporary
        # Before the rename: after a power cut, the name must not lead to missing content.
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if sync_folder:
            _sync_folder(path.parent)
    except Exception as error:
        # Libraries' errors name no file, and safetensors has its own error, without an errno.
        code = getattr(error, "errno", None) or _FULL.get(str(error).rpartition("(os error ")[2])
        if code is None or getattr(error, "filename", None) is not None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
        if not path.exists():
            temporaries.remove_empty(path.absolute().parent, there)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path``, renamed to it if the block succeeds, else removed.

    Args:
        path: A folder that does not exist, or is empty.

    Raises:
        StageLensError: It is not empty (nothing is ever overwritten), or the server is read-only.
    """
    check_changeable("Folders")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StageLensError(f"{path} is not empty; choose another folder, or delete it first")
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporaries.folder(f".{path.name}", path.parent) as folder:
        # One level down: the temporary folder itself is private, and removed at the end.
        whole = Path(folder) / path.name
        whole.mkdir()
        yield whole
        os.replace(whole, path)  # fails if the empty folder was filled in the meantime
        _sync_folder(path.parent)


def check_writable(path: Path) -> None:
    """Check before long work that a file can be written when it ends; leaves nothing behind.

    Raises:
        RunError: It cannot be written; says why, and what to do.
    """
    folder = next(each for each in path.absolute().parents if each.exists())
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # Tried, because permissions alone do not show a read-only or full disk.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(cannot_write(path, error)) from None


def cannot_write(path: Path | str, error: OSError) -> str:
    """Why a file or folder cannot be written, and what to do about it."""
    why = error.strerror or str(error)
    if error.errno in _FULL.values():
        return f"{path} cannot be written ({why}); free some space, or choose another disk"
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return f"{path} cannot be written ({why}): something else is in its place; rename it"
    return f"{path} cannot be written ({why}); choose a folder that you may write to"


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(
    root: Path, relative: str, writer: Callable[[Path], object], *, sync_folder: bool = True
) -> FileRef:
    """Write one file of the run folder atomically.

    Args:
        root: The run folder.
        relative: Path inside it, with forward slashes.
        writer: Called with the temporary path to write to.
        sync_folder: See :func:`atomic_path`.

    Returns:
        The reference that goes into stage.json or set.json.
    """
    target = root / relative
    with atomic_path(target, sync_folder=sync_folder) as temporary:
        writer(temporary)
        # Hashed before the rename, so that nobody else can have replaced the file.
        reference = reference_of(temporary, relative)
    return reference


_CHECKSUM = "checksum"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """What a JSON file says, with a checksum over it: sha256, however the file is spaced."""
    said = {name: value for name, value in content.items() if name != _CHECKSUM}
    return {**said, _CHECKSUM: hashlib.sha256(canonical_json(said).encode()).hexdigest()}


def write_json(path: Path, value: BaseModel) -> str:
    """Write a schema object as indented JSON with a checksum, atomically.

    Returns:
        sha256 of the file's bytes.
    """
    if isinstance(value, Versioned):  # it may have been read from an older layout
        value = value.model_copy(update={"version": VERSION})
    content = sealed(json.loads(value.model_dump_json()))
    data = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_json(path: Path, schema: type[Schema], sha256: str | None = None) -> Schema:
    """Read and validate one JSON file of the run folder.

    Raises:
        RunError: It is missing, truncated, edited since it was written, of a newer version, or not
            what StageLens writes; names file and field.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise RunError(
                f"{path} is larger than 256 MB, so it is not a file that StageLens wrote"
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{path} is missing; restore it from where the run was recorded") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    changed = f"{path} was changed after it was written; restore the original file"
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise RunError(changed)
    try:
        content = json.loads(data)
        checksum = None
        if isinstance(content, dict) and not _newer(content):
            checksum = content.get(_CHECKSUM)
            if checksum is not None and content != sealed(content):
                raise RunError(changed)
            content.pop(_CHECKSUM, None)
        found = schema.model_validate_json(json.dumps(content))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: {_wrong(error)}") from None
    # Files of layout 1 have none; for a finished stage's file, run.json vouches.
    if checksum is None and sha256 is None and isinstance(found, Versioned) and found.version > 1:
        raise RunError(f"{path}: checksum: missing; restore the original file")
    return found


def is_sealed(path: Path) -> bool | None:
    """Whether a JSON file is as it was written; None for one of layout 1, which cannot tell."""
    try:
        content = json.loads(path.read_bytes())
        if _CHECKSUM in content:
            return bool(content == sealed(content))
        # The checksum stands last. One that fits is one, whatever its damaged name says.
        *said, (_, last) = content.items()
        return False if sealed(dict(said))[_CHECKSUM] == last else None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return False


def _newer(content: dict[str, Any]) -> bool:
    version = content.get("version")
    return isinstance(version, int) and version > VERSION


def _wrong(error: Exception) -> str:
    """What is wrong with a JSON file that could not be read."""
    if not isinstance(error, ValidationError):
        return f"Invalid JSON ({error}); this is not a file that StageLens wrote"
    # Errors come in the order of the fields, and `version` is the first of a newer file.
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "the file as a whole"
    if field == "version" and isinstance(first["input"], int) and first["input"] > VERSION:
        return (
            f"written by a newer StageLens (layout {first['input']}, this one reads {VERSION}); "
            "update StageLens to open it"
        )
    return f"{field}: {first['msg']}; this is not a file that StageLens wrote"
