"""Loops that change after a stage's first step are told, by name, and cost the stage its replay."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagelens.contracts import RecordingWarning, Refused
from stagelens.recording import checked_steps
from stagelens.replaying.replay import check_replayable
from stagelens.replaying.reproduction import measure_deviation
from tests.support.loops import (
    BATCH_NORM,
    Batch,
    Training,
    differing,
    make_batches,
    make_task,
    refused,
)

STEPS = 24
WIDE = {"kind": "mlp", "hidden": [12, 12], "dropout": 0.2}


class Loop:
    """A loop as it should be; each subclass changes one thing from a step on."""

    settings: dict[str, Any] = {}  # noqa: RUF012 - of the stage
    since = 10

    def loss(self, training: Training, batch: Batch, step: int) -> Tensor:
        """What is backpropagated, and noted."""
        return training.loss(batch)

    def before_update(self, training: Training, step: int) -> None:
        """Between backward and the optimiser."""

    def before_step(self, training: Training, step: int) -> None:
        """Before the forward pass."""

    def run(self, training: Training, **settings: Any) -> None:
        with training.stage(**self.settings, **settings) as stage:
            for number, batch in enumerate(make_batches(STEPS), 1):
                self.before_step(training, number)
                loss = self.loss(training, batch, number)
                training.optimizer.zero_grad()
                loss.backward()
                self.before_update(training, number)
                training.update()
                stage.step(batch, loss)


class AnotherLoss(Loop):
    says = ("of stage 'first': the loss is", "Train on the loss of the task")

    def loss(self, training: Training, batch: Batch, step: int) -> Tensor:
        smoothing = 0.1 if step >= self.since else 0.0
        outputs = training.model(batch[0])
        return nn.functional.cross_entropy(outputs, batch[1], label_smoothing=smoothing)


class ClassWeights(AnotherLoss):
    def loss(self, training: Training, batch: Batch, step: int) -> Tensor:
        weights = torch.tensor([1.0, 2.0, 1.0]) if step >= self.since else None
        return nn.functional.cross_entropy(training.model(batch[0]), batch[1], weights)


class Augmentation(AnotherLoss):
    since = 9

    def loss(self, training: Training, batch: Batch, step: int) -> Tensor:
        return training.loss((batch[0].flip(-1) if step >= self.since else batch[0], batch[1]))


class SmallerClipNorm(Loop):
    settings = {"clip_norm": 0.1}  # noqa: RUF012
    says = ("of stage 'first': the gradients are 0.5 times those of the recorded settings",)

    def before_update(self, training: Training, step: int) -> None:
        norm = 0.05 if step >= self.since else 0.1
        nn.utils.clip_grad_norm_(training.model.parameters(), norm)


class ClampedLayer(Loop):
    says = (
        "of stage 'first': the gradient that the optimiser received is not that of the recorded "
        "batch and loss (largest deviation in 1.weight",
    )

    def before_update(self, training: Training, step: int) -> None:
        if step >= self.since:
            training.model[1].weight.grad.clamp_(-1e-2, 1e-2)  # type: ignore[index, union-attr]


class NoisyLayer(ClampedLayer):
    def before_update(self, training: Training, step: int) -> None:
        if step >= self.since:
            gradient = training.model[1].weight.grad  # type: ignore[index]
            generator = torch.Generator().manual_seed(step)
            gradient += 1e-2 * torch.randn(gradient.shape, generator=generator)


class ZeroedMomentum(Loop):
    says = ("the optimiser's state was replaced within the stage, or changed", "after update 11)")

    def before_step(self, training: Training, step: int) -> None:
        if step == 12:
            for state in training.optimizer.state.values():
                state["momentum_buffer"].zero_()


class ReplacedMomentum(ZeroedMomentum):
    def before_step(self, training: Training, step: int) -> None:
        if step == 12:
            for state in training.optimizer.state.values():
                state["momentum_buffer"] = torch.zeros_like(state["momentum_buffer"])


class ForgottenState(ZeroedMomentum):
    def before_step(self, training: Training, step: int) -> None:
        if step == 12:
            training.optimizer.state.clear()


class UncountedMomentum(Loop):
    """Torch does not count writes through ``.data``."""

    says = ("the optimiser's state was replaced within the stage, or changed",)

    def before_step(self, training: Training, step: int) -> None:
        if step >= self.since:
            for state in training.optimizer.state.values():
                state["momentum_buffer"].data.mul_(0.5)


class ForAWhile(Loop):
    says = ("1.weight was unfrozen within the stage",)

    def run(self, training: Training, **settings: Any) -> None:
        training.model[1].weight.requires_grad_(False)
        super().run(training, **settings)

    def before_step(self, training: Training, step: int) -> None:
        training.model[1].weight.requires_grad_(5 <= step < 8)


CHANGES = [
    AnotherLoss,
    ClassWeights,
    Augmentation,
    SmallerClipNorm,
    ClampedLayer,
    NoisyLayer,
    ZeroedMomentum,
    ReplacedMomentum,
    ForgottenState,
    UncountedMomentum,
    ForAWhile,
]


@pytest.fixture
def wide(tmp_path: Path) -> Training:
    return Training(tmp_path / "run", make_task(WIDE))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_told_where_it_shows(change: Callable[[], Any], wide: Training) -> None:
    loop = change()
    with refused(*loop.says):
        loop.run(wide)


@pytest.mark.parametrize("since", [10, STEPS])
def test_a_change_goes_on_with_the_boundaries_only(since: int, wide: Training) -> None:
    loop = AnotherLoss()
    loop.since = since
    with pytest.warns(RecordingWarning, match="stage 'first' cannot be replayed.*the loss is"):
        loop.run(wide, on_problem="warn")
    assert wide.updates == STEPS  # the training was not stopped
    run = wide.recorder.run()
    assert differing(run.last.end().model, wide.model.state_dict()) == []
    assert (run.last.steps, run.last.replayable) == (STEPS, False)
    assert len(run.last.table()["loss"]) == STEPS
    assert "of stage 'first': the loss is" in str(run.last.facts.problem)
    assert "cannot be replayed" in run.problems[0]
    with refused("because of what was found while it was recorded", by=Refused):
        check_replayable([run.last])


@pytest.mark.parametrize(
    ("small", "copied", "found"),
    [(2**22, 2**30, True), (0, 2**30, True), (0, 0, False)],
    ids=["small", "larger", "too large"],
)
def test_the_last_step_of_all_but_very_large_models_is_checked(
    small: int, copied: int, found: bool, wide: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_steps, "_SMALL_BYTES", small)
    monkeypatch.setattr(checked_steps, "_COPIED_BYTES", copied)
    loop = NoisyLayer()
    loop.since = STEPS
    with refused(f"step {STEPS} {loop.says[0]}") if found else nullcontext():
        loop.run(wide)
    # Checks at growing distances are made of any model.
    assert found or len(wide.recorder.run().last.facts.checked) >= 3


def test_a_gradient_that_is_changed_once_shortly_before_the_end_is_found(wide: Training) -> None:
    """Of those steps no gradient is held any more: the updates are made again without."""

    class Once(NoisyLayer):
        def before_update(self, training: Training, step: int) -> None:
            if step == STEPS - 2:
                super().before_update(training, step)

    with refused("Or gradients were changed before the optimiser received them, from step"):
        Once().run(wide)


def test_gradients_that_are_only_looked_at_are_no_change(wide: Training) -> None:
    """Of another loss, by ``torch.autograd.grad``: hooks of tensors run, ``.grad`` is untouched."""

    class Looked(Loop):
        def before_update(self, training: Training, step: int) -> None:
            squares = [(weight**2).sum() for weight in training.model.parameters()]
            torch.autograd.grad(torch.stack(squares).sum(), list(training.model.parameters()))

    Looked().run(wide)
    assert measure_deviation(wide.recorder.run().task, wide.recorder.run().last).bitwise


def test_a_training_goes_on_where_there_is_no_memory_for_copies(
    wide: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(checked_steps.CheckedSteps, "_copied_weights", full)
    Loop().run(wide)
    assert wide.recorder.run().last.facts.checked == [1]


def test_parameters_that_only_take_part_in_clipping(tmp_path: Path) -> None:
    """Nobody clears their gradients, so they grow from step to step."""
    training = Training(tmp_path / "run", make_task(WIDE))
    *body, head = training.model
    training.optimizer = torch.optim.SGD([p for m in body for p in m.parameters()], lr=0.1)
    with training.stage(clip_norm=0.1) as stage:
        for batch in make_batches(6):
            loss = training.loss(batch)
            training.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(training.model.parameters(), 0.1)
            training.update()
            stage.step(batch, loss)
    assert head.weight.grad is not None
    run = training.recorder.run()
    assert measure_deviation(run.task, run.last).bitwise


def test_a_problem_of_one_stage_leaves_the_others_alone(wide: Training) -> None:
    with pytest.warns(RecordingWarning):
        AnotherLoss().run(wide, on_problem="warn")
    with wide.stage("second") as stage:
        for batch in make_batches(3, seed=1):
            wide.step(batch, stage)
    run = wide.recorder.run()
    assert [s.replayable for s in run.stages] == [False, True]
    assert measure_deviation(run.task, run.last).bitwise


def test_a_last_update_of_fewer_batches_may_be_divided_otherwise(wide: Training) -> None:
    def run(divide_by_own_size: bool, name: str) -> None:
        batches = make_batches(10)
        with wide.stage(name, accumulation=4) as stage:
            for number, batch in enumerate(batches):
                parts = len(batches[number - number % 4 :][:4]) if divide_by_own_size else 4
                loss = wide.loss(batch)
                (loss / parts).backward()
                if number % 4 == 3 or number == len(batches) - 1:
                    wide.update()
                    wide.optimizer.zero_grad()
                stage.step(batch, loss)

    run(False, "as declared")
    wide.optimizer = torch.optim.SGD(wide.model.parameters(), lr=0.05)
    with refused("step 3 of stage 'otherwise': the gradients are 2 times", "2 of 4 micro-batches"):
        run(True, "otherwise")


@pytest.mark.parametrize("keep", ["all", 4])
def test_a_loop_that_does_not_change_is_checked_to_its_end(keep: str | int, wide: Training) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RecordingWarning)
        Loop().run(wide, keep_batches=keep)
    checked = wide.recorder.run().last.facts.checked
    last_kept = STEPS if keep == "all" else STEPS - 3
    assert (checked[0], checked[-1]) == (1, last_kept)
    assert 3 <= len(checked) <= 12
    assert checked == sorted(set(checked))


def test_gradients_that_are_filled_in_place_are_checked_too(wide: Training) -> None:
    """As ``zero_grad(set_to_none=False)`` leaves them: those of the last step may be gone."""
    with wide.stage() as stage:
        for batch in make_batches(6):
            loss = wide.loss(batch)
            loss.backward()
            wide.update()
            for parameter in wide.model.parameters():
                parameter.grad.data.zero_()  # type: ignore[union-attr]
            stage.step(batch, loss)
    assert wide.recorder.run().last.facts.checked[-1] == 6


def test_checks_draw_no_random_numbers_of_the_trainings(wide: Training, tmp_path: Path) -> None:
    ends = []
    for recorded in (True, False):
        training = wide if recorded else Training(tmp_path / "other", make_task(WIDE))
        torch.manual_seed(3)
        for batch in [] if recorded else make_batches(STEPS):
            loss = training.loss(batch)
            training.optimizer.zero_grad()
            loss.backward()
            training.update()
        if recorded:
            Loop().run(training)
        ends.append((training.model.state_dict(), torch.rand(1)))
    assert differing(ends[0][0], ends[1][0]) == []
    assert torch.equal(ends[0][1], ends[1][1])


Kind = Callable[..., torch.optim.Optimizer]
STEADY: list[tuple[dict[str, Any], Kind, dict[str, Any], dict[str, Any]]] = [
    (BATCH_NORM, torch.optim.AdamW, {"fused": True}, {}),
    (BATCH_NORM, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, {"accumulation": 3}),
    (WIDE, torch.optim.Adam, {"foreach": True, "weight_decay": 0.1}, {"clip_norm": 0.5}),
    (WIDE, torch.optim.SGD, {"fused": True, "momentum": 0.5}, {"clip_norm": 0.1}),
    (WIDE, torch.optim.AdamW, {"foreach": False}, {"accumulation": 2, "clip_norm": 0.5}),
]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("config", "kind", "options", "settings"), STEADY)
def test_no_loop_that_stays_the_same_is_told(
    config: dict[str, Any],
    kind: Kind,
    options: dict[str, Any],
    settings: dict[str, Any],
    autocast: bool,
    tmp_path: Path,
) -> None:
    training = Training(tmp_path / "run", make_task(config))
    training.optimizer = kind(training.model.parameters(), lr=0.01, **options)
    every = settings.get("accumulation", 1)
    with training.stage(**settings) as stage:
        for number, batch in enumerate(make_batches(12 * every), 1):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = training.loss(batch)
            (loss / every).backward()
            if number % every == 0:
                if "clip_norm" in settings:
                    nn.utils.clip_grad_norm_(training.model.parameters(), settings["clip_norm"])
                training.update()
                training.optimizer.zero_grad(set_to_none=number % 2 == 0)
            stage.step(batch, loss)
    run = training.recorder.run()
    assert run.last.facts.checked[-1] == 12
    assert measure_deviation(run.task, run.last).bitwise
