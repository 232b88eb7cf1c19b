"""Helper processes: one command shares its work with them while it does its own part.

They are started where that is worth it and end with the command. Each runs a hidden command that
reads what it is to do on its standard input, one line of JSON at a time, and tells on its standard
output how it gets on. Results go through the run folder. What a helper does not finish, because it
failed or was killed, the command does itself: nothing depends on a helper.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stagelens.contracts import ProgressCallback, StageLensError

ASKED = "STAGELENS_PROCESSES"
"""How many processes share the work; ``--processes`` sets it. Without it, the work decides."""

_EVERY = 0.2
"""Seconds between two reports."""
_GRACE = 5.0
"""Seconds that a helper has to remove its unfinished files."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# A helper must find the same StageLens, even in a checkout that is not installed.
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True)
class Item:
    """A piece of work.

    Attributes:
        message: What it is, plain JSON, as a helper takes it.
        cost: What it takes, in any unit.
    """

    message: Mapping[str, Any]
    cost: float

    @property
    def key(self) -> str:
        """Its message as text."""
        return json.dumps(self.message)


class Helper:
    """One helper process.

    Args:
        command: What it runs.
        threads: For its arithmetic.
    """

    def __init__(self, command: Sequence[str], threads: int) -> None:
        paths = [_PACKAGE_PARENT, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            **dict.fromkeys(_THREADS, str(threads)),
            "PYTHONPATH": os.pathsep.join(paths),
            ASKED: "1",
        }
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What fails in a helper fails again in the command, which tells it.
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ready(self) -> bool:
        """Wait until it has started; whether it has."""
        return self._told() is not None

    def do(self, item: Item, heard: ProgressCallback) -> bool:
        """Have it do a piece of work; whether it still runs afterwards."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(item.key + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            return False
        while (told := self._told()) is not None:
            if told.get("over"):
                return True
            heard(float(told["done"]), str(told["text"]))
        return False

    def _told(self) -> dict[str, Any] | None:
        """What it tells next; None once it is gone."""
        assert self._process.stdout is not None
        try:
            return dict(json.loads(self._process.stdout.readline()))
        except (OSError, ValueError):
            return None

    def end(self) -> None:
        """Ask it to end; see :meth:`gone`."""
        with contextlib.suppress(OSError, ValueError):
            self._process.terminate()

    def gone(self) -> None:
        """Wait until it has ended."""
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Helpers:
    """The helpers of one command, started when they are first wanted.

    Args:
        command: What each runs.
        asked: How many processes the user wants, this one included; None to decide by the work.
    """

    def __init__(self, command: Sequence[str], asked: int | None = None) -> None:
        self.asked = asked
        self.started: list[Helper] = []
        self._command = tuple(command)
        self._changed = threading.Condition()
        self._waiting: deque[Item] = deque()
        self._mine: deque[Item] = deque()
        self._doing: dict[str, tuple[Item, float]] = {}
        self._finished = 0.0
        self._over = False

    def start(self, count: int, threads: int) -> None:
        """Have at least ``count`` helpers, which compute with ``threads`` threads each."""
        while len(self.started) < count:
            try:
                helper = Helper(self._command, threads)
            except OSError:  # out of memory or of processes: done with fewer
                return
            self.started.append(helper)
            threading.Thread(target=self._serve, args=(helper,), daemon=True).start()

    def _serve(self, helper: Helper) -> None:
        """Give work to a helper for as long as it runs."""
        if not helper.ready():
            return
        runs = True
        while runs:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._over)
                if self._over:
                    return
                item = self._waiting.popleft()
                self._doing[item.key] = item, 0.0
            runs = helper.do(item, partial(self._heard, item))
            with self._changed:
                if runs:
                    self._finish(item)
                else:
                    # Not for another helper, which may die of it too.
                    del self._doing[item.key]
                    self._mine.append(item)
                self._changed.notify_all()

    def _heard(self, item: Item, share: float, _text: str = "") -> None:
        with self._changed:
            self._doing[item.key] = item, share

    def _finish(self, item: Item) -> None:
        del self._doing[item.key]
        self._finished += item.cost

    def share(
        self,
        items: Sequence[Item],
        own: Callable[[Item, ProgressCallback], None],
        progress: ProgressCallback,
    ) -> None:
        """Do all of this, together with the helpers that were started.

        What failed in a helper counts as done; whoever asks finds no result.

        Args:
            items: The work, in any order; the largest is begun first.
            own: Does a piece of work here.
            progress: Called for the work of all.
        """
        total = sum(item.cost for item in items) or 1.0
        told = 0.0

        def tell(text: str) -> None:
            nonlocal told
            if time.monotonic() - told < _EVERY:
                return
            told = time.monotonic()
            with self._changed:
                going = list(self._doing.values())
                done = self._finished + sum(each.cost * share for each, share in going)
            others = f" ({len(going)} processes)" if len(going) > 1 else ""
            progress(min(done / total, 1.0), text + others)

        with self._changed:
            self._finished = 0.0
            self._waiting.extend(sorted(items, key=lambda item: -item.cost))
            self._changed.notify_all()
        try:
            while self._left():
                item = self._taken()
                if item is None:
                    tell("waiting for the other processes")
                    continue

                def heard(share: float, text: str, item: Item = item) -> None:
                    self._heard(item, share)
                    tell(text)

                try:
                    own(item, heard)
                finally:
                    with self._changed:
                        self._finish(item)
        finally:
            with self._changed:
                self._waiting.clear()
                self._mine.clear()

    def _left(self) -> bool:
        """Whether anything is not finished yet."""
        with self._changed:
            return bool(self._mine or self._waiting or self._doing)

    def _taken(self) -> Item | None:
        """The next piece for this process; None after a while in which there was none."""
        with self._changed:
            if not self._mine and not self._waiting:
                self._changed.wait(_EVERY)
            if not self._mine and not self._waiting:
                return None
            item = (self._mine or self._waiting).popleft()
            self._doing[item.key] = item, 0.0
            return item

    def close(self) -> None:
        """End all helpers; returns when they are gone."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        for helper in self.started:
            helper.end()
        for helper in self.started:
            helper.gone()


def command(folder: Path, *options: str) -> list[str]:
    """What a helper runs.

    Args:
        folder: The run's.
        options: Of the hidden command.
    """
    return [sys.executable, "-m", "stagelens", "help-out", str(folder), *options]


def asked() -> int | None:
    """How many processes ``STAGELENS_PROCESSES`` asks for; None where it is not set.

    Raises:
        StageLensError: It is not a whole number of at least 1.
    """
    text = (os.environ.get(ASKED) or "").strip()
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise StageLensError(f"{ASKED} is {text!r}; give a whole number of at least 1")
    return int(text)


_allowed: dict[Path, Helpers] = {}


@contextmanager
def allowed(folder: Path, command: Sequence[str]) -> Iterator[Helpers]:
    """Let work on a run be shared with helpers for as long as the block runs; all end with it.

    Args:
        folder: The run's.
        command: What a helper runs.
    """
    before = dict(_allowed)
    made = _allowed[folder] = Helpers(command, asked())
    try:
        yield made
    finally:
        _allowed.clear()
        _allowed.update(before)
        made.close()


def of(folder: Path) -> Helpers | None:
    """The helpers that may work on a run; None where nobody allowed any."""
    return _allowed.get(folder)
