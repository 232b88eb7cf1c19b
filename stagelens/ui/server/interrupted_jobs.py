"""What was running when a server ended, reported by the next one.

While a child runs, ``.jobs/<key>.json`` below the home says what it is and which server started it.
Once that server is gone, its child is ended if it still runs, and the pages say what was cut short.
Nothing in a record is ever run; pages offer the work again by themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from . import settings
from .child import Job

FOLDER = ".jobs"
_MOST = 20
# The temporary names of ``child.Job``: a forged record must not get any other folder deleted.
_UNFINISHED = re.compile(r"\.[^/]+-[0-9a-f]{8}")


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
        return cls(pid=pid, born=_born(pid))

    @property
    def alive(self) -> bool:
        """Whether it is still running."""
        if self.born is not None:
            return _born(self.pid) == self.born
        try:
            # Signal 0 only asks whether the process exists.
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # it exists, but belongs to another user
        return True


def _born(pid: int) -> int | None:
    try:
        # The program name, in brackets, may itself hold brackets and spaces: split behind it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19])  # starttime, field 22 in proc(5), counted from field 3 here
    except (OSError, ValueError, IndexError):
        return None


class Record(BaseModel):
    """What is written of a running child.

    Attributes:
        title: What it is, in words for people.
        server: The server's process.
        child: The child's; it leads a process group.
        unfinished: Name of the hidden folder below the home that it was making; None without one.
    """

    model_config = ConfigDict(extra="forbid")

    title: str = Field(max_length=500)
    server: Process
    child: Process
    unfinished: str | None = None

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
    unfinished = job.unfinished
    # Only a name is kept, never a path that could lead out of the home.
    below = unfinished is not None and unfinished.parent.resolve() == settings.home()
    path = _path(job)
    with contextlib.suppress(OSError, ValidationError):
        record = Record(
            title=job.title[:500],
            server=Process.of(os.getpid()),
            child=Process.of(job.pid),
            unfinished=unfinished.name if below and unfinished is not None else None,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when complete: another server deletes a record that it cannot parse.
        temporary = path.with_suffix(".tmp")
        temporary.write_text(record.model_dump_json())
        os.replace(temporary, path)


def forget(job: Job) -> None:
    """Drop the record of a job that is over; the folder goes with the last record."""
    path = _path(job)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()  # fails, as it should, while other records are in it


def found() -> list[Left]:
    """What servers that are gone left unfinished; what still runs of it is ended first."""
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
        if record.server.alive:
            continue
        _end(record)
        left.append(Left(record.title, path))
    return left


def _end(record: Record) -> None:
    child = record.child
    # Without a time of birth, the number might be that of a newer process of somebody else.
    if child.born is not None and child.alive:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGTERM)
    name = record.unfinished
    if name is not None and _UNFINISHED.fullmatch(name):
        folder = settings.home() / name
        if not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
