"""The queue of jobs, and the limits of each of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagelens.cli.terminal import one_line
from stagelens.contracts import StageLensError
from stagelens.ui.pieces import job_progress
from stagelens.ui.server import jobs
from stagelens.ui.server.child import Job, Limits, Status
from stagelens.ui.server.jobs import Registry
from tests.support.child_jobs import LONG, SLEEP, python, wait, wait_for


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, where records of running jobs lie."""
    monkeypatch.setenv("STAGELENS_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.cancel_all()


def test_only_so_many_run_at_once_and_the_others_follow_in_order() -> None:
    registry = Registry(at_once=1)
    commands = [python(f"{SLEEP}  # {number}") for number in range(3)]
    for command in commands:
        registry.start(command, "Test")
    assert [registry.find(c).status().state for c in commands] == ["running", "waiting", "waiting"]
    registry.find(commands[0]).cancel()
    wait_for(registry, commands[1], "running")
    assert registry.find(commands[2]).waiting
    registry.cancel_all()


def test_a_job_that_is_cancelled_while_it_waits_never_begins() -> None:
    registry = Registry(at_once=1)
    first = registry.start(python(SLEEP), "Test")
    waiting = registry.start(python(SLEEP + "  # 2"), "Test")
    waiting.cancel()
    assert (waiting.status().state, waiting.pid, waiting.running) == ("cancelled", None, False)
    first.cancel()
    assert waiting.pid is None
    registry.cancel_all()


def test_nothing_that_waits_begins_when_the_server_ends() -> None:
    registry = Registry(at_once=1)
    jobs = [registry.start(python(f"{SLEEP}  # {number}"), "Test") for number in range(3)]
    registry.close()
    assert [job.pid is None for job in jobs] == [False, True, True]
    assert not any(job.running for job in jobs)


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are set on Linux only")
def test_a_job_that_takes_too_much_memory_ends_with_a_reason() -> None:
    registry = Registry(limits=Limits(memory=200_000_000))
    code = "time.sleep(0.3); kept = bytearray(400_000_000); print('not reached')"
    job = registry.start(python(code), "Test")
    wait(job)
    assert job.status().state == "failed" and "MemoryError" in str(job.status().error)
    assert "not reached" not in job.log()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 GB")]
)
def test_memory_that_ran_out_is_said_in_words(error: BaseException) -> None:
    assert one_line(error).startswith("memory ran out; what was finished before is kept")


def test_a_job_that_the_machine_killed_says_what_that_means(registry: Registry) -> None:
    job = registry.start(python("os.kill(os.getpid(), 9)"), "Test")
    wait(job)
    assert "ran out of memory" in str(job.status().error)


def test_threads_are_limited_through_the_environment() -> None:
    registry = Registry(limits=Limits(threads=3))
    told = "os.environ['OMP_NUM_THREADS'] + os.environ['STAGELENS_CORES']"
    job = registry.start(python(f"sys.exit({told})"), "Test")
    wait(job)
    assert job.status().error == "33"


def test_the_queue_is_bounded_for_one_session_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "OF_ONE", 3)
    monkeypatch.setattr(jobs, "OF_ALL", 5)
    registry = Registry(at_once=1)
    commands = [python(f"{SLEEP}  # {number}") for number in range(6)]

    def start(number: int, session: str) -> Job:
        return registry.start(commands[number], "Test", session=session)

    for number in range(3):
        start(number, "one")
    assert start(0, "one") is start(0, "two")  # joining one takes no place
    with pytest.raises(StageLensError, match="3 jobs of yours are running or waiting"):
        start(3, "one")
    start(3, "two")
    last = start(4, "two")
    with pytest.raises(StageLensError, match=r"^5 jobs are running or waiting, and no more"):
        start(5, "three")
    last.cancel()
    assert start(5, "three").waiting
    registry.cancel_all()


def test_loading_is_told_apart_from_work_in_the_time_left(registry: Registry) -> None:
    code = (
        "import json, pathlib; now = time.monotonic();"
        "marks = [[now - 10, 0], [now, 0.25]];"
        "report = {'done': 0.25, 'text': 'Replaying', 'state': 'running', 'marks': marks};"
        "pathlib.Path(sys.argv[-1]).write_text(json.dumps(report)); time.sleep(600)"
    )
    job = registry.start(python(code), "Test")
    # As if it had been launched long before its work began.
    job._started = time.monotonic() - 100
    deadline = time.monotonic() + LONG
    while job.status().starting and time.monotonic() < deadline:
        time.sleep(0.02)
    status = job.status()
    assert status.seconds >= 100 and status.left == pytest.approx(30, rel=0.3)
    # A clock of its own says nothing: no time is made up from it.
    job._started = time.monotonic() + 5
    assert job.status().left is None
    job.cancel()


def test_of_a_job_with_a_limit_no_more_is_left_than_that() -> None:
    def said(done: float, seconds: float, limit: float | None) -> str:
        left = seconds * (1 - done) / done
        status = Status("running", done, "Replaying", None, seconds, left)
        told = job_progress._so_far(status, limit)
        return told.removeprefix(f"Replaying · {100 * done:.0f} % · ")

    timing, later = (0.06, 46.0), (0.2, 50.0)
    assert said(*timing, None) == "46 s · about 12 minutes left"
    assert said(*timing, 120) == "46 s"  # its steps are not timed yet
    assert said(*later, None) == "50 s · about 3 minutes left"
    assert said(*later, 120) == "50 s · about a minute left"
    assert said(0.9, 50, 120) == "50 s · under 10 seconds left"
    assert said(0.9, 130, 120) == "130 s"


def test_a_job_that_loads_says_for_how_long_and_no_share() -> None:
    assert job_progress._so_far(Status("running", 0.0, "Starting", None, 3.2), None) == (
        "Starting · 3 s"
    )


def test_a_clock_that_jumps_changes_no_time(registry: Registry, monkeypatch) -> None:
    job = registry.start(python(SLEEP), "Test")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0 <= job.status().seconds < 20
