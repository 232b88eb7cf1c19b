"""Runs a reader over broken input, watched, and counts what came of it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, given

from stagelens.contracts import StageLensError
from tests.fuzz.guard import only_below
from tests.fuzz.reader import Reader

_AT_ONCE = 5000
"""Inputs of one seed; hypothesis keeps them all in mind, so many are drawn in several turns."""

LONGEST = 30.0
"""Seconds that no input takes, on any machine that is not stuck."""


@dataclass
class Done:
    """What came of the inputs of one reader."""

    taken: int = 0
    refused: int = 0
    longest: float = 0.0
    seconds: float = 0.0

    @property
    def inputs(self) -> int:
        """All of them."""
        return self.taken + self.refused


def spread(every: Mapping[str, Reader], count: int) -> dict[str, int]:
    """How many inputs each reader gets, by its weight; at least one."""
    whole = sum(reader.weight for reader in every.values())
    return {n: max(1, -(-int(count * r.weight) // int(whole))) for n, r in every.items()}


def run(reader: Reader, count: int, folder: Path, seed: int = 0) -> Done:
    """Give a reader so many inputs.

    Raises:
        BaseException: What a reader raised that is no StageLensError, with the input.
    """
    done = Done()

    def one(value: Any) -> None:
        began = time.monotonic()
        try:
            watch = only_below(folder) if reader.watched else nullcontext()
            with watch, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader.read(value)
            done.taken += 1
        except StageLensError as error:
            assert str(error), "an error without words"
            done.refused += 1
        took = time.monotonic() - began
        done.longest = max(done.longest, took)
        done.seconds += took
        assert took < LONGEST, f"took {took:.0f} s"

    turn = 0
    while done.inputs < count:
        settings = hypothesis.settings(
            max_examples=min(_AT_ONCE, count - done.inputs),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        before = done.inputs
        hypothesis.seed(seed * 1000 + turn)(settings(given(reader.inputs)(one)))()
        turn += 1
        if done.inputs == before:
            break  # there are no further inputs of this kind
    return done


@contextmanager
def home_below(folder: Path) -> Iterator[None]:
    """While it runs, the dashboard's home lies there, and nothing else may be opened."""
    before = {name: os.environ.get(name) for name in ("STAGELENS_HOME", "STAGELENS_ROOTS")}
    os.environ |= {"STAGELENS_HOME": str(folder / "home"), "STAGELENS_ROOTS": str(folder / "roots")}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
