"""Long work in child processes: the same command line that a person would type.

One registry serves the whole server, keyed by the command, so two sessions that ask for the same
work share one job, and a job survives reruns and closed tabs. Progress comes through a file that
the child replaces atomically (hidden option ``--progress FILE``):
``{"done": 0.0..1.0, "text": "...", "state": "running"|"done"|"failed", "error": null|"..."}``.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import streamlit as st

State = Literal["running", "done", "failed", "cancelled"]

_KEPT = 32
_TAIL = 4000
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True)
class Status:
    """A job at one moment.

    Attributes:
        state: Whether it runs, and how it ended.
        done: 0..1.
        text: What it is doing, for people.
        error: One line; None unless it failed.
        seconds: Wall time so far, or in the end.
    """

    state: State
    done: float
    text: str
    error: str | None
    seconds: float


class Job:
    """One child process. Made by :class:`Registry`; watch it with :meth:`status`."""

    def __init__(self, command: tuple[str, ...], title: str, out: Path | None = None) -> None:
        self.title = title
        self._out = out
        self._unfinished: Path | None = None
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._unfinished = out.with_name(f".{out.name}-{secrets.token_hex(4)}")
            command = (*command, "--out", str(self._unfinished))
        self.command = command
        self._moving_failed: str | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="stagelens-job-")
        self._progress = Path(self._folder.name) / "progress.json"
        self._log = Path(self._folder.name) / "log.txt"
        self._started = time.monotonic()
        self._ended: float | None = None
        self._cancelled = False
        paths = [_PACKAGE_PARENT, *filter(None, [os.environ.get("PYTHONPATH")])]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*command, "--progress", str(self._progress)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        # wait() in a thread of its own reaps the child the moment it ends: no zombies, whoever
        # looks or does not look.
        self._reaper = threading.Thread(target=self._reap, name="stagelens-job", daemon=True)
        self._reaper.start()

    def _reap(self) -> None:
        code = self._process.wait()
        if self._out is not None and self._unfinished is not None:
            try:
                if code == 0 and not self._cancelled:
                    os.replace(self._unfinished, self._out)
            except OSError as error:
                self._moving_failed = (
                    f"{self._out} cannot be written ({error.strerror}); delete or rename it"
                )
            shutil.rmtree(self._unfinished, ignore_errors=True)
        self._ended = time.monotonic()

    @property
    def running(self) -> bool:
        """Whether the child is still there."""
        return self._ended is None

    def status(self) -> Status:
        """What is known now. Reads one small file; never blocks."""
        over = not self.running  # before the file, so that a final report is not missed
        report = self._report()
        seconds = (self._ended or time.monotonic()) - self._started
        done = min(max(_number(report.get("done")), 0.0), 1.0)
        text = str(report.get("text") or "Starting")
        if not over:
            return Status("running", done, text, None, seconds)
        if self._cancelled:
            return Status("cancelled", done, "Cancelled", None, seconds)
        code = self._process.returncode
        if self._moving_failed:
            return Status("failed", done, text, self._moving_failed, seconds)
        if code == 0 and report.get("state") != "failed":
            return Status("done", 1.0, "Done", None, seconds)
        return Status("failed", done, text, self._error(report, code), seconds)

    def _error(self, report: dict[str, object], code: int | None) -> str:
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
        except (OSError, ValueError):
            return {}
        return report if isinstance(report, dict) else {}

    def log(self) -> str:
        """The end of what the child printed."""
        try:
            with open(self._log, "rb") as file:
                file.seek(max(self._log.stat().st_size - _TAIL, 0))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def cancel(self, grace: float = 5.0) -> None:
        """End the child and everything it started; returns when it is gone."""
        if self.running:
            self._cancelled = True
        self._signal(signal.SIGTERM)
        self._reaper.join(grace)
        if self.running:
            self._signal(signal.SIGKILL)
            self._reaper.join(grace)

    def _signal(self, number: signal.Signals) -> None:
        if not self.running:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(self._process.pid, number)
            else:
                self._process.kill()

    def dispose(self) -> None:
        """Remove the job's files."""
        self._folder.cleanup()


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and value == value else 0.0


class Registry:
    """The server's jobs, by command."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[tuple[str, ...], Job] = {}

    def start(self, command: tuple[str, ...], title: str, out: Path | None = None) -> Job:
        """Start a command, or join the one that is running; one that has ended starts anew."""
        with self._lock:
            job = self._jobs.get(command)
            if job is not None and job.running:
                return job
            self._drop(command)
            ended = [key for key, job in self._jobs.items() if not job.running]
            for key in ended[: max(len(self._jobs) - _KEPT, 0)]:
                self._drop(key)
            job = self._jobs[command] = Job(command, title, out)
            return job

    def find(self, command: tuple[str, ...]) -> Job | None:
        """The job of a command, running or ended; None where there is none."""
        with self._lock:
            return self._jobs.get(command)

    def forget(self, command: tuple[str, ...]) -> None:
        """Drop a job that has ended, so that pages no longer show it."""
        with self._lock:
            job = self._jobs.get(command)
            if job is not None and not job.running:
                self._drop(command)

    def _drop(self, command: tuple[str, ...]) -> None:
        job = self._jobs.pop(command, None)
        if job is not None:
            job.dispose()

    def cancel_all(self) -> None:
        """End every child."""
        with self._lock:
            jobs = list(self._jobs.values())
            self._jobs.clear()
        for job in jobs:
            job.cancel(grace=2.0)
            job.dispose()


@st.cache_resource(show_spinner=False)
def registry() -> Registry:
    """The one registry of this server.

    A module's own variable would be lost when Streamlit reloads edited modules, and with it the
    sight of running children. They end with the server.
    """
    made = Registry()
    atexit.register(made.cancel_all)
    return made


def _command(arguments: Sequence[str]) -> tuple[str, ...]:
    return (sys.executable, "-m", "stagelens", *arguments)


def start(arguments: Sequence[str], title: str, out: Path | None = None) -> Job:
    """Start ``python -m stagelens ARGUMENTS``, or join the one that is running.

    A job that has ended is started anew.

    Args:
        arguments: Of the command line; they are the job's key. Never a shell.
        title: What it is, for people.
        out: A folder that the command makes with ``--out``. It is made under a temporary name and
            renamed when it is whole, so a job that fails or is cancelled leaves nothing behind.
    """
    return registry().start(_command(arguments), title, out)


def find(arguments: Sequence[str]) -> Job | None:
    """The job of a command, running or ended; None where there is none."""
    return registry().find(_command(arguments))


def forget(arguments: Sequence[str]) -> None:
    """Drop a job that has ended, so that pages no longer show it."""
    registry().forget(_command(arguments))
