"""Hooks on a model that stay behind when the model is copied or saved."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch


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
        if torch.compiler.is_compiling():
            self._apart(*given)
        else:
            self._see(*given)

    @torch.compiler.disable  # torch.compile leaves it as it is, between compiled parts
    def _apart(self, *given: Any) -> None:
        self._see(*given)

    def __reduce__(self) -> Any:
        return getattr, (nullcontext(), "__exit__")


def grad_scaler_above() -> bool:
    """Whether a gradient scaler that is switched on called the update that is under way."""
    # An optimiser does not know its scaler: only the call stack shows who made the update.
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        # Of no other frame: reading a frame's locals keeps them alive as long as it runs.
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            return bool(frame.f_locals["self"].is_enabled())
    return False


def weakly(watch: Any) -> Callable[[torch.optim.Optimizer, Any, Any], None]:
    """A hook that does not keep a training alive: torch holds it until it is removed.

    Args:
        watch: Its ``before_any_update`` is called before the update of any optimiser but its own.
    """
    reference = weakref.ref(watch)

    def see(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        there = reference()
        # An optimiser that is no concern of the stage's may be of any make.
        if there is not None and there.optimizer is not optimizer:
            with contextlib.suppress(Exception):
                there.before_any_update(optimizer)

    return see


def of_another(optimizer: str) -> str:
    """What to do about another optimiser, by the name of its class, that updates the model."""
    return (
        f"Another optimiser ({optimizer}) updates the model too: give the stage all of them, "
        "stage(..., optimizer=[one, other])"
    )
