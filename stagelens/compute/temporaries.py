"""Temporary files and folders whose names say which process made them.

A process that is killed cannot remove them. Whoever comes next can: :func:`sweep` deletes those
whose process is gone, and no other file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

_NAME = re.compile(r".+-of-([0-9a-f]{8})-([1-9]\d{0,9})-(\d{1,20})-[a-z0-9_]{8}(\.tmp)?")
"""Where its process runs, its number and its time of birth, and random characters."""

ABANDONED = 7 * 24 * 3600.0
"""Seconds without a change after which what a process of another host left is deleted too. It may
have been one of this host, in a container or before a restart; nobody can tell."""


def born(pid: int) -> int | None:
    """When a process started, in kernel clock ticks since boot; None if it is gone or not known."""
    try:
        # The program name, in brackets, may itself hold brackets and spaces: split behind it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # State, field 3 in proc(5): a zombie does nothing any more. Start time, field 22.
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def alive(pid: int, start: int | None) -> bool:
    """Whether a process of this host still runs.

    Args:
        pid: Its number.
        start: As :func:`born` gave it, which tells it from a later one with its number.
    """
    if start is not None:
        return born(pid) == start
    if os.name != "posix":
        return True  # elsewhere, asking with a signal would end it
    try:
        # Signal 0 only asks whether the process exists.
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it exists, but belongs to another user
    return True


@functools.cache
def _host() -> str:
    """Eight characters for all processes whose numbers this one can look up."""
    try:
        # Containers of one machine have processes of the same numbers.
        seen = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink(
            "/proc/self/ns/pid"
        )
    except OSError:
        seen = f"{platform.node()} {uuid.getnode()}"
    return f"{zlib.crc32(seen.encode()):08x}"


def _owned(prefix: str) -> str:
    # Not cached: a forked process is another owner.
    pid = os.getpid()
    return f"{prefix}-of-{_host()}-{pid}-{born(pid) or 0}-"


def name(prefix: str, suffix: str = "") -> str:
    """A new name for a temporary file or folder of this process.

    Args:
        prefix: What it begins with.
        suffix: ``.tmp`` for a file.
    """
    return f"{_owned(prefix)}{secrets.token_hex(4)}{suffix}"


def folder(prefix: str, parent: Path | None = None) -> TemporaryDirectory[str]:
    """A private temporary folder, removed when its ``with`` block ends.

    Args:
        prefix: What its name begins with.
        parent: Where it is made; None for where the system keeps temporary files.
    """
    where = Path(tempfile.gettempdir()) if parent is None else parent
    sweep_once(where)
    return TemporaryDirectory(prefix=_owned(prefix), dir=where, ignore_cleanup_errors=True)


def sweep(where: Path) -> bool:
    """Delete what processes that are gone left directly in a folder; returns whether any did."""
    try:
        with os.scandir(where) as entries:
            found = [entry for entry in entries if _left_behind(entry)]
    except OSError:  # not there, or not ours to read
        return False
    _delete(found)
    return bool(found)


def sweep_below(where: Path) -> None:
    """As :func:`sweep`, in all folders below one too; folders that held nothing else go as well."""
    for at, folders, _ in os.walk(where):
        # What is still being made is its own process's affair.
        folders[:] = [each for each in folders if _NAME.fullmatch(each) is None]
        if sweep(Path(at)):
            remove_empty(Path(at), where)


def remove_empty(at: Path, below: Path) -> None:
    """Delete a folder and those that it lies in, as long as they are empty and below another."""
    with contextlib.suppress(OSError):  # the first that is not empty
        while at != below:
            at.rmdir()
            at = at.parent


_swept: set[Path] = set()


def sweep_once(where: Path) -> None:
    """:func:`sweep`, the first time that this process writes there."""
    where = where.absolute()
    if where not in _swept:
        _swept.add(where)
        sweep(where)


def _left_behind(entry: os.DirEntry[str]) -> bool:
    owner = _NAME.fullmatch(entry.name)
    if owner is None:
        return False
    try:
        # Names can be made up; where others write too, what they own is theirs.
        if os.name == "posix" and entry.stat(follow_symlinks=False).st_uid != os.geteuid():
            return False
        if owner[1] == _host():
            return not alive(int(owner[2]), int(owner[3]) or None)
        return time.time() - _last_change(entry) > ABANDONED
    except OSError:  # it is gone already
        return False


def _last_change(entry: os.DirEntry[str]) -> float:
    last = entry.stat(follow_symlinks=False).st_mtime
    for at, folders, files in os.walk(entry.path):
        last = max(
            last, *(os.lstat(os.path.join(at, each)).st_mtime for each in folders + files), 0
        )
    return last


def _delete(entries: Iterable[os.DirEntry[str]]) -> None:
    for entry in entries:
        # Another process may be sweeping here too.
        with contextlib.suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
