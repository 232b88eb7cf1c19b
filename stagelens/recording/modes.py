"""Follows an optimiser between its training weights and those for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stagelens.runs.optimizer_set import AnyOptimizer, members
from stagelens.runs.states import rule_of

_CALLS = ("train", "eval")


class ModeWatch:
    """Notes calls of ``optimizer.train()`` and ``eval()`` that change which weights there are.

    Args:
        optimizer: Of the stage; one that has a single set of weights is left alone.
        before: Called before the weights are changed.
        after: Called afterwards.

    Attributes:
        calls: Since the last update.
    """

    def __init__(
        self, optimizer: AnyOptimizer, before: Callable[[], None], after: Callable[[], None]
    ) -> None:
        self.calls: list[str] = []
        self._before, self._after = before, after
        self._watched = [one for one in members(optimizer) if rule_of(one).mode]
        for one in self._watched:
            for call in _CALLS:
                # On the object: wrappers, and the Trainer, call it there.
                setattr(one, call, self._noting(one, call, getattr(one, call)))

    def take(self) -> list[str]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls

    def close(self) -> None:
        """Leave the optimiser as it was."""
        for one in self._watched:
            for call in _CALLS:
                one.__dict__.pop(call, None)
        self._watched = []

    def _noting(
        self, one: torch.optim.Optimizer, call: str, inner: Callable[[], Any]
    ) -> Callable[[], Any]:
        key = rule_of(one).mode
        modes = [call == "train"] * len(one.param_groups)

        def noting() -> Any:
            if [bool(group[key]) for group in one.param_groups] == modes:
                return inner()
            self._before()
            found = inner()
            self.calls.append(call)
            self._after()
            return found

        return noting
