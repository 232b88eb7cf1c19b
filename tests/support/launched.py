"""Processes that share one job, as torchrun starts them, forked where all is imported already.

As with torchrun, the store by which they find each other is no process of theirs but its parent's.
``python -m tests.support.launched`` is such a process: what it is to call comes over its input.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

ROOT = Path(__file__).resolve().parents[2]

_stores: list[TCPStore] = []
"""Kept: a store that is collected takes its server along, while processes may still ask it."""


def begin(work: Any, *arguments: Any, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """Call ``work(*arguments)``, a function of a module, in a process of its own."""
    command = [sys.executable, "-m", "tests.support.launched"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=stdout)
    assert process.stdin is not None
    with process.stdin as given:
        pickle.dump((work, arguments), given)
    return process


def start(count: int, work: Any, folder: Path, *more: Any) -> list[subprocess.Popen[bytes]]:
    """Start ``work(rank, count, port, folder, *more)`` in ``count`` processes of one job."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _stores.append(store)
    return [begin(work, rank, count, store.port, folder, *more) for rank in range(count)]


def run(count: int, work: Any, folder: Path, *more: Any) -> list[int]:
    """As :func:`start`; waits for all, and gives the exit status of each."""
    return [process.wait() for process in start(count, work, folder, *more)]


def as_launched(rank: int, count: int, port: int, folder: Path) -> None:
    """What a launcher makes of a new process, which prints into ``out-RANK`` and ``err-RANK``."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_CREAT | os.O_WRONLY), number)
    torch.set_num_threads(1)


if __name__ == "__main__":
    work, arguments = pickle.load(sys.stdin.buffer)
    work(*arguments)
