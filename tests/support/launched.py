"""Processes that share one job, as torchrun starts them, forked where all is imported already.

As with torchrun, the store by which they find each other is no process of theirs but its parent's.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

CONTEXT = multiprocessing.get_context("forkserver")
"""For every test that starts processes of its own: there is one fork server in a process, and what
it has imported is what was asked for last."""
CONTEXT.set_forkserver_preload(
    [
        "pytest",
        "torch._dynamo",  # by the first optimiser that is made
        "accelerate",
        "torch.distributed.fsdp",
        "stagelens.cli",
        "stagelens.trust.verification",
        "stagelens.recording.recorder",
        "stagelens.tasks.classification",
        "tests.support.small_trainings",
    ]
)

_stores: list[TCPStore] = []
"""Kept: a store that is collected takes its server along, while processes may still ask it."""


def start(count: int, work: Any, folder: Path, *more: Any) -> list[BaseProcess]:
    """Start ``work(rank, count, port, folder, *more)`` in ``count`` processes of one job."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    began: list[BaseProcess] = [
        CONTEXT.Process(target=work, args=(rank, count, store.port, folder, *more))
        for rank in range(count)
    ]
    for process in began:
        process.start()
    _stores.append(store)
    return began


def run(count: int, work: Any, folder: Path, *more: Any) -> list[int | None]:
    """As :func:`start`; waits for all, and gives the exit status of each."""
    began = start(count, work, folder, *more)
    for process in began:
        process.join()
    return [process.exitcode for process in began]


def as_launched(rank: int, count: int, port: int, folder: Path) -> None:
    """What a launcher makes of a new process, which prints into ``out-RANK`` and ``err-RANK``."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_CREAT | os.O_WRONLY), number)
    torch.set_num_threads(1)
