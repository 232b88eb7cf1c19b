"""Several optimisers of one model that make one update together, as Muon and AdamW do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

Hook = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]


class OptimizerSet:
    """Stands for several optimisers where one is expected; an update is when all have stepped.

    Args:
        members: The optimisers; no two of them share a parameter.

    Attributes:
        members: As given.
        uneven: One that stepped again before another had, and that other, in words; empty for none.
    """

    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:
        self.members = list(members)
        self.uneven = ""
        self._stepped: set[int] = set()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Their groups (not copies), one optimiser after the other."""
        return [group for one in self.members for group in one.param_groups]

    def step(self) -> None:
        """One update."""
        for one in self.members:
            one.step()

    def register_step_pre_hook(self, hook: Hook) -> Handles:
        """Call a hook before the first of them steps."""
        return Handles([one.register_step_pre_hook(partial(self._before, hook)) for one in self])

    def register_step_post_hook(self, hook: Hook) -> Handles:
        """Call a hook after the last of them has stepped."""
        return Handles([one.register_step_post_hook(partial(self._after, hook)) for one in self])

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        return iter(self.members)

    def _before(self, hook: Hook, one: Any, args: Any, kwargs: Any) -> None:
        if id(one) in self._stepped:
            other = next(each for each in self.members if id(each) not in self._stepped)
            again, missing = type(one).__name__, type(other).__name__
            self.uneven = f"{again}.step() was called again before {missing} had stepped"
        if not self._stepped or self.uneven:
            hook(self, args, kwargs)

    def _after(self, hook: Hook, one: Any, args: Any, kwargs: Any) -> None:
        self._stepped.add(id(one))
        if len(self._stepped) == len(self.members):
            self._stepped.clear()
            hook(self, args, kwargs)


class Handles:
    """Removes hooks of several optimisers together."""

    def __init__(self, handles: Sequence[RemovableHandle]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Remove them all."""
        for handle in self._handles:
            handle.remove()


AnyOptimizer = torch.optim.Optimizer | OptimizerSet
"""What makes a stage's updates."""


def members(optimizer: AnyOptimizer) -> Sequence[torch.optim.Optimizer]:
    """The optimisers that make one update together; usually the one itself."""
    return optimizer.members if isinstance(optimizer, OptimizerSet) else [optimizer]


def forget_state(optimizer: AnyOptimizer) -> None:
    """Leave an optimiser without what it keeps of its parameters."""
    for one in members(optimizer):
        one.state.clear()


def as_one(optimizer: AnyOptimizer | Sequence[torch.optim.Optimizer]) -> AnyOptimizer:
    """Several optimisers as one; one as it is."""
    if not isinstance(optimizer, (list, tuple)):
        return optimizer  # type: ignore[return-value]
    return optimizer[0] if len(optimizer) == 1 else OptimizerSet(optimizer)
