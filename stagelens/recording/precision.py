"""In which precision a model's forward passes really run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..contracts import RecordingError
from ..runs.schema import Precision
from ..training.replay import AUTOCAST
from .hooks import PassiveHook

_NAMES: dict[torch.dtype, Precision] = {dtype: name for name, dtype in AUTOCAST.items()}


class PrecisionWatch:
    """Reads whether autocast is on inside training passes, and what it casts to.

    Training loops enter autocast around the call of the model. ``accelerate``, and with it
    transformers' Trainer, enters it within the call, where a hook on the model itself does not see
    it; so the first module inside that is called is asked too.

    Args:
        model: The model that is trained.
        device: Type of the device that it is on.

    Attributes:
        precision: That of training passes so far.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        self.precision: Precision = "float32"
        self._device = device
        self._seen = False
        self._handles: dict[nn.Module, RemovableHandle] = {
            child: child.register_forward_pre_hook(PassiveHook(self._inside))
            for child in model.children()
        }

    def close(self) -> None:
        """Take all hooks away."""
        for handle in self._handles.values():
            handle.remove()
        self._handles = {}

    def before_pass(self) -> None:
        """Called by a hook on the model itself, before a training pass.

        Raises:
            RecordingError: The precision changed, or has no name here.
        """
        if torch.is_autocast_enabled(self._device):
            self._note()

    def _inside(self, module: nn.Module, _args: Any) -> None:
        if not torch.is_grad_enabled():
            return
        for other in [other for other in self._handles if other is not module]:
            self._handles.pop(other).remove()
        self._note()

    def _note(self) -> None:
        precision: Precision = "float32"
        if torch.is_autocast_enabled(self._device):
            dtype = torch.get_autocast_dtype(self._device)
            if dtype not in _NAMES:
                raise RecordingError(
                    f"autocast casts to {dtype}, which replay does not reproduce; use "
                    "torch.bfloat16"
                )
            precision = _NAMES[dtype]
        if self._seen and precision != self.precision:
            raise RecordingError(
                f"forward passes run in {precision}, but the stage's first ran in "
                f"{self.precision}; keep to one precision (autocast) within a stage, or record "
                "two stages"
            )
        self.precision, self._seen = precision, True
