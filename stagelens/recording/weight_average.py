"""What a loop's ``torch.optim.swa_utils.AveragedModel`` does, read off it."""

from __future__ import annotations

import inspect
from typing import Any

from torch.optim.swa_utils import AveragedModel

from stagelens.contracts import RecordingError
from stagelens.runs.boundary_facts import WeightAverage

HINT = (
    "if it is an average of the stage's weights, make it with torch.optim.swa_utils.AveragedModel "
    "and call stage.ends_with(averaged) before it is loaded"
)
"""What to do where weights were changed by hand."""
_EMA = {"get_ema_multi_avg_fn": "ema", "get_ema_avg_fn": "ema-by-parameter"}


def weight_average(
    averaged: AveragedModel, steps: int, first: int = 1, every: int = 1
) -> WeightAverage:
    """The rule by which weights were averaged.

    Args:
        averaged: Made for the stage.
        steps: How many steps the stage had.
        first: Step, from 1, after which the first weights were taken in.
        every: Steps from one to the next.

    Raises:
        RecordingError: It averages by a function that is not known, or other steps were taken in
            than declared; says what to declare.
    """
    kind, decay = _kind(averaged)
    rule = WeightAverage(
        kind=kind, decay=decay, first=first, every=every, buffers=bool(averaged.use_buffers)
    )
    taken, expected = int(averaged.n_averaged), sum(map(rule.takes, range(1, steps + 1)))
    if taken != expected:
        raise RecordingError(
            f"the average took in {taken} states of the model, and {expected} of {steps} steps are "
            f"declared (first={first}, every={every}); call averaged.update_parameters(model) "
            "after these updates of the stage and no others, or declare the steps with "
            "stage.ends_with(averaged, first=..., every=...)"
        )
    return rule


def _kind(averaged: AveragedModel) -> tuple[Any, float | None]:
    function = averaged.multi_avg_fn or averaged.avg_fn
    if function is None:
        return "mean", None
    function = inspect.unwrap(function)  # torch.no_grad wraps it
    maker = getattr(function, "__qualname__", "").partition(".")[0]
    decay = inspect.getclosurevars(function).nonlocals.get("decay")
    own = getattr(function, "__module__", "") == AveragedModel.__module__
    if not own or maker not in _EMA or decay is None:
        raise RecordingError(
            "the average is made by a function that replay does not know; make it with "
            "AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) of "
            "torch.optim.swa_utils, or without a function for the mean"
        )
    return _EMA[maker], float(decay)
