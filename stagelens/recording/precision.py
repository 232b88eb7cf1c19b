"""In which precision a model's forward passes really run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from stagelens.contracts import RecordingError
from stagelens.replaying.step import AUTOCAST
from stagelens.runs.schema import Precision

from .hooks import PassiveHook

_NAMES: dict[torch.dtype, Precision] = {dtype: name for name, dtype in AUTOCAST.items()}


class PrecisionWatch:
    """Reads whether autocast is on in training passes, and what it casts to.

    Training loops enter autocast around the call of the model, which may change from pass to pass.
    ``accelerate``, and with it transformers' Trainer, puts it into the model, where a hook on the
    model itself does not see it; so the first submodule to be called is looked at once.

    Args:
        model: The model that is trained.
        device: Type of the device that it is on.
        tell: Called with a problem that shows within a pass.

    Attributes:
        precision: That of training passes so far.
    """

    def __init__(self, model: nn.Module, device: str, tell: Callable[[Exception], None]) -> None:
        self._tell = tell
        self.precision: Precision = "float32"
        self._device = device
        self._around: Precision | None = None
        self._handles: list[RemovableHandle] = [
            child.register_forward_pre_hook(PassiveHook(self._inside_first_pass))
            for child in model.children()
        ]

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def before_pass(self) -> None:
        """Called by a hook on the model itself, before a training pass.

        Raises:
            RecordingError: The precision changed, or is one that replay does not reproduce.
        """
        around = self._now()
        if self._around is None:
            # The hook inside runs later, and replaces this where accelerate casts in the model.
            self.precision = self._around = around
        elif around != self._around:
            raise RecordingError(
                f"forward passes run in {around}, but the stage's first ran in {self._around}; "
                "keep to one precision (autocast) within a stage, or record two stages"
            )

    def _inside_first_pass(self, _module: nn.Module, _args: Any) -> None:
        # Passes without gradients may be evaluations in another precision.
        if torch.is_grad_enabled():
            self.close()
            try:
                self.precision = self._now()
            except Exception as error:
                self._tell(error)

    def _now(self) -> Precision:
        if not torch.is_autocast_enabled(self._device):
            return "float32"
        dtype = torch.get_autocast_dtype(self._device)
        if dtype not in _NAMES:
            raise RecordingError(
                f"autocast casts to {dtype}, which replay does not reproduce; use torch.bfloat16"
            )
        return _NAMES[dtype]
