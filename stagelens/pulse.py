"""Whether the processes of a job still move: each shows its pulse, and looks at the others'.

A process that ends closes its connections, which the others notice at once. One that is frozen
(stopped, on a host that sleeps or is cut off) closes nothing, and would be waited for.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

EVERY = 10.0
"""Seconds between two beats."""

SILENCE = 600.0
"""Seconds without a beat of another process, after which it counts as frozen. Clocks that stand
still while a host sleeps do not count that time, so a laptop may be closed and opened again."""


class Store(Protocol):
    """What all processes of a job can write to and read from; ``torch.distributed`` has several."""

    def set(self, key: str, value: str) -> None:
        """Write a value."""

    def get(self, key: str) -> bytes:
        """Read a value; waits until there is one."""

    def check(self, keys: list[str]) -> bool:
        """Whether these have values."""


class Pulse:
    """The pulse of one process, and its ear for the others'.

    Args:
        store: Shared by the processes.
        number: Of this process, from 0.
        count: How many there are.
        frozen: Called once, with a sentence, when another process is not heard of any more.
        clock: Seconds that only count while this host is awake.
    """

    def __init__(
        self,
        store: Store,
        number: int,
        count: int,
        frozen: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._number, self._count = store, number, count
        self._frozen, self._clock = frozen, clock
        self._beats = 0
        self._beaten = clock()
        self._heard = {other: (b"", clock()) for other in range(count) if other != number}
        self._over = threading.Event()
        # Two, because a store whose process is frozen does not answer either.
        self._threads = [
            threading.Thread(target=work, name="pulse", daemon=True)
            for work in (self._beat_on, self._listen_on)
        ]

    def start(self) -> None:
        """Beat until :meth:`stop`."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No beat any more."""
        self._over.set()

    def _beat_on(self) -> None:
        try:
            while not self._over.is_set():
                self.beat()
                self._over.wait(EVERY)
        except RuntimeError:
            self.stop()  # the store went with its process: that one ended, which is noticed anyway

    def _listen_on(self) -> None:
        while not self._over.wait(EVERY):
            if (name := self.frozen()) is not None:
                self._frozen(
                    f"{name} has not been heard of for {SILENCE / 60:.0f} minutes: it was stopped, "
                    "or its host sleeps or is cut off. What was finished is kept; start the same "
                    "command again to go on from it"
                )
                return

    def beat(self) -> None:
        """Show one's own pulse and look at the others'."""
        self._beats += 1
        self._store.set(f"pulse/{self._number}", str(self._beats))
        for other, (before, _) in self._heard.items():
            key = f"pulse/{other}"
            found = self._store.get(key) if self._store.check([key]) else before
            if found != before:
                self._heard[other] = (found, self._clock())
        self._beaten = self._clock()

    def frozen(self) -> str | None:
        """Who has not been heard of for too long; None where all are."""
        now = self._clock()
        if now - self._beaten > SILENCE:
            return "the process that the others meet at"
        for other, (_, when) in self._heard.items():
            if now - when > SILENCE:
                return f"process {other + 1} of {self._count}"
        return None


def end_here(message: str) -> None:
    """End this process at once: its main thread waits for an answer that does not come."""
    sys.stdout.flush()
    print(f"stagelens: {message}", file=sys.stderr, flush=True)
    os._exit(1)
