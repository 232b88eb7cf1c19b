"""Random numbers around a step: where the generators stand, and whether they moved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_cpu_state = torch.default_generator.get_state
"""Read at every pass and update; it answers quicker than ``torch.get_rng_state``."""


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Device name to the state of its generator, as it is now."""
    states = {"cpu": _cpu_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def same_states(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether nothing was drawn between two moments."""
    for device, state in a.items():
        # As bytes on the CPU: several times quicker than torch.equal for so few of them.
        if state.numpy().tobytes() != b[device].numpy().tobytes():
            return False
    return True


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, the training loop draws its own numbers afterwards."""
    others = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(others[0])
            np.random.set_state(others[1])
