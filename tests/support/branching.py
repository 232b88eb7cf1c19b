"""A small run whose stages branch off: sft, then dpo and rl from its end, and a soup of both."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

import stagelens
from stagelens.recording.stage_recorder import StageRecorder
from tests.support.loops import make_batches, make_task, train

SOUP = {"dpo": 0.6, "rl": 0.4}


def base() -> nn.Module:
    """The model that the run begins with."""
    torch.manual_seed(0)
    return make_task().build_model()


def step_through(model: nn.Module, seed: int, stage: StageRecorder | None = None) -> None:
    """Four steps of a new optimiser, recorded or not."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    train(make_task(), model, optimizer, make_batches(4, seed), stage=stage)


def record_stage(
    recorder: stagelens.Recorder, name: str, model: nn.Module, seed: int, parent: str | None = None
) -> nn.Module:
    """Train a copy of a model as a stage, and return it."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    given = {"on_problem": "raise", "parent": parent}
    with recorder.stage(name, model=model, optimizer=optimizer, **given) as stage:
        train(make_task(), model, optimizer, make_batches(4, seed), stage=stage)
    return model


def averaged(models: dict[str, nn.Module], weights: dict[str, float]) -> nn.Module:
    """A linear combination of models."""
    made = base()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parts = [w * models[n].get_parameter(name).double() for n, w in weights.items()]
            parameter.copy_(torch.stack(parts).sum(0))
    return made


def record_branching(path: Path, soup: bool = True) -> stagelens.Recorder:
    """Record the run, with the evaluation set ``test`` of 60 images in two groups."""
    recorder = stagelens.Recorder(path, make_task(), name="two ways")
    sft = record_stage(recorder, "sft", base(), 1)
    models = {
        "dpo": record_stage(recorder, "dpo", sft, 2),
        "rl": record_stage(recorder, "rl", sft, 3, parent="sft"),
    }
    if soup:
        recorder.merge("soup", model=averaged(models, SOUP), parents=list(SOUP))
    images, labels = make_batches(1, 9, size=60)[0]
    groups = ["odd" if number % 2 else "even" for number in range(60)]
    recorder.add_set("test", images=images, labels=labels, columns={"group": groups})
    recorder.close()
    return recorder
