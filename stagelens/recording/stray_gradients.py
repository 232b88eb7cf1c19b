"""Gradients of parameters that no optimiser of the stage updates, where clipping counts them.

``optimizer.zero_grad()`` leaves them, so that they add up from step to step; ``model.zero_grad()``
clears them. Nothing else in a step shows which of the two the loop calls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stagelens.contracts import RecordingError
from stagelens.runs.optimizer_set import AnyOptimizer, Handles
from stagelens.runs.shards import is_shared_out


class StrayGradients:
    """Sees whether such gradients are cleared between two updates, and tells if that changes.

    Args:
        model: Is trained.
        optimizer: Trains it.
        clip_norm: As declared; without clipping, these gradients have no effect.
        tell: Called with a problem, which ends the look.

    Attributes:
        zeroed: Whose gradients the loop clears, as far as is known.
        handles: Of its hooks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: AnyOptimizer,
        clip_norm: float | None,
        tell: Callable[[Exception], None],
    ) -> None:
        self.zeroed: Literal["optimizer", "model"] = "optimizer"
        self.handles: list[RemovableHandle | Handles] = []
        self._tell: Callable[[Exception], None] | None = tell
        self._known = False
        # Name to how often its gradient had been changed by the newest update; None before any.
        self._before: dict[str, int | None] = {}
        self._strays: dict[str, nn.Parameter] = {}
        if clip_norm is None:
            return
        updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._strays = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and id(parameter) not in updated
        }
        shared_out = [name for name, p in self._strays.items() if is_shared_out(p)]
        if shared_out:
            raise RecordingError(
                f"{shared_out[0]} is trained by no optimiser of the stage, clipping counts its "
                "gradient, and where the model is shared out over processes nothing shows whether "
                "the loop clears it; freeze it, requires_grad_(False), or give it to an optimiser"
            )
        if self._strays:
            self._before = dict.fromkeys(self._strays)
            self.handles.append(optimizer.register_step_post_hook(self._updated))
        for name, parameter in self._strays.items():
            self.handles.append(parameter.register_hook(partial(self._added_to, name)))

    def _updated(self, *_: Any) -> None:
        # Not the gradients themselves, which would take memory through the next forward pass.
        self._before = {
            name: parameter.grad._version
            for name, parameter in self._strays.items()
            if parameter.grad is not None
        }

    def _added_to(self, name: str, _gradient: Tensor) -> None:
        """Called before backward adds to a gradient; only the first time since an update counts."""
        if self._tell is None or name not in self._before:
            return
        try:
            self._see(name, self._before.pop(name), self._strays[name].grad)
        except Exception as error:
            tell, self._tell = self._tell, None
            tell(error)

    def _see(self, name: str, before: int | None, now: Tensor | None) -> None:
        if before is None:  # the stage's first backward
            if now is not None and bool(now.any()):
                raise RecordingError(
                    f"{name}, which no optimiser of the stage updates, has a gradient from before "
                    "the stage, and clipping counts it; call model.zero_grad() before the stage"
                )
            return
        kept = now is not None and now._version == before
        # Zeros in place of None: zero_grad(set_to_none=False).
        if not kept and now is not None and bool(now.any()):
            raise RecordingError(
                f"the gradient of {name}, which no optimiser of the stage updates, was changed "
                "after an update, and clipping counts it; leave gradients to backward"
            )
        zeroed: Literal["optimizer", "model"] = "optimizer" if kept else "model"
        if self._known and zeroed != self.zeroed:
            raise RecordingError(
                f"the gradient of {name}, which no optimiser of the stage updates, was cleared "
                "after some updates and not after others, and clipping counts it; call "
                "model.zero_grad() in every step"
            )
        self.zeroed, self._known = zeroed, True
