"""A process that is frozen is told from one that works for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import HashStore

from stagelens import pulse
from stagelens.pulse import SILENCE, Pulse
from tests.conftest import ROOT

FROZEN = """
import os, signal
from stagelens import processes, pulse
pulse.EVERY, pulse.SILENCE = 0.2, 3.0
with processes.joined():
    processes.wait()
    if processes.number() == {number}:
        print(os.getpid(), flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    processes.wait()
"""


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def three() -> tuple[Clock, list[Pulse]]:
    """The pulses of three processes with one store and one clock."""
    clock, store = Clock(), HashStore()
    return clock, [Pulse(store, number, 3, pytest.fail, clock) for number in range(3)]


def beat(pulses: list[Pulse]) -> None:
    for _ in range(2):  # whoever beats first hears the others' newest beat at the second
        for each in pulses:
            each.beat()


def test_processes_that_beat_are_never_frozen_however_long_they_work() -> None:
    clock, pulses = three()
    for _ in range(20):
        clock.now += 0.9 * SILENCE
        beat(pulses)
        assert [each.frozen() for each in pulses] == [None] * 3


def test_one_that_stops_is_named_by_all_others_and_not_too_early() -> None:
    clock, (first, second, third) = three()
    beat([first, second, third])
    clock.now += 0.9 * SILENCE
    beat([first, third])
    assert [each.frozen() for each in (first, third)] == [None] * 2
    clock.now += 1.1 * SILENCE
    beat([first, third])
    assert [each.frozen() for each in (first, third)] == ["process 2 of 3"] * 2


def test_one_that_never_came_is_named() -> None:
    clock, (first, second, _) = three()
    clock.now += 1.1 * SILENCE
    beat([first, second])
    assert first.frozen() == second.frozen() == "process 3 of 3"


def test_a_store_that_does_not_answer_is_told() -> None:
    clock, (first, *_) = three()
    first.beat()
    clock.now += 1.1 * SILENCE
    assert first.frozen() == "the process that the others meet at"


def test_a_store_that_went_with_its_process_ends_the_pulse(monkeypatch) -> None:
    class Gone:
        def set(self, key: str, value: str) -> None:
            raise RuntimeError("connection reset")

    monkeypatch.setattr(pulse, "EVERY", 0.01)
    monkeypatch.setattr(pulse, "SILENCE", 0.02)
    told: list[str] = []
    own = Pulse(Gone(), 0, 2, told.append)  # type: ignore[arg-type]
    own.start()
    time.sleep(0.3)
    assert told == []  # whoever died is told by the connections that it closed


@pytest.mark.parametrize("number", [0, 1], ids=["the main process", "another one"])
def test_a_frozen_process_ends_the_job_in_one_line(number: int, tmp_path: Path) -> None:
    script = tmp_path / "frozen.py"
    script.write_text(FROZEN.format(number=number))
    launch = ("-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu")
    words = ("--num_processes", "2", "--main_process_port", "0", "--num_machines", "1")
    more = ("--mixed_precision", "no", "--dynamo_backend", "no")
    job = subprocess.Popen(
        [sys.executable, *launch, *words, *more, str(script)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert job.stdout is not None and job.stderr is not None
        frozen = int(job.stdout.readline())
        said = next(line for line in job.stderr if line.startswith("stagelens: "))
        assert f"process {number + 1} of 2 has not been heard of" in said
        assert "start the same command again" in said
        os.kill(frozen, signal.SIGKILL)  # the launcher itself waits half a minute before it does
        assert job.wait(60) != 0
    finally:
        job.kill()
        job.communicate()
