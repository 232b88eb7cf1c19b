"""One child process: the command line that a person would type, watched and, if asked, cancelled.

Progress arrives through a file that the child replaces atomically (hidden option ``--progress
FILE``): ``{"done": 0.0..1.0, "text": "...", "state": "running"|"done"|"failed", "error":
null|"...", "marks": [[seconds on the monotonic clock, share done], ...]}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from stagelens.compute import cores, remaining, temporaries

State = Literal["waiting", "running", "done", "failed", "cancelled"]

_TAIL = 4000
# The child must find the same StageLens, even in a checkout that is not installed.
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[3])
# One of these is read by whichever library does the arithmetic: OpenMP, MKL or OpenBLAS.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Limits:
    """What one child may take.

    Attributes:
        memory: Bytes of its own data (memory-mapped files do not count); None for no limit.
        threads: For arithmetic; None leaves the choice to the libraries.
    """

    memory: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Status:
    """A job at one moment.

    Attributes:
        state: Whether it waits or runs, or how it ended.
        done: 0..1.
        text: What it is doing, in words for people.
        error: One line; None unless it failed.
        seconds: Wall time since its launch, up to now or to its end.
        left: Seconds left if it continues as of late; None while too little is done to say.
    """

    state: State
    done: float
    text: str
    error: str | None
    seconds: float
    left: float | None = None

    @property
    def waiting(self) -> bool:
        """Whether it waits for its turn."""
        return self.state == "waiting"

    @property
    def starting(self) -> bool:
        """Whether it still loads what it needs, so that nothing tells how far it is."""
        return self.state == "running" and self.done == 0


class Job:
    """One child process. It waits until :meth:`launch`; watch it with :meth:`status`.

    Args:
        command: What is run. Never a shell.
        title: What it is, in words for people.
        out: A folder that the command makes with ``--out``. It is made under a temporary name and
            renamed once it is complete.
        ended: Called once, from a thread of its own, when the job is over.
        folders: What else the command writes to; what it leaves there when it is killed is deleted.
        asked_by: The session that asked for it first.
        environment: Variables that it has besides those of this process.
    """

    def __init__(
        self,
        command: tuple[str, ...],
        title: str,
        out: Path | None = None,
        ended: Callable[[Job], None] | None = None,
        folders: Sequence[Path] = (),
        asked_by: str = "",
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.title = title
        self.asked_by = asked_by
        self.folders = tuple(folders)
        self._out = out
        self.unfinished: Path | None = None
        if out is not None:
            self._there = next(each for each in out.absolute().parents if each.exists())
            # In the same folder, so that the rename stays on one file system and is atomic.
            self.unfinished = out.with_name(temporaries.name(f".{out.name}"))
            command = (*command, "--out", str(self.unfinished))
        self.command = command
        self._environment = dict(environment)
        self._notify = ended
        self._failed: str | None = None
        self._folder = temporaries.folder("stagelens-job")
        self._progress = Path(self._folder.name) / "progress.json"
        self._log = Path(self._folder.name) / "log.txt"
        self._started: float | None = None
        self._ended: float | None = None
        self._cancelled = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: threading.Thread | None = None
        self.limits = Limits()

    def launch(self, limits: Limits) -> None:
        """Start the child, unless the job was cancelled while it waited."""
        with self._lock:
            if self._started is not None or self._ended is not None:
                return
            self.limits = limits
            # Monotonic: a wall clock that is set back would make durations negative.
            self._started = time.monotonic()
            try:
                if self._out is not None:
                    self._out.parent.mkdir(parents=True, exist_ok=True)
                self._process = self._spawn()
            except OSError as error:  # out of memory or of processes
                self._failed = f"the process could not be started ({error.strerror})"
                self._ended = self._started
            else:
                # wait() in a thread of its own reaps the child the moment it ends: no zombie is
                # left, whether or not a page is looking. With the lock, as cancel() waits for it.
                self._reaper = threading.Thread(
                    target=self._reap, args=(self._process,), name="stagelens-job", daemon=True
                )
                self._reaper.start()
        if self._process is None:
            self._over()

    def _spawn(self) -> subprocess.Popen[bytes]:
        paths = [_PACKAGE_PARENT, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            **self._environment,
            "PYTHONPATH": os.pathsep.join(paths),
            # The end of the log explains a failure; a killed child would lose what is buffered.
            "PYTHONUNBUFFERED": "1",
        }
        if self.limits.threads is not None:
            limited = (*_THREADS, cores.LIMIT)
            environment |= dict.fromkeys(limited, str(self.limits.threads))
        with open(self._log, "wb") as log:
            process = subprocess.Popen(
                [*self.command, "--progress", str(self._progress)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # The child leads a process group, so that its own workers can be ended with it.
                start_new_session=True,
            )
        if self.limits.memory is not None and sys.platform == "linux":
            # The module exists on Unix only.
            import resource

            # From outside: in a threaded server no Python code may run between fork and exec.
            # RLIMIT_DATA, because RLIMIT_AS would also count weights that are mapped from files.
            # A child that is over already needs no limit.
            with contextlib.suppress(ProcessLookupError):
                limit = (self.limits.memory, self.limits.memory)
                resource.prlimit(process.pid, resource.RLIMIT_DATA, limit)
        return process

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        if hasattr(os, "waitid"):
            # While it is not reaped yet, no other group of processes can have its number.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started, and left running
        code = process.wait()
        # With the lock: whoever cancels either comes before this, and finds nothing in its place
        # afterwards, or is told that it is over.
        with self._lock:
            if self._out is not None and self.unfinished is not None:
                try:
                    if code == 0 and not self._cancelled:
                        os.replace(self.unfinished, self._out)
                except OSError as error:
                    self._failed = (
                        f"{self._out} cannot be written ({error.strerror}); delete or rename it"
                    )
                shutil.rmtree(self.unfinished, ignore_errors=True)
                temporaries.sweep(self._out.parent)
                temporaries.remove_empty(self._out.parent, self._there)
            for folder in self.folders:
                temporaries.sweep_below(folder)
            # Last: from here on pages read the result, which must be in its place.
            self._ended = time.monotonic()
        self._over()

    def _over(self) -> None:
        if self._notify is not None:
            self._notify(self)

    @property
    def running(self) -> bool:
        """Whether it is not over yet: the child runs, or the job waits for its turn."""
        return self._ended is None

    @property
    def waiting(self) -> bool:
        """Whether it has not been launched yet."""
        return self.running and self._started is None

    @property
    def pid(self) -> int | None:
        """Process id of the child, which leads a process group; None before the launch."""
        return None if self._process is None else self._process.pid

    def status(self) -> Status:
        """The state of the job now. Reads one small file; never blocks."""
        over = not self.running  # read before the file, so that the final report isn't missed
        report = self._report()
        now = self._ended or time.monotonic()
        seconds = now - (self._started if self._started is not None else now)
        done = min(max(_number(report.get("done")), 0.0), 1.0)
        text = str(report.get("text") or "Starting")
        if not over and self._started is None:
            return Status("waiting", 0.0, "Waiting for other jobs to finish", None, 0.0)
        if not over:
            left = remaining.seconds_left(self._marks(report), now, done)
            return Status("running", done, text, None, seconds, left)
        if self._cancelled:
            return Status("cancelled", done, "Cancelled", None, seconds)
        if self._failed:
            return Status("failed", done, text, self._failed, seconds)
        code = None if self._process is None else self._process.returncode
        if code == 0 and report.get("state") != "failed":
            return Status("done", 1.0, "Done", None, seconds)
        return Status("failed", done, text, self._error(report, code), seconds)

    def _error(self, report: dict[str, object], code: int | None) -> str:
        # First: neither the report nor the log of a killed process says that it was killed.
        if code == -signal.SIGKILL:
            return (
                "the process was killed from outside, most often because the machine ran out of "
                "memory; what was finished before is kept. Try again when less is running, or on a "
                "machine with more memory"
            )
        if report.get("error"):
            return str(report["error"])
        lines = [line for line in self.log().splitlines() if line.strip()]
        if lines:
            return lines[-1].strip().removeprefix("stagelens: ")
        how = f"was stopped by signal {-code}" if code and code < 0 else f"ended with status {code}"
        return f"the process {how} without a message"

    def _report(self) -> dict[str, object]:
        try:
            report = json.loads(self._progress.read_text())
        # Not written yet, or damaged: no progress to show, but no reason to fail the job.
        except (OSError, ValueError):
            return {}
        return report if isinstance(report, dict) else {}

    def _marks(self, report: dict[str, object]) -> list[remaining.Mark]:
        """How far it was when; empty where the child's clock is not ours."""
        found = report.get("marks")
        try:
            marks = [(float(at), float(done)) for at, done in found]  # type: ignore[attr-defined]
        except (TypeError, ValueError):
            return []
        launched = self._started or 0.0
        known = all(launched <= at <= time.monotonic() for at, _ in marks)
        return marks if known and marks == sorted(marks) else []

    def log(self) -> str:
        """The end of what the child printed."""
        try:
            with open(self._log, "rb") as file:
                file.seek(max(self._log.stat().st_size - _TAIL, 0))
                # The first bytes may be the rest of a character that the seek cut in two.
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def cancel(self, grace: float = 5.0) -> None:
        """End the child and everything it started; returns when it is gone."""
        with self._lock:
            if not self.running:
                return
            self._cancelled = True
            waited = self._started is None
            if waited:
                self._ended = time.monotonic()
        if waited:
            self._over()
            return
        # SIGTERM first, so that the command can remove its unfinished files.
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            if self._reaper is not None:
                self._reaper.join(grace)

    def _signal(self, number: signal.Signals) -> None:
        if not self.running or self._process is None:
            return
        # It may have ended since the check above.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                # The group, because a replay on several processes has workers of its own.
                os.killpg(self._process.pid, number)
            else:
                self._process.kill()

    def dispose(self) -> None:
        """Remove the job's files."""
        self._folder.cleanup()


def _number(value: object) -> float:
    # The file comes from another process: it may hold a string, null or NaN.
    return float(value) if isinstance(value, int | float) and value == value else 0.0
