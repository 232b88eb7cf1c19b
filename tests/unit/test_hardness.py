"""How hard a stage trained, from its two ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stagelens.estimators.hardness import straightness

RATE, STEPS = 0.01, 20


class _Steps(list[Any]):
    def facts(self, number: int) -> Any:
        return self[number]


def _stage(change: torch.Tensor) -> Any:
    group = SimpleNamespace(parameters=["w"])
    steps = _Steps([SimpleNamespace(groups=[{"lr": RATE}])] * STEPS)
    return SimpleNamespace(
        start=lambda: SimpleNamespace(model={"w": torch.ones_like(change)}),
        end=lambda: SimpleNamespace(model={"w": 1 + change}),
        read_steps=lambda: steps,
        optimizer=SimpleNamespace(name="AdamW", groups=[group]),
        facts=SimpleNamespace(trainable=["w"]),
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_weights_that_took_nothing_back_moved_straight(share: float) -> None:
    assert straightness(_stage(torch.full((50,), share * RATE * STEPS))) == pytest.approx(share)


def test_weights_that_did_not_train_do_not_count() -> None:
    change = torch.full((50,), 0.5 * RATE * STEPS)
    still = torch.full((500,), 1e-4 * RATE * STEPS)
    assert straightness(_stage(torch.cat([change, still]))) == pytest.approx(0.5, rel=1e-4)
