"""How much longer work takes here at present than on an idle machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


def slowdown(own: int = 0) -> float:
    """How many times as long as on an idle machine one more piece of work takes now; at least 1.

    Programs that want more cores than there are share them evenly, so one more of them gets
    ``cores / (programs + 1)`` of a core.

    Args:
        own: Programs of ours that are known to run. The load average of the last minute does not
            know those that have just begun.
    """
    try:
        others = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none; a container may hide it
        others = 0.0
    return max(1.0, (max(others, own) + 1) / (os.cpu_count() or 1))


@dataclass
class Load:
    """How busy the machine is: seconds that go by for one of the processor's.

    Steps are timed by the processor's clock, which other programs do not disturb. What they add is
    taken from everything that was timed together: on a busy machine a program waits its turn for
    longer than a short step takes, and a few such steps tell nothing.

    Attributes:
        wall: Seconds that went by.
        processor: Seconds that this process computed in them, over all of its threads.
    """

    wall: float = 0.0
    processor: float = 0.0

    @property
    def factor(self) -> float:
        """What seconds of the processor are multiplied by."""
        return self.wall / self.processor if self.processor else 1.0

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Count the block."""
        wall, processor = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall += time.perf_counter() - wall
            self.processor += time.process_time() - processor
