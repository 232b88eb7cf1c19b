"""Clipping of weights in half precision, whose norm has few digits, is not taken for another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.loops import Training, make_batches, make_task, refused


def trained(path: Path, dtype: torch.dtype, clipped_to: float) -> int:
    """Updates of a training that declares a norm of 0.3 and clips to another one."""
    training = Training(path, make_task({"kind": "mlp", "hidden": [64, 64]}))
    training.model.to(dtype)
    training.optimizer = torch.optim.SGD(training.model.parameters(), lr=0.05)
    with training.stage(clip_norm=0.3) as stage:
        for number, (images, labels) in enumerate(make_batches(20)):
            batch = images.to(dtype), labels
            loss = training.loss(batch)
            training.optimizer.zero_grad()
            loss.backward()
            # The first update is replayed as a whole, so it has to be as declared.
            nn.utils.clip_grad_norm_(training.model.parameters(), clipped_to if number else 0.3)
            training.update()
            stage.step(batch, loss)
    return training.updates


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_clipped_norm_is_what_was_declared(dtype: torch.dtype, tmp_path: Path) -> None:
    assert trained(tmp_path / "run", dtype, 0.3) == 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_another_norm_is_still_noticed(dtype: torch.dtype, tmp_path: Path) -> None:
    with refused("above the declared clip_norm=0.3"):
        trained(tmp_path / "run", dtype, 0.36)
