"""How much memory there is, and a refusal before an allocation that cannot fit."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator

import psutil

from stagelens.contracts import StageLensError

from . import cgroups

_RAN_OUT = ("out of memory", "can't allocate memory", "not enough memory")


def available() -> int:
    """Bytes that this process can still take: of the machine, its container and its own limit."""
    return max(0, min([int(psutil.virtual_memory().available), *_in_container(), *_of_process()]))


def check(needed: int, what: str, advice: str = "") -> None:
    """Refuse work that cannot fit into memory, before it takes any.

    Args:
        needed: Bytes that it takes at least.
        what: What takes them, to begin a sentence with.
        advice: What else to do about it, beside finding more memory.

    Raises:
        StageLensError: There is less; says how much is needed and how much there is.
    """
    if needed > (free := available()):
        raise StageLensError(
            f"{what} takes at least {amount(needed)} of memory, but only {amount(free)} are "
            "available here; stop other programs, or use a machine, or a limit, with more memory"
            f"{f', or {advice}' if advice else ''}"
        )


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on an accelerator."""
    # By name, as torch is not imported here. On the CPU it raises a plain RuntimeError instead.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _RAN_OUT)


def amount(size: int) -> str:
    """Bytes in words, for instance ``6.4 GB``."""
    for unit, one in (("GB", 10**9), ("MB", 10**6)):
        if size >= one:
            return f"{size / one:,.1f} {unit}"
    return f"{size:,} bytes"


_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([MG])(i?)B\s*", re.IGNORECASE)


def bytes_of(text: str) -> int | None:
    """Bytes of an amount such as ``500MB``, ``4 GB`` or ``2GiB``; None where it is none."""
    found = _AMOUNT.fullmatch(text)
    if found is None:
        return None
    power = {"M": 2, "G": 3}[found[2].upper()]
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def _in_container() -> Iterator[int]:
    """What the control groups of this process leave it."""
    for group, version in cgroups.groups("memory"):
        names, cached = ("memory.max", "memory.current"), "inactive_file"
        if version == 1:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            cached = "total_inactive_file"
        with contextlib.suppress(OSError, ValueError, KeyError):
            most, used = (int((group / name).read_text()) for name in names)
            stat = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
            # Cached files are given back when memory is short.
            yield most - used + int(stat[cached])


def _of_process() -> Iterator[int]:
    """What a limit on this process leaves it, such as that of a job of the dashboard."""
    if not sys.platform.startswith("linux"):
        return
    import resource  # there is none on Windows

    taken = psutil.Process().memory_info()
    for kind, own in ((resource.RLIMIT_DATA, taken.data), (resource.RLIMIT_AS, taken.vms)):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            yield limit - own
