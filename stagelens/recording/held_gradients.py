"""Gradients as an optimiser reads them, held on to until a step is run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Gradients:
    """Those of one step.

    Attributes:
        tensors: One of each optimised parameter, None where it has none.
        watched: Those that show whether they changed, where they are not copies.
        versions: Of these, then.
    """

    tensors: Sequence[Tensor | None]
    watched: Sequence[Tensor] = ()
    versions: Sequence[int] = ()

    @property
    def unchanged(self) -> bool:
        """Whether they are still as the optimiser read them."""
        return [tensor._version for tensor in self.watched] == list(self.versions)


class GradientHolder:
    """Holds on to the loop's own gradients, or to copies where these do not last.

    Args:
        used_up: Whether the optimiser may use gradients up, of one group and not of the other.
        device: Where copies are made.
    """

    def __init__(self, used_up: bool, device: torch.device) -> None:
        self._used_up, self._device = used_up, device
        self._smallest = -1
        self._first: Tensor | None = None
        self._filled_again = False

    def hold(self, gradients: Sequence[Tensor | None], copied: bool) -> Gradients | None:
        """Those of a step, None where there are none.

        Args:
            gradients: One of each optimised parameter.
            copied: Whether copies are wanted in any case.
        """
        if self._smallest < 0:  # the least to keep alive
            sizes = [(g.numel(), n) for n, g in enumerate(gradients) if g is not None]
            self._smallest = min(sizes)[1] if sizes else -1
        first = gradients[self._smallest]
        # The loop fills the same tensors again at every step: those held would change with it.
        self._filled_again |= first is not None and first is self._first
        self._first = first
        if copied or self._filled_again:
            return Gradients([g if g is None else self._copy(g) for g in gradients])
        if first is None:
            return None
        watched = [g for g in gradients if g is not None] if self._used_up else [first]
        return Gradients(gradients, watched, [g._version for g in watched])

    def _copy(self, gradient: Tensor) -> Tensor:
        return gradient.detach().to(self._device, copy=True)
