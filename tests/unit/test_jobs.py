"""Child processes: shared, watched, cancelled, and gone when they are over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagelens.ui.server import interrupted_jobs, jobs
from stagelens.ui.server.jobs import Registry
from tests.support.child_jobs import LONG, SLEEP, alive, python, wait, wait_for_text


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


def test_progress_is_what_the_child_reports(registry: Registry) -> None:
    job = registry.start(
        python("report(0.25, \"Replaying without 'shortcut'\", 'running'); time.sleep(600)"), "Test"
    )
    wait_for_text(job, "Replaying without 'shortcut'")
    status = job.status()
    assert (status.state, status.done, status.error) == ("running", 0.25, None)


def test_a_finished_job_is_done(registry: Registry) -> None:
    job = registry.start(python("report(1.0, 'all of it', 'done')"), "Test")
    wait(job)
    assert (job.status().state, job.status().done) == ("done", 1.0)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("report(0.5, 'x', 'failed', 'the set is missing'); sys.exit(1)", "the set is missing"),
        ("print('first'); sys.exit('folder X is not empty')", "folder X is not empty"),
        ("os._exit(3)", "the process ended with status 3 without a message"),
        ("os.kill(os.getpid(), 15)", "the process was stopped by signal 15 without a message"),
    ],
)
def test_a_failure_says_why(registry: Registry, code: str, error: str) -> None:
    job = registry.start(python(code), "Test")
    wait(job)
    assert (job.status().state, job.status().error) == ("failed", error)


def test_the_log_keeps_its_end(registry: Registry) -> None:
    job = registry.start(python("print('x' * 100_000); sys.exit('last words')"), "Test")
    wait(job)
    assert job.log().strip().endswith("last words") and len(job.log()) < 10_000


def test_a_damaged_progress_file_is_no_failure(registry: Registry) -> None:
    code = "open(file, 'w').write('{\"done\": nonsense'); time.sleep(600)"
    job = registry.start(python(code), "Test")
    time.sleep(0.5)
    assert job.status().state == "running" and job.status().done == 0.0


def test_two_sessions_that_ask_for_the_same_share_one_job(registry: Registry) -> None:
    command = python("time.sleep(600)")
    assert registry.start(command, "Test") is registry.start(command, "Test")
    assert registry.start(python("time.sleep(61)"), "Test") is not registry.find(command)


def test_a_job_that_is_over_starts_anew(registry: Registry) -> None:
    command = python("pass")
    first = registry.start(command, "Test")
    wait(first)
    assert registry.start(command, "Test") is not first


def test_only_a_job_that_is_over_is_forgotten(registry: Registry) -> None:
    command = python("report(0, 'up', 'running'); time.sleep(600)")
    job = registry.start(command, "Test")
    registry.forget(command)
    assert registry.find(command) is job
    job.cancel()
    registry.forget(command)
    assert registry.find(command) is None


def test_cancelling_ends_the_child_and_what_it_started(registry: Registry) -> None:
    job = registry.start(
        python(
            "import subprocess\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            "report(0, str(child.pid), 'running'); time.sleep(600)"
        ),
        "Test",
    )
    end = time.monotonic() + LONG
    while not job.status().text.isdigit():
        assert time.monotonic() < end
        time.sleep(0.02)
    grandchild = int(job.status().text)
    job.cancel()
    assert job.status().state == "cancelled"
    while alive(grandchild) and "zombie" not in _state(grandchild):
        assert time.monotonic() < end + 20
        time.sleep(0.02)


def _state(pid: int) -> str:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("State:")), "")


def test_a_child_that_ignores_the_request_is_ended_anyway(registry: Registry) -> None:
    job = registry.start(
        python(
            f"import signal; signal.signal({int(signal.SIGTERM)}, signal.SIG_IGN)\n"
            "report(0, 'deaf', 'running'); time.sleep(600)"
        ),
        "Test",
    )
    wait_for_text(job, "deaf")
    job.cancel(grace=0.3)
    assert not job.running and job.status().state == "cancelled"


def test_nobody_needs_to_look_for_a_child_to_be_reaped(registry: Registry) -> None:
    job = registry.start(python("pass"), "Test")
    pid = job.pid
    end = time.monotonic() + LONG
    while alive(pid):
        assert time.monotonic() < end, "a zombie is left"
        time.sleep(0.02)


MAKES_A_FOLDER = "out = sys.argv[sys.argv.index('--out') + 1]; os.mkdir(out)\n"


def test_a_folder_appears_whole_or_not_at_all(registry: Registry, tmp_path: Path) -> None:
    out = tmp_path / "home" / "digits"
    made = registry.start(
        python(MAKES_A_FOLDER + "open(out + '/run.json', 'w').close()"), "Test", out
    )
    wait(made)
    assert made.status().state == "done"
    assert [path.name for path in out.parent.iterdir()] == ["digits"]
    assert (out / "run.json").is_file()


@pytest.mark.parametrize("end", ["sys.exit('no')", "report(0, 'up', 'running'); time.sleep(600)"])
def test_what_fails_or_is_cancelled_leaves_nothing_behind(
    registry: Registry, tmp_path: Path, end: str
) -> None:
    job = registry.start(python(MAKES_A_FOLDER + end), "Test", tmp_path / "digits")
    if "sleep" in end:
        wait_for_text(job, "up")
        job.cancel()
    wait(job)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_named(registry: Registry, tmp_path: Path) -> None:
    out = tmp_path / "digits"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    job = registry.start(python(MAKES_A_FOLDER), "Test", out)
    wait(job)
    assert job.status().state == "failed" and str(out) in str(job.status().error)
    assert (out / "mine.txt").read_text() == "keep"


def test_the_servers_end_is_the_jobs_end(registry: Registry) -> None:
    job = registry.start(python("time.sleep(600)"), "Test")
    registry.cancel_all()
    assert not job.running


def test_a_second_folder_is_a_second_job(registry: Registry, tmp_path: Path) -> None:
    command = python(MAKES_A_FOLDER)
    made = [registry.start(command, "Test", tmp_path / name) for name in ("one", "two")]
    alone = registry.start(command, "Test")
    assert len({*made, alone}) == 3
    assert registry.find(jobs.into(command, tmp_path / "two")) is made[1]
    for job in made:
        wait(job)
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"one", "two"}


def test_a_job_that_another_session_looks_at_is_left_but_not_cancelled(registry: Registry) -> None:
    command = python("time.sleep(600)")
    job = registry.start(command, "Test", session="one")
    assert registry.find(command, "two") is job
    registry.leave(command, "one")
    assert job.running
    registry.leave(command, "two")
    assert job.status().state == "cancelled"


def test_cancelling_waits_for_a_job_that_is_just_being_launched(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned = threading.Event()

    class Late(threading.Thread):
        """The thread that waits for the child, which starts a moment after it."""

        def start(self) -> None:
            spawned.set()
            time.sleep(0.2)
            super().start()

    command = python("time.sleep(600)")
    starting = threading.Thread(target=registry.start, args=(command, "Test"))
    monkeypatch.setattr("stagelens.ui.server.child.threading.Thread", Late)
    starting.start()
    spawned.wait(20)
    job = registry._jobs[command]  # find would wait for the launch
    job.cancel()
    assert not job.running and job.status().state == "cancelled"
    starting.join()


def test_arguments_reach_the_command_line_as_they_are() -> None:
    hostile = "digits; touch never $(id) `id` && x"
    job = jobs.start(("demo", hostile, "--out", "/nonexistent"), "Test")
    wait(job, 60)
    assert job.status().state == "failed"
    assert hostile in str(job.status().error)
    assert job.command[:3] == (sys.executable, "-m", "stagelens")
    jobs.forget(("demo", hostile, "--out", "/nonexistent"))


# ---------------------------------------------------------------------------------- what was left


def records(home: Path) -> list[Path]:
    return sorted((home / interrupted_jobs.FOLDER).glob("*.json"))


def test_a_running_job_is_on_record_until_it_is_over(registry: Registry, home: Path) -> None:
    job = registry.start(python(SLEEP), "Replay of <b>")
    assert len(records(home)) == 1 and interrupted_jobs.found() == []
    job.cancel()
    assert list(home.iterdir()) == []


SERVER = """
import sys, time
from pathlib import Path
from stagelens.ui.server.jobs import Registry
from tests.support.child_jobs import SLEEP, alive, python, wait, wait_for, wait_for_text
registry = Registry()
code = "import os, sys, time; os.mkdir(sys.argv[sys.argv.index('--out') + 1]); time.sleep(600)"
job = registry.start((sys.executable, "-c", code), "Replay", Path(sys.argv[1]) / "made")
while not job.unfinished.exists():
    time.sleep(0.02)
print(job.pid, flush=True)
time.sleep(600)
"""


def test_the_next_server_ends_and_tells_what_a_killed_one_left(home: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(home)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(jobs.__file__).parents[3])},
    )
    child = int(server.stdout.readline())
    assert interrupted_jobs.found() == []
    server.kill()
    server.wait()
    (left,) = interrupted_jobs.found()
    assert left.title == "Replay"
    end = time.monotonic() + LONG
    while alive(child) and "zombie" not in _state(child):
        assert time.monotonic() < end, "the child still runs"
        time.sleep(0.02)
    while [path.name for path in home.iterdir()] != [interrupted_jobs.FOLDER]:
        assert time.monotonic() < end, list(home.iterdir())
        time.sleep(0.02)
    left.dismiss()
    assert interrupted_jobs.found() == []


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        '{"title": "x", "server": {"pid": -1}, "child": {"pid": 0}}',
        '{"title": "x", "server": {"pid": 999999999}, "child": {"pid": 2}, "folders": ["/", ".."]}',
        '{"title": "x", "server": {"pid": 999999999}, "child": {"pid": 2}, "unfinished": "mine"}',
        '{"title": "x", "server": {"pid": 999999999}, "child": {"pid": 1, "born": 0}}',
    ],
)
def test_a_forged_record_ends_and_deletes_nothing(home: Path, text: str, monkeypatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, _: killed.append(pid))
    for name in ("mine", "up"):
        (home / name).mkdir()
    (home / interrupted_jobs.FOLDER).mkdir()
    (home / interrupted_jobs.FOLDER / "a.json").write_text(text)
    interrupted_jobs.found()
    interrupted_jobs.clean_up()
    assert killed == [] and (home / "mine").is_dir() and (home / "up").is_dir()
