"""What an optimiser's steps read of its parameter groups, followed through a stage."""

from __future__ import annotations

from types import NoneType
from typing import Any

from torch import Tensor

from stagelens.contracts import RecordingError
from stagelens.replaying.optimizers import group_hyperparameters, hyperparameter_names
from stagelens.runs.optimizer_set import AnyOptimizer, members
from stagelens.runs.states import rule_of

_FIXED = (int, float, str, tuple, NoneType)


class Hyperparameters:
    """Reads them before every update.

    Args:
        optimizer: Of the stage.
    """

    def __init__(self, optimizer: AnyOptimizer) -> None:
        self._groups: list[dict[str, Any]] = []
        self._optimizer = optimizer
        self._names = [
            hyperparameter_names(one, rule_of(one))
            for one in members(optimizer)
            for _ in one.param_groups
        ]
        self._in_place = True
        self._values: list[list[Any]] = []
        self._first = True

    def _now(self) -> list[list[Any]]:
        groups = zip(self._optimizer.param_groups, self._names, strict=False)
        return [[*map(group.__getitem__, names)] for group, names in groups]

    def read(self) -> list[dict[str, Any]]:
        """The values of the next update, per group."""
        values = self._now()
        # Most loops change them rarely; what can be changed in place equals itself even then.
        if self._in_place or values != self._values:
            self._values = values
            self._in_place = any(not isinstance(value, _FIXED) for own in values for value in own)
            self._groups = group_hyperparameters(self._optimizer)
        return self._groups

    def after_update(self) -> None:
        """Look at what the first update made of them.

        Raises:
            RecordingError: The optimiser changed them by itself; names what.
        """
        if not self._first:
            return
        self._first = False
        for own, old, names in zip(self._now(), self._values, self._names, strict=False):
            for new, was, name in zip(own, old, names, strict=True):
                if not isinstance(new, Tensor) and new != was:
                    raise RecordingError(
                        f"a step of the optimiser changed {name} of its own parameter groups; "
                        "register its class with what it counts there: "
                        f"stagelens.register_optimizer(name, Class, group_state=({name!r},))"
                    )
