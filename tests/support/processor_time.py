"""Garbage of imports is frozen; slow tests must say so.

With STAGELENS_SLOW_FAILS=1, or where CI is set, a test that takes over three seconds of processor
time (itself and children that it waited for; no shared fixture) fails unless it is marked slow.
"""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ALLOWED = 3.0


def spent() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Budget:
    def __init__(self, enforced: bool) -> None:
        self.enforced, self._shared = enforced, 0.0
        self._file: Path | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        # transformers' Trainer and Streamlit collect garbage themselves, after every training and
        # every script run: each time they would look through all objects that imports have left.
        if item.path != self._file:
            self._file = item.path
            gc.collect()
            gc.freeze()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[Any]:
        before, shared = spent(), self._shared
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                self._shared = shared + spent() - before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        before, shared = spent(), self._shared
        yield
        took = spent() - before - (self._shared - shared)
        if self.enforced and took > ALLOWED and item.get_closest_marker("slow") is None:
            pytest.fail(f"took {took:.1f} s of processor time; mark it slow", pytrace=False)


def pytest_configure(config: pytest.Config) -> None:
    asked = os.environ.get("STAGELENS_SLOW_FAILS")
    enforced = asked == "1" or (asked is None and bool(os.environ.get("CI")))
    config.pluginmanager.register(Budget(enforced), "stagelens-processor-time")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[Any]:
    gc.disable()  # nothing that is imported is garbage
    try:
        return (yield)
    finally:
        gc.enable()
