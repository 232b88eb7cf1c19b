"""Which device computes: a GPU where there is one, unless the user asks for another.

Forward passes and coarse replays may run anywhere. A replay, and derivatives along it, run where
the stage was recorded, if that device is there: only on it are the bits the recorded ones.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from stagelens.contracts import StageLensError

from . import processes
from .machine import processor

AUTO = "auto"
_NAMES = re.compile(r"auto|cpu|cuda(:\d+)?")


def asked() -> str:
    """What ``STAGELENS_DEVICE`` says, which ``--device`` sets: auto, cpu, cuda or cuda:N.

    Raises:
        StageLensError: It is none of these, or no such device is there.
    """
    name = os.environ.get("STAGELENS_DEVICE") or AUTO
    if not _NAMES.fullmatch(name):
        raise StageLensError(f"there is no device {name!r}; use auto, cpu, cuda or cuda:N")
    if name.startswith("cuda"):
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= there:
            raise StageLensError(
                f"device {name} is not there: torch sees {there} GPUs; use --device cpu, or a "
                "torch that is built for the GPU"
            )
    return name


def computing() -> torch.device:
    """Where forward passes and coarse replays run: each process of a host on its own GPU."""
    name = asked()
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if ":" in name:
        return torch.device(name)
    # More processes than GPUs share them in turn.
    return torch.device("cuda", processes.local_rank() % torch.cuda.device_count())


def replaying(recorded: str) -> torch.device:
    """Where a stage is replayed.

    Args:
        recorded: The type of the device that it was recorded on.
    """
    return computing() if recorded == "cuda" else torch.device("cpu")


@lru_cache
def arithmetic(device: torch.device) -> str:
    """Everything but the number of threads that the last bits of a computation depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    # Builds of one torch version differ in the libraries that multiply matrices.
    build = hashlib.sha256(torch.__config__.show().encode()).hexdigest()[:8]
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"torch {torch.__version__} ({build}), {platform.platform()}, {processor()}, "
        f"{capability}, {name}"
    )


def restore_random(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Draw the random numbers of a recorded forward pass again.

    On a device other than the recorded one the numbers differ, but are the same every time: twins
    that are compared see the same dropout.
    """
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if device.type != "cuda":
        return
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif "cpu" in states:
        # From the recorded state, so that every pass has numbers of its own.
        seed = hashlib.sha256(states["cpu"].numpy().tobytes()).digest()[:7]
        with torch.cuda.device(device):
            torch.cuda.manual_seed(int.from_bytes(seed))


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Convolutions on a GPU in full float32, and deterministic; no change on a CPU."""
    if device.type != "cuda":
        yield
        return
    # TF32, cuDNN's default, keeps 10 bits of mantissa; benchmark chooses algorithms by timing.
    with torch.backends.cudnn.flags(allow_tf32=False, deterministic=True, benchmark=False):
        yield
