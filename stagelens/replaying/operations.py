"""How much computing a stage took, counted in floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch.utils.flop_counter import FlopCounterMode

from stagelens.contracts import Task
from stagelens.runs.run import Stage

from .replay import StageReplay, check_replayable, same_arithmetic

COUNTED = 3
"""Steps of a stage whose operations are counted; the others follow from the size of their batch."""


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a stage's training.

    Attributes:
        total: Of all its forward and backward passes.
        counted: On how many of its steps that rests.
    """

    total: float
    counted: int


def operations(task: Task, stage: Stage, counted: int = COUNTED) -> Operations:
    """Count the operations of a recorded stage.

    Matrix products, convolutions and attention of forward and backward passes are counted by torch,
    a multiplication and an addition as two, on some steps that are spread over the stage. The
    others are taken to need as many for each number in their batches. Updates, activations and
    norms, which are small beside them, are left out, as is usual.

    Args:
        task: Builds the model.
        stage: A recorded stage.
        counted: On how many steps; all of a shorter stage.

    Raises:
        Refused: Its batches were not kept, or its loss cannot be computed here.
    """
    check_replayable([stage])
    steps = stage.read_steps()
    places = np.unique(np.linspace(0, len(steps) - 1, counted).round().astype(int))
    sizes = np.asarray(steps.sizes(), float)
    with same_arithmetic(stage):
        replay = StageReplay(task, stage)
        found = 0.0
        for place in places:
            with FlopCounterMode(display=False) as counter:
                replay.backward(steps[int(place)])
            replay.model.zero_grad(set_to_none=True)
            found += counter.get_total_flops()
    return Operations(found * float(sizes.sum() / sizes[places].sum()), len(places))
