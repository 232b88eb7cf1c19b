"""Which machine this is, told without torch: times measured on one say little of another."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import lru_cache
from pathlib import Path


@lru_cache
def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:  # on Linux, platform.processor() says no more than x86_64
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def fingerprint() -> str:
    """The same on one machine and for one device, another elsewhere; names neither."""
    device = os.environ.get("STAGELENS_DEVICE") or "auto"
    parts = (platform.node(), platform.machine(), processor(), str(os.cpu_count()), device)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
