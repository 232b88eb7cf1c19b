"""A process that is frozen is told from one that works for long."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed import HashStore

from stagelens import cli
from stagelens.compute import processes, pulse
from stagelens.compute.pulse import SILENCE, Pulse
from tests.support import launched, odd_runs


def attribute_and_freeze(
    rank: int, count: int, port: int, folder: Path, run: str, number: int
) -> None:
    """``stagelens attribute``, in which one process stops before the work is shared."""
    launched.as_launched(rank, count, port, folder)
    pulse.EVERY, pulse.SILENCE, pulse._SPEAKER = 0.2, 15, 2.0
    check = processes.check_shared

    def frozen(shared: Path) -> None:
        if processes.number() == number:
            os.kill(os.getpid(), signal.SIGSTOP)
        check(shared)

    processes.check_shared = frozen
    sys.argv = ["stagelens", "attribute", run, "--estimator", "task-vector"]
    cli.main()


def three(frozen: Callable[[str], None] = pytest.fail) -> list[Pulse]:
    """The pulses of three processes with one store."""
    store = HashStore()
    return [Pulse(store, number, 3, frozen) for number in range(3)]


def beat(pulses: list[Pulse], times: int) -> None:
    for _ in range(times):
        for each in pulses:
            each.beat()


def test_processes_that_beat_are_never_frozen_however_long_they_work() -> None:
    pulses = three()
    beat(pulses, 5 * SILENCE)
    assert [each.silent() for each in pulses] == [[]] * 3


def test_one_that_stops_is_named_by_all_others_and_not_too_early() -> None:
    first, second, third = three()
    beat([first, second, third], 3)
    beat([first, third], SILENCE)
    assert [each.silent() for each in (first, third)] == [[], []]
    beat([first, third], 2)  # whoever beats first heard the newest beat of the others later
    assert [each.silent() for each in (first, third)] == [[1], [1]]


def test_one_that_never_came_is_named() -> None:
    first, second, _ = three()
    beat([first, second], SILENCE + 1)
    assert first.silent() == second.silent() == [2]


def test_a_pause_of_all_is_no_silence_and_one_that_comes_back_is_heard() -> None:
    first, second, third = three()
    beat([first, third], SILENCE)
    beat([first, second, third], 2)  # nobody beat in between, however long it was
    beat([first, third], SILENCE - 1)
    assert first.silent() == third.silent() == []


def test_the_first_that_is_not_frozen_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "EVERY", 0.01)
    # Long enough that a busy machine does not keep one of the living silent.
    monkeypatch.setattr(pulse, "SILENCE", 50)
    monkeypatch.setattr(pulse, "_SPEAKER", 0.5)
    told: list[str] = []
    _, second, third = three(told.append)  # the main process never comes
    for own in (third, second):
        own.start()
    until = time.monotonic() + 200
    while len(told) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert "process 1 of 3 has not been heard from" in told[0]
    assert told[1:] == [""]  # the other one ends too, a while later


def test_a_store_that_went_with_its_process_ends_the_pulse(monkeypatch) -> None:
    class Gone:
        def set(self, key: str, value: str) -> None:
            raise RuntimeError("connection reset")

    monkeypatch.setattr(pulse, "EVERY", 0.01)
    monkeypatch.setattr(pulse, "SILENCE", 2)
    told: list[str] = []
    own = Pulse(Gone(), 0, 2, told.append)  # type: ignore[arg-type]
    own.start()
    time.sleep(0.3)
    own.stop()
    assert told == []  # whoever died is told by the connections that it closed


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["the main process", "another one"])
def test_a_frozen_process_ends_the_job_in_one_line(number: int, tmp_path: Path) -> None:
    run = odd_runs.record(tmp_path / "run", {"first": (2, 0.05)})
    job = launched.start(3, attribute_and_freeze, tmp_path, str(run.path), number)
    frozen = job.pop(number)
    try:
        for process in job:
            assert process.wait()
        assert frozen.poll() is None
        said = "".join((tmp_path / f"err-{rank}").read_text() for rank in range(3))
        lines = [line for line in said.splitlines() if line.startswith("stagelens: ")]
        assert len(lines) == 1, said
        assert f"process {number + 1} of 3 has not been heard from" in lines[0]
        assert "start the same command again" in lines[0]
    finally:
        frozen.kill()
        frozen.wait()
