"""``task-vector``: subtract what a stage changed from the final weights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stagelens.contracts import ProgressCallback
from stagelens.runs.run import Run, Stage

from .durations import Pace
from .protocol import Counterfactual, Estimator
from .stage_trust import StageTrust


class TaskVector(Estimator):
    """final - (end of the stage - start of the stage), in the weights; costs no gradient.

    With s_b - s_a+ the change of stage k, the model without it is theta_final - (s_b - s_a+).
    What later stages did with the change is ignored (task arithmetic: Ilharco et al., ICLR 2023),
    but not their boundary rules: a parameter that was re-initialised later keeps its final
    value, and an adapter that was merged later has changed the weight that it was merged into.
    Variances are divided instead of subtracted, so they stay positive; integer buffers are
    those of the final model.
    """

    name = "task-vector"
    title = "Task vector"
    note = "free"
    preference = 0
    free = True
    revision = 1
    automatic = True
    proposed = True

    @classmethod
    def seconds(cls, stages: Sequence[Pace], settings: Mapping[str, Any]) -> float | None:
        """Zero: weights are subtracted when they are read."""
        return 0.0

    @classmethod
    def memory(cls, later: Sequence[Stage]) -> int:
        """None: they are subtracted block by block."""
        return 0

    def counterfactuals(
        self, run: Run, stages: Sequence[Stage], progress: ProgressCallback
    ) -> Iterator[Counterfactual]:
        """See :class:`~stagelens.estimators.protocol.Estimator`."""
        from .subtraction import keeps, without_stage  # torch

        for number, stage in enumerate(stages):
            began = time.perf_counter()
            weights, sources = without_stage(run, stage)
            kept = f" {keeps(stage)}." if stage.appeared else ""
            trust = StageTrust(
                stage=stage.name,
                estimator=self.name,
                trust="estimated",
                reason=(
                    "Task vector: the stage's change subtracted from the final weights, whatever "
                    f"later stages did with it.{kept}"
                ),
                cost=0.0,
                seconds=time.perf_counter() - began,
            )
            progress((number + 1) / len(stages), f"task vector of {stage.name}")
            yield Counterfactual(stage.name, weights, trust, derived_from=sources)
