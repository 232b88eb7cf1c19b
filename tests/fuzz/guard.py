"""What reading must never do: start a process, use a network, unpickle, or write elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "socket.getaddrinfo",
    "pickle.find_class",
    "shutil.rmtree",
    "ctypes.dlopen",
)
_CHANGING = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink"}
_allowed: Path | None = None
_installed = False


class Escape(BaseException):
    """Reading did something that it must not; no ``except Exception`` hides it."""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _allowed is None:
        return
    if event in _FORBIDDEN:
        raise Escape(f"{event} {arguments!r}")
    if event == "open" and isinstance(arguments[2], int):
        path, _, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not _inside(path):
            raise Escape(f"opened for writing: {path!r}")
    elif event in _CHANGING and not all(_inside(each) for each in arguments[:1]):
        raise Escape(f"{event} {arguments!r}")


def _inside(path: Any) -> bool:
    if isinstance(path, int):
        return True
    assert _allowed is not None
    found = Path(os.fsdecode(path))
    return found == Path(os.devnull) or found.absolute().is_relative_to(_allowed)


@contextmanager
def only_below(folder: Path) -> Iterator[None]:
    """While it runs, everything that Python does is watched; writing is allowed below a folder."""
    global _allowed, _installed
    if not _installed:
        sys.addaudithook(_hook)  # stays for good, and does nothing outside of this block
        _installed = True
    _allowed = folder
    try:
        yield
    finally:
        _allowed = None
