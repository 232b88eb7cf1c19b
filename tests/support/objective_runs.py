"""A run whose stages minimise the task's loss, a function of the user's, and preferences."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import stagelens
from stagelens.contracts import ReferenceModel
from stagelens.runs.states import TrainingState, capture
from tests.support.loops import make_batches, make_task
from tests.support.own_objectives import Preferred, focal

Loss = Callable[[nn.Module, nn.Module, Any], Tensor]
DROPOUT = {"kind": "mlp", "hidden": [6], "dropout": 0.3}
TASK = make_task(DROPOUT)
STAGES = ("pretrain", "sft", "dpo")


def own_loss(model: nn.Module, _reference: nn.Module, batch: Any) -> Tensor:
    return TASK.loss(model, batch)


def preferring(model: nn.Module, reference: nn.Module, batch: Any) -> Tensor:
    return Preferred().loss(None, model, batch, {"reference": reference})


def trained(
    losses: Mapping[str, Loss],
    recorder: stagelens.Recorder | None = None,
    without: Sequence[str] = (),
    objectives: dict[str, Any] | None = None,
    sync: int | None = None,
    given: bool = False,
) -> TrainingState:
    """Three stages by hand; the reference model is a copy of the model at each stage's start."""
    torch.manual_seed(0)
    model = TASK.build_model()
    for number, name in enumerate(STAGES):
        torch.manual_seed(10 + number)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        reference = copy.deepcopy(model).eval().requires_grad_(False)
        if name in without:
            continue
        objective = (objectives or {}).get(name)
        declared = ReferenceModel(reference if given else None, sync_every=sync, sync_mixing=0.5)
        references = {"reference": declared} if isinstance(objective, Preferred) else {}
        settings: Any = {"objective": objective, "references": references, "on_problem": "raise"}
        stage = None
        if recorder is not None:
            stage = recorder.stage(name, model=model, optimizer=optimizer, **settings)
            stage.__enter__()
        for step, batch in enumerate(make_batches(9, number), 1):
            loss = losses[name](model, reference, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if stage is not None:
                stage.step(batch, loss)
            if sync is not None and step % sync == 0:
                with torch.no_grad():
                    for own, other in zip(reference.parameters(), model.parameters(), strict=True):
                        own.mul_(0.5).add_(other, alpha=0.5)
        if stage is not None:
            stage.__exit__(None, None, None)
    return capture(model, optimizer, {id(p): n for n, p in model.named_parameters()})


def focused(model: nn.Module, _reference: nn.Module, batch: Any) -> Tensor:
    return focal(model, batch)


LOSSES: dict[str, Loss] = {"pretrain": own_loss, "sft": focused}
OBJECTIVES = {"sft": focal, "dpo": Preferred(2.0)}
GIVEN: Any = {"sft": focal, "dpo": Preferred}


def recorded(path: Path, **how: Any) -> stagelens.Run:
    losses = {**LOSSES, "dpo": preferring}
    with closing(stagelens.Recorder(path, TASK, name="run")) as recorder:
        trained(losses, recorder, objectives=OBJECTIVES, **how)
    return stagelens.open_run(path, TASK, GIVEN)
