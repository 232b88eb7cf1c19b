"""How much longer work takes here at present than on an idle machine."""

from __future__ import annotations

import os


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
