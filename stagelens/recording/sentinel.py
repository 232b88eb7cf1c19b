"""One parameter whose gradient is followed from backward to the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from stagelens.runs.shards import is_shared_out, own_part

from .optimizer_state import equal_or_nan

_AT_FIRST, _THEN_EVERY = 64, 4
"""Updates whose gradient is followed at first, and then one of so many."""


class Sentinel:
    """Adds up what backward gives to the smallest parameter with a gradient that is not zero.

    Args:
        parameters: Of the optimiser, at the first update.
        failed: Called with what goes wrong in backward.

    Attributes:
        parameter: The parameter.
        followed: Whether the gradient of the next update is followed.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], failed: Callable[[Exception], None]
    ) -> None:
        # Small, as its gradient is compared at every update; a zero one would not show scaling.
        # Of one that is shared out, each process follows its own part, if it has any.
        trained = [p for p in parameters if p.requires_grad]
        here = [p for p in trained if own_part(p).numel()]
        moving = [p for p in here if p.grad is not None and bool(own_part(p.grad).any())]
        self.parameter = min(moving or here or trained, key=lambda p: own_part(p).numel())
        self.followed = True
        self._failed = failed
        self._given: Tensor | None = None
        self._incoming: Tensor | None = None
        # The first also sees gradients that torch.autograd.grad only returns; the second tells
        # that what the first saw was added to .grad.
        self._handles = (
            self.parameter.register_hook(self._seen),
            self.parameter.register_post_accumulate_grad_hook(self._added),
        )
        self._shared_out = is_shared_out(self.parameter)

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def updated(self, updates: int, checking: bool) -> None:
        """Decide about the next update.

        Args:
            updates: How many there were.
            checking: Whether anything is checked.
        """
        self.followed = checking and (updates < _AT_FIRST or updates % _THEN_EVERY == 0)

    def _seen(self, gradient: Tensor) -> None:
        if self.followed:
            self._given = gradient.detach()

    def _added(self, parameter: Tensor) -> None:
        if self._shared_out:
            self._averaged(parameter)
            return
        given, self._given = self._given, None
        if given is None:
            return
        try:
            if self._incoming is None:
                # Cloned: torch may keep this tensor as .grad, which clipping changes in place.
                self._incoming = given.clone()
            else:
                self._incoming += given
        except Exception as error:
            self._failed(error)

    def _averaged(self, parameter: Tensor) -> None:
        """Backward of all processes has left their mean; torch calls no other hook then."""
        if not self.followed or parameter.grad is None:
            return
        try:
            self._incoming = own_part(parameter.grad).clone()
        except Exception as error:
            self._failed(error)

    def same(self) -> bool:
        """Whether the gradient is what backward gave, as far as that was seen."""
        incoming, self._incoming = self._incoming, None
        gradient = own_part(self.parameter.grad)
        return incoming is None or gradient is None or equal_or_nan(incoming, gradient)
