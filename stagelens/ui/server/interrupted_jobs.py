"""What was running when a server ended, reported by the next one.

While a child runs, ``.jobs/<key>.json`` below the home says what it is and which server started it.
Once that server is gone, its child is ended if it still runs, what both left half-made is deleted,
and the pages say what was cut short. Nothing in a record is ever run; pages offer the work again by
themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stagelens.compute import temporaries

from . import settings
from .child import Job

FOLDER = ".jobs"
_MOST = 20
_GRACE = 5.0
"""Seconds that a child has to put its files in order once it is told to end."""


class Process(BaseModel):
    """A process, distinguished from a later one with the same number.

    Attributes:
        pid: Its number.
        born: When it started, in kernel clock ticks since boot; None where unknown.
    """

    model_config = ConfigDict(extra="forbid")

    # 0 and -1 would signal our own group or every process. A container's server is process 1.
    pid: int = Field(gt=0)
    born: int | None = None

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this number now."""
        return cls(pid=pid, born=temporaries.born(pid))

    @property
    def alive(self) -> bool:
        """Whether it is still running."""
        return temporaries.alive(self.pid, self.born)


class Record(BaseModel):
    """What is written of a running child.

    Attributes:
        title: What it is, in words for people.
        server: The server's process.
        child: The child's; it leads a process group.
        folders: Run folders that it writes to.
    """

    title: str = Field(max_length=500)
    server: Process
    child: Process
    folders: list[str] = []

    @field_validator("child")
    @classmethod
    def _is_no_first_process(cls, child: Process) -> Process:
        # Its group would be ended, and that of process 1 is the container.
        if child.pid == 1:
            raise ValueError("process 1 is no child of a server")
        return child


@dataclass(frozen=True)
class Left:
    """Work that a server's end cut short.

    Attributes:
        title: What it was, in words for people.
        path: Its record; deleted when somebody has seen it.
    """

    title: str
    path: Path

    def dismiss(self) -> None:
        """Forget it."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def _path(job: Job) -> Path:
    # With the server in the key: two servers that share a home may run the same command.
    key = hashlib.sha256("\0".join((str(os.getpid()), *job.command)).encode()).hexdigest()[:24]
    return settings.home() / FOLDER / f"{key}.json"


def note(job: Job) -> None:
    """Record that a job runs. Where the record cannot be written, the job runs all the same."""
    if job.pid is None:
        return
    path = _path(job)
    with contextlib.suppress(OSError, ValidationError):
        record = Record(
            title=job.title[:500],
            server=Process.of(os.getpid()),
            child=Process.of(job.pid),
            folders=[str(folder) for folder in job.folders],
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when complete: another server deletes a record that it cannot parse.
        temporary = path.with_name(temporaries.name(f".{path.stem}", ".tmp"))
        temporary.write_text(record.model_dump_json())
        os.replace(temporary, path)


def forget(job: Job) -> None:
    """Drop the record of a job that is over; the folder goes with the last record."""
    path = _path(job)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()  # fails, as it should, while other records are in it


_seen: set[Path] = set()


def found() -> list[Left]:
    """What servers that are gone left unfinished; what is new among it is cleaned up meanwhile."""
    left = _left()
    if new := {path for path, _ in left} - _seen:
        _seen.update(new)
        threading.Thread(target=clean_up, name="stagelens-clean-up", daemon=True).start()
    return [Left(record.title, path) for path, record in left]


def _left() -> list[tuple[Path, Record]]:
    try:
        paths = sorted((settings.home() / FOLDER).glob("*.json"))[:_MOST]
    except OSError:
        return []
    left = []
    for path in paths:
        try:
            record = Record.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            Left("", path).dismiss()
            continue
        if not record.server.alive:
            left.append((path, record))
    return left


def clean_up() -> None:
    """End what servers that are gone left running, and delete what it left half-made.

    Takes as long as children need to end. A server does it when it starts, and when another one of
    the same home has ended.
    """
    if settings.read_only():
        return
    left = [record for _, record in _left()]
    children = [record.child for record in left if record.child.born is not None]
    for number in (signal.SIGTERM, signal.SIGKILL):
        children = [child for child in children if child.alive]
        for child in children:
            with contextlib.suppress(OSError):
                os.killpg(child.pid, number)
        until = time.monotonic() + _GRACE
        while any(child.alive for child in children) and time.monotonic() < until:
            time.sleep(0.05)
    # Only what processes that are gone made is ever deleted, so a forged record deletes nothing.
    temporaries.sweep(Path(tempfile.gettempdir()))
    temporaries.sweep_below(settings.home())
    for folder in {Path(folder) for record in left for folder in record.folders}:
        if any(folder.resolve().is_relative_to(root) for root in settings.roots()):
            temporaries.sweep_below(folder)
