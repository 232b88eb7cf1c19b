"""Batches are kept as they were: by value, by type, and as they lay in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.batches import rows_of, to_device
from tests.support.loops import CLASSES, SHAPE, make_batches, make_task, train


def made(task: stagelens.Task) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = task.build_model()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def test_a_batch_that_the_loop_uses_again_is_kept_as_it_was(tmp_path: Path) -> None:
    task = make_task()
    model, optimizer = made(task)
    images, labels = make_batches(1)[0]
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("first", model=model, optimizer=optimizer, accumulation=2) as stage:
        for number, (own, _) in enumerate(make_batches(6), 1):
            images.copy_(own)
            loss = task.loss(model, (images, labels))
            (loss / 2).backward()
            if number % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()
            stage.step((images, labels), loss)
    kept = [micro.batch[0] for s in recorder.run().last.read_steps() for micro in s.batches or ()]
    assert all(torch.equal(a, b) for a, (b, _) in zip(kept, make_batches(6), strict=True))
    assert measure_deviation(task, recorder.run().last).bitwise


class Nested(stagelens.tasks.ImageClassification):
    """Takes batches of every kind that can be kept."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        assert batch["note"] == ("text", 1, 0.5, True, None)
        images, labels = batch["data"]["images"], batch["data"]["more"][0]
        return super().loss(model, (images, labels))


def test_nested_batches_come_back_as_they_were(tmp_path: Path) -> None:
    task = Nested(CLASSES, SHAPE)
    model, optimizer = made(task)
    batches = [
        {"note": ("text", 1, 0.5, True, None), "data": {"images": images, "more": [labels]}}
        for images, labels in make_batches(3)
    ]
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("first", model=model, optimizer=optimizer) as stage:
        train(task, model, optimizer, batches, stage=stage)
    kept = [step.batches[0].batch for step in recorder.run().last.read_steps() if step.batches]
    assert [type(batch["note"]) for batch in kept] == [tuple] * 3
    assert kept[1]["note"] == batches[1]["note"]
    assert torch.equal(kept[2]["data"]["more"][0], batches[2]["data"]["more"][0])
    assert measure_deviation(task, recorder.run().last).bitwise


class Words(stagelens.tasks.ImageClassification):
    """A batch is a list of words, and nothing else."""

    def loss(self, model: nn.Module, batch: list[str]) -> Tensor:
        images = torch.tensor([float(len(word)) for word in batch]).reshape(-1, 1, 1, 1)
        labels = torch.zeros(len(batch), dtype=torch.int64)
        return super().loss(model, (images.expand(-1, *SHAPE), labels))


def test_batches_without_any_tensor_are_kept_too(tmp_path: Path) -> None:
    task = Words(CLASSES, SHAPE)
    model, optimizer = made(task)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("first", model=model, optimizer=optimizer) as stage:
        train(task, model, optimizer, [["a", "bc"], ["def", "gh"]], stage=stage)
    assert measure_deviation(task, recorder.run().last).bitwise


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "slices": lambda images: images,
    "channels last": lambda images: images.to(memory_format=torch.channels_last),
    "columns": lambda images: torch.cat([images, images], 3)[..., 3:8],
    "turned": lambda images: images.transpose(2, 3).contiguous().transpose(2, 3),
    "the same for all": lambda images: images[:1].expand(images.shape),
}


@pytest.mark.parametrize("view", VIEWS)
def test_batches_lie_in_memory_as_they_lay_in_training(view: str, tmp_path: Path) -> None:
    """Where they did not, matrix products differed in the last bit."""
    images, labels = make_batches(1, size=60)[0]
    batches = [
        (VIEWS[view](images[begin : begin + 7]), labels[begin : begin + 7])
        for begin in range(0, 49, 7)
    ]
    task = make_task()
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters())
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("first", model=model, optimizer=optimizer) as stage:
        train(task, model, optimizer, batches, stage=stage)
    run = recorder.run()
    kept = [step.batches[0].batch[0] for step in run.last.read_steps() if step.batches]
    assert all(torch.equal(own, image) for own, (image, _) in zip(kept, batches, strict=True))
    if view != "the same for all":
        assert [(k.stride(), k.data_ptr() % 64) for k in kept] == [
            (image.stride(), image.data_ptr() % 64) for image, _ in batches
        ]
    assert measure_deviation(task, run.last).bitwise


class Pair(NamedTuple):
    images: Tensor
    rest: dict[str, Tensor]


def test_named_tuples_stay_what_they_are() -> None:
    pair = Pair(torch.arange(6.0).reshape(3, 2), {"labels": torch.arange(3)})
    some = rows_of([pair], [2, 0])[0]
    assert isinstance(some, Pair)
    assert some.images.tolist() == [[4, 5], [0, 1]] and some.rest["labels"].tolist() == [2, 0]
    moved = to_device(pair, torch.device("meta"))
    assert isinstance(moved, Pair) and moved.rest["labels"].is_meta
