"""A stage whose end is an average of its weights: the same average along a replay."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from stagelens.contracts import Refused
from stagelens.runs.boundary_facts import WeightAverage
from stagelens.runs.run import Stage


class Averaging:
    """Takes in the weights of a model as it is trained.

    Args:
        rule: When, and how.
        model: Before its first step.
    """

    def __init__(self, rule: WeightAverage, model: nn.Module) -> None:
        self._rule, self._model = rule, model
        decay = rule.decay if rule.decay is not None else 0.999
        self._averaged = AveragedModel(
            model,
            avg_fn=get_ema_avg_fn(decay) if rule.kind == "ema-by-parameter" else None,
            multi_avg_fn=get_ema_multi_avg_fn(decay) if rule.kind == "ema" else None,
            use_buffers=rule.buffers,
        )

    @property
    def model(self) -> nn.Module:
        """The average as it is now."""
        averaged: nn.Module = self._averaged.module
        return averaged

    def updated(self, place: int) -> None:
        """The model was updated.

        Args:
            place: Of the step in its stage, from 0.
        """
        if self._rule.takes(place + 1):
            self._averaged.update_parameters(self._model)


def check_not_averaged(stage: Stage, what: str) -> None:
    """Refuse a stage that ends with an average.

    Args:
        stage: The stage.
        what: Cannot be had then; the message begins with it.

    Raises:
        Refused: It does.
    """
    if stage.facts.average is not None:
        raise Refused(
            f"{what} knows no average of weights, with which stage {stage.name!r} ends; use replay"
        )
