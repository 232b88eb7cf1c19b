"""A stage's loss without kernels that have no second derivative, held against the recorded one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.compute import devices
from stagelens.contracts import Refused, Task
from stagelens.replaying.replay import fits, same_arithmetic, tolerance_of
from stagelens.replaying.step import StepRules, prepare
from stagelens.replaying.training_loss import loss_of_stage
from stagelens.runs.batches import to_device
from stagelens.runs.run import Stage
from stagelens.runs.states import load_into
from stagelens.runs.step_records import StepRecord

_SAME = 1e-3
"""Largest difference of two gradients, relative to them, that float32's rounding explains. Between
fused and plain code it was at most 2e-6 in the models of the tests; other dropout masks, a head
that is left out, or another temperature make 1e-2 and more."""


def plain_attention(model: nn.Module) -> bool:
    """Let a model of ``transformers`` compute attention as softmax(q k^T) v.

    Returns:
        Whether it would have used a fused kernel.

    Raises:
        Refused: The model has no other than its fused attention.
    """
    chosen = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if chosen in (None, "eager"):
        return False
    own: Any = model
    try:
        own.set_attn_implementation("eager")
    except Exception as error:  # whatever a class of transformers makes of it
        raise Refused(
            f"the model was recorded with attn_implementation={chosen!r}, whose attention has no "
            f"second derivative, and it has no other here ({error}); load it with "
            'attn_implementation="eager" before recording, or use coarse-replay or replay'
        ) from error
    return True


def check_same_loss(
    task: Task, stage: Stage, record: StepRecord, gradient: Mapping[str, Tensor]
) -> None:
    """Compare a stage's first gradient with that of its loss as it was trained.

    Args:
        task: The run's.
        stage: The stage.
        record: Its first step.
        gradient: Of the loss without fused kernels at the stage's start, by name.

    Raises:
        Refused: They differ by more than rounding, or the loss as trained is not as recorded.
    """
    if record.batches is None:
        return
    rules = StepRules.of(stage.facts)
    device = devices.replaying(stage.environment.device)
    model = task.build_model(stage.facts.build_config)
    load_into(model, stage.start().model)
    model.to(device)
    prepare(model, rules)
    loss, losses = loss_of_stage(task, stage, model), []
    with same_arithmetic(stage), torch.enable_grad():
        for micro in record.batches:
            devices.restore_random(micro.rng, device)
            one = loss(model, to_device(micro.batch, device))
            (one / rules.divisor(micro)).backward()
            losses.append(float(one.detach()))
    if not fits(record, losses, rules, tolerance_of(rules, model)):
        raise Refused(
            f"the first loss of stage {stage.name!r} is {record.reported_loss(losses):.6g} here, "
            f"but was {record.loss:.6g} when it was recorded, so its derivatives would be another "
            "training's; check the versions of the libraries, or use coarse-replay or replay"
        )
    gap = size = 0.0
    for name, parameter in model.named_parameters():
        if name in gradient and parameter.grad is not None:
            own = parameter.grad.double()
            gap += float((own - gradient[name].double()).square().sum())
            size += float(own.square().sum())
    if not gap**0.5 <= _SAME * size**0.5:
        raise Refused(
            f"without its fused kernels (of attention, or of the loss) stage {stage.name!r} has "
            f"another first gradient, by {(gap / size) ** 0.5 if size else float('inf'):.2g} of "
            'its length; load the model with attn_implementation="eager" before recording, or '
            "use coarse-replay or replay"
        )
