"""Hooks on a model that stay behind when the model is copied or saved."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any


class PassiveHook:
    """A hook that only looks: a forward (pre-)hook, with or without keyword arguments.

    A copy of the model carries ``nullcontext().__exit__`` in its place, which takes any arguments,
    does nothing, and can be loaded where StageLens is not installed.

    Args:
        see: Called with what torch gives to the hook.
    """

    def __init__(self, see: Callable[..., None]) -> None:
        self._see = see

    def __call__(self, *given: Any) -> None:
        self._see(*given)

    def __reduce__(self) -> Any:
        return getattr, (nullcontext(), "__exit__")
