"""The digest of a stage's recorded steps, which grows with every part that is written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .schema import digest

if TYPE_CHECKING:
    from torch import Tensor


class StepsDigest:
    """Digest of a stage's steps that does not depend on how they were divided into parts.

    Each stack has a hash of its own, because a part holds its stacks one after another.
    """

    def __init__(self) -> None:
        self._rows = hashlib.sha256()
        self._stacks: dict[str, Any] = {}

    def copy(self) -> StepsDigest:
        """The same so far, to go on from."""
        made = StepsDigest()
        made._rows = self._rows.copy()
        made._stacks = {name: hasher.copy() for name, hasher in self._stacks.items()}
        return made

    def take_in(self, rows: Sequence[dict[str, Any]], stacks: Mapping[str, Tensor]) -> None:
        """Add the next steps; within a stack, their tensors follow in order."""
        import torch

        # repr gives every float in full, so equal digests mean equal numbers.
        self._rows.update("".join(map(repr, rows)).encode())
        for name, stack in stacks.items():
            hasher = self._stacks.setdefault(name, hashlib.sha256())
            # As bytes, because numpy has no bfloat16.
            hasher.update(stack.reshape(-1).view(torch.uint8).numpy().data)

    def hexdigest(self) -> str:
        """Of all steps so far."""
        stacks = {name: hasher.hexdigest() for name, hasher in self._stacks.items()}
        return digest(self._rows.hexdigest(), stacks)
