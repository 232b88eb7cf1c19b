"""How much computing a stage took, against the textbook's count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stagelens.contracts import Refused
from stagelens.replaying.operations import operations
from tests.support.loops import SHAPE, Training, make_batches, make_task, train

HIDDEN = 6
INPUTS, CLASSES = SHAPE[0] * SHAPE[1] * SHAPE[2], 3


def of_a_pass(examples: int) -> int:
    """Two per weight and example forward, two for its gradient, two for its input's if needed."""
    first, second = INPUTS * HIDDEN, HIDDEN * CLASSES
    return 2 * examples * (first + second) + 2 * examples * (first + 2 * second)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_pass_of_a_stage_is_counted(accumulation: int, tmp_path: Path) -> None:
    training = Training(tmp_path / "run", make_task({"kind": "mlp", "hidden": [HIDDEN]}))
    batches = make_batches(8, size=8)
    with training.stage(accumulation=accumulation) as stage:
        train(
            training.task, training.model, training.optimizer, batches,
            stage=stage, accumulation=accumulation,
        )  # fmt: skip
    run = training.recorder.run()
    found = operations(run.task, run.last)
    assert found.total == 8 * of_a_pass(8)
    assert found.counted == 3


def test_steps_with_smaller_batches_take_less(tmp_path: Path) -> None:
    training = Training(tmp_path / "run", make_task({"kind": "mlp", "hidden": [HIDDEN]}))
    sizes = [8, 2, 4, 8, 6, 8]
    batches = [make_batches(1, seed, size)[0] for seed, size in enumerate(sizes)]
    with training.stage() as stage:
        train(training.task, training.model, training.optimizer, batches, stage=stage)
    run = training.recorder.run()
    assert operations(run.task, run.last, 2).total == pytest.approx(of_a_pass(sum(sizes)))


def test_what_is_frozen_takes_no_gradient(tmp_path: Path) -> None:
    training = Training(tmp_path / "run", make_task({"kind": "mlp", "hidden": [HIDDEN]}))
    training.model[1].requires_grad_(False)  # type: ignore[index]
    left = [p for p in training.model.parameters() if p.requires_grad]
    training.optimizer = torch.optim.SGD(left, lr=0.1)
    with training.stage() as stage:
        train(training.task, training.model, training.optimizer, make_batches(3), stage=stage)
    run = training.recorder.run()
    # Neither the first layer's weights nor, therefore, the second one's inputs.
    passed = 2 * 8 * (INPUTS * HIDDEN + HIDDEN * CLASSES) + 2 * 8 * HIDDEN * CLASSES
    assert operations(run.task, run.last).total == 3 * passed


def test_without_batches_nothing_is_counted(tmp_path: Path) -> None:
    training = Training(tmp_path / "run")
    with training.stage(keep_batches="none") as stage:
        train(training.task, training.model, training.optimizer, make_batches(3), stage=stage)
    run = training.recorder.run()
    with pytest.raises(Refused, match="batches were not all kept"):
        operations(run.task, run.last)
