"""Jobs that run a few lines of Python in place of a command."""

from __future__ import annotations

import os
import sys
import time

from stagelens.ui.server.child import Job
from stagelens.ui.server.jobs import Registry

REPORTING = """
import json, os, sys, time
file = sys.argv[sys.argv.index("--progress") + 1]
def report(done, text, state, error=None):
    with open(file + ".tmp", "w") as out:
        json.dump({"done": done, "text": text, "state": state, "error": error}, out)
    os.replace(file + ".tmp", file)
"""


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", REPORTING + code)


LONG = 200.0
"""Seconds after which a wait gives up: a busy machine must not fail a test."""


def wait(job: Job, seconds: float = LONG) -> None:
    end = time.monotonic() + seconds
    while job.running:
        assert time.monotonic() < end, "the job did not end"
        time.sleep(0.02)
    if job._reaper is not None:
        job._reaper.join(seconds)  # what follows a job's end follows in its thread


def wait_for(registry: Registry, command: tuple[str, ...], state: str) -> None:
    end = time.monotonic() + LONG
    while registry.find(command).status().state != state:
        assert time.monotonic() < end, registry.find(command).status()
        time.sleep(0.02)


def wait_for_text(job: Job, text: str, seconds: float = LONG) -> None:
    end = time.monotonic() + seconds
    while job.status().text != text:
        assert time.monotonic() < end, job.status()
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process is there; a zombie is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


SLEEP = "time.sleep(600)"
