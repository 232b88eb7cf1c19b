"""Updates and learning rates of a stage that cannot be replayed."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle


class UpdateCount:
    """Counts the updates of any optimiser that tells of them; checks nothing.

    It stands in for :class:`~.watch.Watch` where that cannot watch a stage.

    Args:
        optimizer: Torch's or one like it, or what wraps one.

    Attributes:
        updates: How many steps it made.
        noted: How many of them were noted by ``stage.step``.
        groups: The learning rate of every parameter group at the newest update.
        missing: Always empty: it is not known.
        calls: Always empty, too.
        forwards: Not counted.
    """

    def __init__(self, optimizer: Any) -> None:
        self.updates = self.noted = self.forwards = 0
        self.calls: list[str] = []
        self.missing: tuple[str, ...] = ()
        self._optimizer = getattr(optimizer, "optimizer", optimizer)
        self.groups = learning_rates(self._optimizer)
        self._handle: RemovableHandle | None = None
        # Whatever it is, it need not be torch's: then its updates are not counted.
        with contextlib.suppress(Exception):
            self._handle = self._optimizer.register_step_post_hook(self._after_update)

    def close(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _after_update(self, *_: Any) -> None:
        self.updates += 1
        self.groups = learning_rates(self._optimizer)


def learning_rates(optimizer: Any) -> list[dict[str, Any]]:
    """The learning rate of every parameter group, at least one; NaN where it is not a number."""
    groups = getattr(optimizer, "param_groups", None) or [{}]
    return [{"lr": _number(group.get("lr"))} for group in groups]


def _number(value: Any) -> float:
    known = isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
    return float(value) if known else math.nan
