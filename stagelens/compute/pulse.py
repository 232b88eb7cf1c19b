"""Whether the processes of a job still run: each shows its pulse and watches the others'.

A process that ends closes its connections, which the others notice at once. One that is frozen
(stopped, on a host that sleeps or is cut off) closes nothing, and the others would wait for it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

EVERY = 10.0
"""Seconds between two beats."""

SILENCE = 60
"""Beats of this process without one of another, after which the other counts as frozen. In beats,
so that time in which this process stands still too (the whole job was stopped, or its host sleeps)
does not count, nor does time in which the store does not answer."""

_SPEAKER = 60.0
"""Seconds that the process which reports it has for that, before the others end."""


class Store(Protocol):
    """What all processes of a job can write to and read from; ``torch.distributed`` has several."""

    def set(self, key: str, value: str) -> None:
        """Write a value."""

    def get(self, key: str) -> bytes:
        """Read a value; waits until there is one."""

    def check(self, keys: list[str]) -> bool:
        """Whether these have values."""


class Pulse:
    """The pulse of one process, and its watch over the others'.

    Args:
        store: Shared by the processes.
        number: Of this process, from 0.
        count: How many there are.
        frozen: Called once with a sentence when another process is no longer heard from, in the
            first process that is not frozen itself; in the others a while later, with an empty one.
    """

    def __init__(
        self, store: Store, number: int, count: int, frozen: Callable[[str], None]
    ) -> None:
        self._store, self._number, self._count = store, number, count
        self._frozen = frozen
        self._beats = 0
        self._heard = {other: b"" for other in range(count) if other != number}
        self._silent = dict.fromkeys(self._heard, 0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="pulse", daemon=True)

    def start(self) -> None:
        """Beat until :meth:`stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Stop beating."""
        self._over.set()
        # Not for long: it may be waiting for a store that does not answer any more.
        self._thread.join(1.0)

    def _beat_on(self) -> None:
        try:
            while not self._over.is_set():
                self.beat()
                if silent := self.silent():
                    self._tell(silent)
                    return
                self._over.wait(EVERY)
        except RuntimeError:
            return  # the store is gone with its process, whose end is noticed anyway

    def beat(self) -> None:
        """Show this process's pulse and look at the others'."""
        self._beats += 1
        self._store.set(f"pulse/{self._number}", str(self._beats))
        for other, before in self._heard.items():
            key = f"pulse/{other}"
            # get would wait for a process that never came.
            found = self._store.get(key) if self._store.check([key]) else before
            self._silent[other] = self._silent[other] + 1 if found == before else 0
            self._heard[other] = found

    def silent(self) -> list[int]:
        """The processes that have not been heard from for too long."""
        return [other for other, beats in self._silent.items() if beats > SILENCE]

    def _tell(self, silent: Sequence[int]) -> None:
        # The first that is not frozen speaks for all; the others give it time and end silently.
        others = [n for n in range(self._number) if n not in silent]
        if others and not self._over.wait(_SPEAKER):
            self._frozen("")
        if others:
            return
        who = " and ".join(f"{other + 1}" for other in silent)
        self._frozen(
            f"process {who} of {self._count} has not been heard from for "
            f"{SILENCE * EVERY / 60:.0f} minutes: it was stopped, or its host sleeps or is "
            "unreachable. What was finished is kept; start the same command again to continue "
            "from it"
        )


def end_here(message: str) -> None:
    """End this process at once: its main thread waits for an answer that will not come.

    Args:
        message: Printed unless empty, also by a process that prints nothing else.
    """
    try:
        if message and (err := sys.__stderr__) is not None:
            cursor = "\x1b[?25h" if err.isatty() else ""  # a bar of progress hides it
            print(f"{cursor}stagelens: {message}", file=err, flush=True)
    finally:
        # sys.exit would only end this thread, and exit handlers may wait for the frozen process.
        os._exit(1)
