"""Small training loops in plain torch, as users write them, for tests to record and to repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.contracts import RecordingError, StageLensError
from stagelens.recording.stage_recorder import StageRecorder
from stagelens.runs.optimizer_set import as_one, members
from stagelens.runs.states import TrainingState, capture, same_tensor
from stagelens.tasks import ImageClassification

SHAPE = (1, 4, 5)
CLASSES = ("a", "b", "c")
BATCH_NORM = {"kind": "cnn", "channels": [4, 4], "hidden": 6, "dropout": 0.3, "batch_norm": True}
Batch = tuple[Tensor, Tensor]


def make_batches(count: int, seed: int = 0, size: int = 8, scale: float = 1.0) -> list[Batch]:
    """Random images and labels of :data:`SHAPE` and :data:`CLASSES`."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            scale * torch.randn(size, *SHAPE, generator=generator),
            torch.randint(len(CLASSES), (size,), generator=generator),
        )
        for _ in range(count)
    ]


def make_task(
    config: Mapping[str, Any] | None = None,
    make_model: Callable[[Mapping[str, Any]], nn.Module] | None = None,
) -> ImageClassification:
    """A classifier of such batches: a small MLP, the built-in model of ``config``, or your own."""
    if config is None and make_model is None:
        config = {"kind": "mlp", "hidden": [6]}
    return ImageClassification(CLASSES, SHAPE, model=config, make_model=make_model)


def train(
    task: stagelens.Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Any],
    *,
    stage: StageRecorder | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    clip_norm: float | None = None,
    accumulation: int = 1,
    set_to_none: bool = True,
) -> None:
    """The usual loop; recorded where ``stage`` is given, and otherwise the same."""
    switch(optimizer, "train")
    for number, batch in enumerate(batches, 1):
        loss = task.loss(model, batch)
        (loss / accumulation).backward()
        if number % accumulation == 0:
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            for one in members(as_one(optimizer)):
                one.step()
                one.zero_grad(set_to_none=set_to_none)
            if scheduler is not None:
                scheduler.step()
        if stage is not None:
            stage.step(batch, loss)
        if number == 3:  # as for an evaluation
            switch(optimizer, "eval", "train")
    switch(optimizer, "eval")


def switch(optimizer: Any, *calls: str) -> None:
    """Call these methods of schedule-free optimisers; others have none."""
    for one in members(as_one(optimizer)):
        for call in calls if hasattr(one, "eval") else ():
            getattr(one, call)()


def written(stage: StageRecorder, steps: int) -> bool:
    """Whether so many steps come to disk, which a thread writes beside the training."""
    until = time.monotonic() + 60
    while stage.steps_on_disk < steps and time.monotonic() < until:
        time.sleep(1e-3)
    return stage.steps_on_disk == steps


Optimizer = Callable[[nn.Module, torch.optim.Optimizer | None], torch.optim.Optimizer]
Schedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


@dataclass
class Plan:
    """One stage of a training in several.

    Attributes:
        name: The stage's name.
        optimizer: Makes the optimiser, or takes the one of the stage before.
        prepare: What happens to the model before the stage: a new head, frozen parameters, modes.
        batches: How many, of this stage's own.
        data: Makes them, from how many and a seed.
        schedule: Makes the scheduler.
        loop: Settings of :func:`train`.
        recorder: Further settings of ``Recorder.stage``.
    """

    name: str
    optimizer: Optimizer
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model
    batches: int = 6
    data: Callable[[int, int], Sequence[Any]] = make_batches
    schedule: Schedule | None = None
    loop: Mapping[str, Any] = field(default_factory=dict)
    recorder: Mapping[str, Any] = field(default_factory=dict)

    def declared(self) -> dict[str, Any]:
        """What has to be declared to the recorder."""
        loop = {key: self.loop[key] for key in ("clip_norm", "accumulation") if key in self.loop}
        return {"on_problem": "raise", **loop, **self.recorder}


def run_plans(
    task: stagelens.Task,
    plans: Sequence[Plan],
    *,
    without: str | Collection[str] | None = None,
    recorder: stagelens.Recorder | None = None,
) -> TrainingState:
    """Train all stages from the same seeds every time, and give the training state at the end.

    Args:
        task: Builds the model and computes the loss.
        plans: The stages.
        without: Stages that start, but are trained for no step: training by hand without them.
        recorder: Records the stages.
    """
    left_out = (without,) if isinstance(without, str) else without or ()
    torch.manual_seed(0)
    model = task.build_model(plans[0].recorder.get("build_config"))
    optimizer = None
    for number, plan in enumerate(plans):
        torch.manual_seed(100 + number)
        model.train()
        model = plan.prepare(model)
        model.zero_grad()
        optimizer = plan.optimizer(model, optimizer)
        batches = plan.data(plan.batches, number)
        if plan.name in left_out:
            continue
        scheduler = plan.schedule(optimizer) if plan.schedule is not None else None
        if recorder is None:
            train(task, model, optimizer, batches, scheduler=scheduler, **plan.loop)
            continue
        with recorder.stage(
            plan.name, model=model, optimizer=optimizer, **plan.declared()
        ) as stage:
            train(task, model, optimizer, batches, stage=stage, scheduler=scheduler, **plan.loop)
    names = {id(p): n for n, p in model.named_parameters()}
    return capture(model, as_one(optimizer), names)


def record_plans(path: Path, task: stagelens.Task, plans: Sequence[Plan]) -> stagelens.Run:
    """Record all stages into a new run folder, and open it."""
    run_plans(task, plans, recorder=stagelens.Recorder(path, task, name="run"))
    return stagelens.open_run(path, task)


def sgd(model: nn.Module, before: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
    return before or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


TWO_STAGES = [
    Plan("first", sgd, recorder={"flush_every": 4}),
    Plan("second", sgd, recorder={"checkpoint_every": 3}),
]


def record_two(path: Path, plans: list[Plan] | None = None, **options: Any) -> stagelens.Run:
    """A run with the evaluation set ``test``, of two stages unless ``plans`` says otherwise."""
    task = make_task()
    recorder = stagelens.Recorder(path, task, **options)
    run_plans(task, plans or TWO_STAGES, recorder=recorder)
    images, labels = make_batches(1, seed=5)[0]
    recorder.add_set("test", images=images, labels=labels)
    recorder.close()
    return stagelens.open_run(path)


def differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not the same to the bit."""
    return [
        name
        for name in sorted(a.keys() | b.keys())
        if name not in a or name not in b or not same_tensor(a[name], b[name])
    ]


def differing_state(a: TrainingState, b: TrainingState) -> list[str]:
    """Names of whatever is not the same to the bit in two training states."""
    flat = [
        {**state.model, **{f"{n}/{k}": t for n, s in state.optimizer.items() for k, t in s.items()}}
        for state in (a, b)
    ]
    return differing(*flat)


class Training:
    """A small training into a new folder; each test spoils it in one way."""

    def __init__(self, path: Path, task: stagelens.Task | None = None) -> None:
        self.path = path
        self.task = task or make_task(BATCH_NORM)
        torch.manual_seed(0)
        self.model = self.task.build_model()
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.05, momentum=0.9
        )
        self.recorder = stagelens.Recorder(path, self.task)
        self.updates = 0

    def stage(self, name: str = "first", **settings: Any) -> StageRecorder:
        return self.recorder.stage(
            name,
            **{
                "model": self.model,
                "optimizer": self.optimizer,
                "on_problem": "raise",
                **settings,
            },
        )

    def loss(self, batch: Batch) -> Tensor:
        return self.task.loss(self.model, batch)

    def update(self) -> None:
        self.optimizer.step()
        self.updates += 1

    def step(self, batch: Batch, stage: StageRecorder) -> None:
        """One step as it should be."""
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.update()
        stage.step(batch, loss)


@contextmanager
def refused(*says: str, by: type[StageLensError] = RecordingError) -> Iterator[None]:
    """The block is refused, in these words."""
    with pytest.raises(by) as error:
        yield
    message = " ".join(str(error.value).split())
    assert [words for words in says if words not in message] == [], message


def one_cycle(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Cycles the learning rates, and betas or momentum the other way."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1] * 2, total_steps=8)


def halving(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
