"""Thinned steps: in the mean, their gradient is that of the recorded step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import stagelens
from stagelens.replaying.coarse import CoarseModel
from stagelens.replaying.coarse_plan import coarse_steps
from stagelens.runs.run import Run
from stagelens.runs.step_records import StepRecord
from tests.support.small_runs import SHAPE, make_task

EQUAL, UNEQUAL = (4.0,) * 4, (1.5, 8.0, 3.0, 40.0)


def _recorded(path: Path, steps: Sequence[Sequence[float]]) -> Run:
    """One stage of steps whose micro-batches have 8 examples each, and these divisors."""
    torch.manual_seed(0)
    task = make_task("linear")
    model = task.build_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)  # the weights stay, so gradients compare
    with stagelens.Recorder(path, task, name="small").stage(
        "only", model=model, optimizer=optimizer
    ) as stage:
        for divisors in steps:
            optimizer.zero_grad()
            for place, divisor in enumerate(divisors):
                # Micro-batches differ in kind, so that leaving one out would be seen.
                x = torch.randn(8, *SHAPE, dtype=torch.float64) + place
                batch = (x, torch.full((8,), place % 3))
                loss = task.loss(model, batch)
                (loss / divisor).backward()
                if place == len(divisors) - 1:
                    optimizer.step()
                stage.step(batch, loss, divisor)
    return stagelens.open_run(path, task)


class _Repeated:
    """Recorded steps of which the same few come again and again."""

    def __init__(self, steps: Sequence[StepRecord], times: int) -> None:
        self._steps, self._times = steps, times

    def __len__(self) -> int:
        return len(self._steps) * self._times

    def __getitem__(self, number: int) -> StepRecord:
        return self._steps[number % len(self._steps)]

    facts = __getitem__


def _gradient(run: Run, divisors: Sequence[float], record: StepRecord) -> torch.Tensor:
    """Of the recorded step, by torch alone."""
    model = run.task.build_model()
    model.load_state_dict(dict(run.last.start().model))
    for micro, divisor in zip(record.batches or (), divisors, strict=True):
        x, y = micro.batch
        (torch.nn.functional.cross_entropy(model(x), y) / divisor).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("divisors", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("thin", [2, 4, 8])
def test_thinned_steps_have_the_mean_gradient_and_loss_of_the_recorded_one(
    thin: int, divisors: tuple[float, ...], tmp_path: Path
) -> None:
    run = _recorded(tmp_path / "run", [divisors])
    record = run.last.read_steps()[0]
    model = CoarseModel(run.task, run.last, run.last.start())
    # As often as it takes for every example to be kept equally often: the mean is then no estimate.
    steps: Any = _Repeated([record], 4 * thin)
    gradients, losses = [], []
    for step in coarse_steps(steps, 1, thin):
        assert step.examples == 32 / thin
        found = model.gradients(step.batches, 1, step.scale(1))
        gradients.append(torch.cat([found[name].flatten() for name in model.parameters]))
        losses.append(model.loss)
    mean = torch.stack(gradients).mean(0)
    torch.testing.assert_close(mean, _gradient(run, divisors, record), rtol=1e-10, atol=1e-12)
    assert sum(losses) / len(losses) == pytest.approx(record.loss, rel=1e-10)


def test_a_step_whose_batches_were_not_kept_has_its_own_weight(tmp_path: Path) -> None:
    own, other = (2.0, 2.0), (4.0, 8.0, 8.0)  # weights 1 and 1/2
    run = _recorded(tmp_path / "run", [other, own])
    steps = run.last.read_steps()
    model = CoarseModel(run.task, run.last, run.last.start())
    _, step = coarse_steps(steps, 1, 1, kept=lambda _: 0)
    found = model.gradients(step.batches, 1, step.scale(1))
    gradient = torch.cat([found[name].flatten() for name in model.parameters])
    torch.testing.assert_close(gradient, 2 * _gradient(run, other, steps[0]))
