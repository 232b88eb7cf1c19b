"""``task-vector``: subtract what a stage changed from the final weights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..results import StageTrust
from ..runs.boundaries import carry
from ..runs.run import Run, Stage
from ..training.replay import Progress
from .protocol import Counterfactual


class TaskVector:
    """final - (end of the stage - start of the stage), in the weights; costs no gradient.

    With s_b - s_a+ the change of stage k, the model without it is theta_final - (s_b - s_a+).
    What later stages did with the change is ignored (task arithmetic: Ilharco et al., ICLR 2023),
    but not their boundary rules: a parameter that was initialised anew later keeps its final
    value, and an adapter that was merged later has changed the weight that it was merged into.
    Variances are divided instead of subtracted, so they stay positive; integer buffers are
    those of the final model.
    """

    name = "task-vector"
    settings: Mapping[str, Any] = {}

    def counterfactuals(
        self, run: Run, stages: Sequence[Stage], progress: Progress
    ) -> Iterator[Counterfactual]:
        """See :class:`~stagelens.estimators.protocol.Estimator`."""
        final = run.last.end().model
        for number, stage in enumerate(stages):
            began = time.perf_counter()
            weights = subtract_stage(final, stage, run.stages[stage.index + 1 :])
            trust = StageTrust(
                stage=stage.name,
                estimator=self.name,
                trust="estimated",
                reason=(
                    "Task vector: the stage's change subtracted from the final weights; its "
                    "error is not known."
                ),
                cost=0.0,
                seconds=time.perf_counter() - began,
            )
            progress((number + 1) / len(stages), f"task vector of {stage.name}")
            yield Counterfactual(stage.name, weights, trust)


def subtract_stage(
    final: Mapping[str, Tensor], stage: Stage, later: Sequence[Stage]
) -> dict[str, Tensor]:
    """Take a stage's change out of the final weights.

    Args:
        final: The final model's parameters and buffers.
        stage: Its change is end - start.
        later: The stages after it; their boundary rules carry the change into the final model.

    Returns:
        New parameters and buffers, of the final model's names and shapes.
    """
    start, end = stage.start().model, stage.end().model
    boundaries = [other.facts.boundary for other in later]
    without: dict[str, Tensor] = {}
    for name, tensor in final.items():
        before = after = None
        if tensor.is_floating_point():
            before, after = (carry(name, boundaries, tensors) for tensors in (start, end))
        if before is None or after is None:
            without[name] = tensor.clone()
        elif name.endswith("running_var"):
            ratio = before / after
            usable = torch.isfinite(ratio) & (ratio > 0)
            scaled = tensor.double() * torch.where(usable, ratio, 1.0)
            without[name] = scaled.to(tensor.dtype)
        else:
            without[name] = (tensor.double() - (after - before)).to(tensor.dtype)
    return without
