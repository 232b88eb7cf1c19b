"""Long work in child processes, one queue for the whole server.

Jobs are keyed by their command, so two sessions that ask for the same work share one, and a job
survives reruns and closed tabs. Only so many run at once (``STAGELENS_JOBS``), each within limits
(``STAGELENS_JOB_MEMORY``, ``STAGELENS_JOB_THREADS``); the others wait their turn, first come first
served, and only so many may wait. What was running when a server ended is reported by the next one
(see ``interrupted_jobs``).
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from stagelens.contracts import StageLensError

from . import given_data, interrupted_jobs, settings
from .child import Job, Limits

# Jobs that have ended keep their log for the pages; a limit bounds the files that this takes.
_KEPT = 32

OF_ONE = 8
"""Jobs that one session may have under way, running or waiting."""
OF_ALL = 32
"""Jobs that all sessions together may have under way."""


class Registry:
    """The server's jobs, by command, in the order in which they were asked for.

    Args:
        at_once: How many run at the same time.
        limits: What each of them may take.
    """

    def __init__(self, at_once: int = 2, limits: Limits | None = None) -> None:
        self._at_once, self._limits = at_once, limits or Limits()
        # Reentrant: a launch that fails reports back through _over while start() holds the lock.
        self._lock = threading.RLock()
        self._jobs: dict[tuple[str, ...], Job] = {}
        self._wanted: dict[tuple[str, ...], set[str]] = {}
        self._ending = False

    def start(
        self,
        command: tuple[str, ...],
        title: str,
        out: Path | None = None,
        folders: Sequence[Path] = (),
        session: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Job:
        """Queue a command, or join its job if that is not over; one that has ended starts again.

        Args:
            command: What is run; with ``--out`` and ``out`` it is the job's key.
            title: What it is, in words for people.
            out: A folder that it makes.
            folders: What else it writes to.
            session: Who asks.
            environment: What it finds in its environment besides this server's.

        Raises:
            StageLensError: There is no room for one more.
        """
        key = command if out is None else into(command, out)
        with self._lock:
            job = self._jobs.get(key)
            if job is not None and job.running:
                self._wanted[key].add(session)
                return job
            self._check_room(session)
            self._drop(key)
            # Dictionaries keep insertion order, so the oldest ones are dropped.
            ended = [key for key, job in self._jobs.items() if not job.running]
            for old in ended[: max(len(self._jobs) - _KEPT, 0)]:
                self._drop(old)
            job = self._jobs[key] = Job(
                command, title, out, self._over, folders, session, environment or {}
            )
            self._wanted[key] = {session}
            self._launch()
            return job

    def _check_room(self, session: str) -> None:
        busy = [job for job in self._jobs.values() if job.running]
        own = sum(job.asked_by == session for job in busy)
        if own >= OF_ONE or len(busy) >= OF_ALL:
            whose = f"{own} jobs of yours" if own >= OF_ONE else f"{len(busy)} jobs"
            raise StageLensError(
                f"{whose} are running or waiting, and no more are taken; start this again when one "
                "of them is over, or cancel one"
            )

    def _launch(self) -> None:
        """Launch waiting jobs while there is room; the lock is held."""
        jobs = list(self._jobs.values())
        free = self._at_once - self.running()
        for job in [job for job in jobs if job.waiting][: max(free, 0)]:
            job.launch(self._limits)
            interrupted_jobs.note(job)

    def _over(self, job: Job) -> None:
        with self._lock:  # waits until the record is written, however quickly the job ends
            if not self._ending:  # the record stays, so that the next server reports it
                interrupted_jobs.forget(job)
            self._launch()

    def find(self, command: tuple[str, ...], session: str = "") -> Job | None:
        """The job of a command, running or ended, which this session looks at; None without one."""
        with self._lock:
            job = self._jobs.get(command)
            if job is not None:
                self._wanted[command].add(session)
            return job

    def running(self) -> int:
        """How many jobs run now; those that wait for their turn take nothing yet."""
        with self._lock:
            return sum(job.running and not job.waiting for job in self._jobs.values())

    def leave(self, command: tuple[str, ...], session: str = "") -> None:
        """Cancel a job unless another session looks at it too."""
        with self._lock:
            job = self._jobs.get(command)
            if job is None:
                return
            self._wanted[command].discard(session)
            wanted = bool(self._wanted[command])
        # Without the lock: the thread that ends the job needs it in _over.
        if not wanted:
            job.cancel()

    def forget(self, command: tuple[str, ...]) -> None:
        """Drop a job that has ended, so that pages no longer show it."""
        with self._lock:
            job = self._jobs.get(command)
            if job is not None and not job.running:
                self._drop(command)

    def _drop(self, command: tuple[str, ...]) -> None:
        job = self._jobs.pop(command, None)
        self._wanted.pop(command, None)
        if job is not None:
            job.dispose()

    def cancel_all(self) -> None:
        """End every child, and keep waiting jobs from starting."""
        with self._lock:
            jobs = list(self._jobs.values())
            self._jobs.clear()
            self._wanted.clear()
        # Without the lock: the threads that end the jobs need it in _over.
        for job in jobs:
            job.cancel(grace=2.0)
            job.dispose()

    def close(self) -> None:
        """End every child with the server."""
        self._ending = True
        self.cancel_all()


@st.cache_resource(show_spinner=False)
def registry() -> Registry:
    """The one registry of this server.

    A module variable would be lost when Streamlit reloads edited modules, and the running children
    with it. They end with the server.
    """
    made = Registry(settings.jobs_at_once(), Limits(settings.job_memory(), settings.job_threads()))
    threading.Thread(
        target=interrupted_jobs.clean_up, name="stagelens-clean-up", daemon=True
    ).start()
    atexit.register(made.close)
    return made


def _command(arguments: Sequence[str]) -> tuple[str, ...]:
    # The server's own interpreter: a command found by PATH may belong to another environment.
    return (sys.executable, "-m", "stagelens", *arguments)


def into(arguments: tuple[str, ...], out: Path) -> tuple[str, ...]:
    """What finds the job that makes a folder: two folders are two jobs."""
    return (*arguments, "--out", str(out))


def start(arguments: Sequence[str], title: str, out: Path | None = None) -> Job:
    """Start ``python -m stagelens ARGUMENTS``, or join the job that already runs it.

    A job that has ended is started again.

    Args:
        arguments: Of the command line; they are the job's key, with ``out`` as :func:`into` has it.
            Never a shell.
        title: What it is, in words for people.
        out: A folder that the command makes with ``--out``. It is made under a temporary name and
            renamed once it is complete, so a job that fails or is cancelled leaves nothing behind.

    Raises:
        StageLensError: The server is read-only, so nothing is computed; or too many jobs wait.
    """
    if settings.read_only():
        raise StageLensError(settings.READ_ONLY)
    # Pages name the run's folder by its whole path.
    folders = [folder for each in arguments if (folder := Path(each)).is_absolute()]
    given = given_data.environment(folders)
    return registry().start(_command(arguments), title, out, folders, _session(), given)


def find(arguments: Sequence[str]) -> Job | None:
    """The job of a command, running or ended; None if there is none."""
    return registry().find(_command(arguments), _session())


def running() -> int:
    """How many jobs of this server run now."""
    return registry().running()


def leave(arguments: Sequence[str]) -> None:
    """Cancel a job that this session needs no more, unless another one looks at it too."""
    registry().leave(_command(arguments), _session())


def forget(arguments: Sequence[str]) -> None:
    """Drop a job that has ended, so that pages no longer show it."""
    registry().forget(_command(arguments))


def _session() -> str:
    context = get_script_run_ctx(suppress_warning=True)
    return "" if context is None else context.session_id
