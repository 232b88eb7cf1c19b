"""Calls into Rust libraries, which may panic or never return, as calls that fail with a reason."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar, cast

T = TypeVar("T")


class NoAnswer(Exception):
    """A library panicked, or took too long; the message says which, after "the tokenizer ..."."""


@contextlib.contextmanager
def no_panic() -> Iterator[None]:
    """Turn a panic of a Rust library into an error.

    Raises:
        NoAnswer: The library panicked.
    """
    try:
        yield
    except BaseException as error:
        # Derived from BaseException, so that nothing handles it, and in no module to import from.
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise NoAnswer(f"fails ({' '.join(str(error).split())[:200]})") from None


class _Helper:
    """A thread that does one thing at a time, and can be left behind."""

    def __init__(self) -> None:
        self.given_up = False
        self._given: SimpleQueue[Any] = SimpleQueue()
        self._thread = Thread(target=self._serve, name="bounded", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self.given_up:
            work, answer = self._given.get()
            try:
                answer.put((work(), None))
            except BaseException as error:  # raised where it was asked for
                answer.put((None, error))
            del work, answer

    @property
    def busy(self) -> bool:
        """Whether a helper that was given up still works."""
        return self._thread.is_alive()

    def ask(self, work: Callable[[], T], seconds: int) -> T:
        """What ``work`` returns or raises.

        Raises:
            TimeoutError: It is not over in time; this helper takes nothing any more.
        """
        answer: SimpleQueue[Any] = SimpleQueue()
        self._given.put((work, answer))
        try:
            # By the second: while the whole process stands still, only one of them passes.
            for _ in range(seconds):
                with contextlib.suppress(Empty):
                    result, error = answer.get(timeout=1.0)
                    break
            else:
                raise TimeoutError
        except BaseException:
            self.given_up = True
            raise
        if error is not None:
            raise error
        return cast(T, result)


_idle: list[_Helper] = []
_given_up: dict[str, _Helper] = {}
"""By what they were asked to work with."""
if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
    os.register_at_fork(after_in_child=_idle.clear)
    os.register_at_fork(after_in_child=_given_up.clear)


def bounded(work: Callable[[], T], seconds: int, key: str) -> T:
    """Do something in another thread, and do not wait for it for ever.

    Native code cannot be interrupted: what takes too long goes on, on one core at most per ``key``.

    Args:
        work: Must release the interpreter's lock where it takes long.
        seconds: How long to wait.
        key: Of what may be to blame; while it is still busy, nothing else is tried with it.

    Raises:
        NoAnswer: It panicked, took too long, or is still busy with what took too long before.
    """
    before = _given_up.get(key)
    if before is not None and before.busy:
        raise NoAnswer("is still busy with a text that takes it too long")
    _given_up.pop(key, None)
    try:
        helper = _idle.pop()
    except IndexError:
        helper = _Helper()
    try:
        with no_panic():
            return helper.ask(work, seconds)
    except TimeoutError:
        _given_up[key] = helper
        raise NoAnswer(f"takes more than {seconds} seconds") from None
    finally:
        if not helper.given_up:
            _idle.append(helper)
