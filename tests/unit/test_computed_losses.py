"""Watching a Trainer's ``compute_loss``: put back as it was, whoever wrapped it since."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch

from stagelens.recording.computed_losses import ComputedLosses


class Computing(SimpleNamespace):
    """As much of a Trainer as is watched."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], **_: Any) -> torch.Tensor:
        return (model * inputs["x"]).sum()


def told(error: Exception) -> None:
    raise AssertionError(error)


def once(trainer: Computing) -> torch.Tensor:
    weight = torch.ones(3, requires_grad=True)
    loss: torch.Tensor = trainer.compute_loss(weight, {"x": torch.arange(3.0)})
    loss.backward()
    return loss


def test_a_function_wrapped_around_ours_stays() -> None:
    trainer: Any = Computing()
    watched = ComputedLosses(trainer, told)
    ours, calls = trainer.compute_loss, []

    @functools.wraps(ours)  # which copies attributes too
    def logged(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return ours(*args, **kwargs)

    trainer.compute_loss = logged
    once(trainer)
    assert watched.take().divisor == 1
    watched.close()
    assert trainer.compute_loss is logged
    assert [once(trainer).item() for _ in range(2)] == [3.0, 3.0]  # ours is below, and looks away
    assert len(calls) == 3


def test_a_function_of_the_users_comes_back() -> None:
    trainer: Any = Computing()
    own = trainer.compute_loss = functools.partial(Computing.compute_loss, trainer)
    ComputedLosses(trainer, told).close()
    assert trainer.compute_loss is own
    del trainer.compute_loss
    ComputedLosses(trainer, told).close()
    assert "compute_loss" not in vars(trainer)
