"""A model placed for forward passes: on one device, or in parts on several if one is too small."""

from __future__ import annotations

from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stagelens.compute import devices, temporaries
from stagelens.compute.unallocated import allocate
from stagelens.contracts import StageLensError
from stagelens.runs.states import Weights, load_into

_ROOM = 0.8
"""The share of a GPU's free memory that weights may take, so that activations have room."""


class Placed:
    """A model of one architecture that takes the weights of several models in turn.

    Where it does not fit on the GPU, ``accelerate`` spreads its blocks over all GPUs, the CPU's
    memory and the disk (``device_map="auto"``), and moves inputs along.

    Args:
        model: The module; its weights are overwritten.
        memory: Device to bytes that weights may take, in accelerate's form; None for what is free.
    """

    def __init__(self, model: Any, memory: Mapping[Any, int | str] | None = None) -> None:
        self.model = model.eval()
        self.device = devices.computing()
        self._memory = dict(memory) if memory is not None else None
        self._split = memory is not None or self._too_large()
        self._places: dict[str, Any] | None = None
        self._disk: TemporaryDirectory[str] | None = None
        if not self._split:
            allocate(self.model, self.device)
            self.model.to(self.device)

    def _too_large(self) -> bool:
        if self.device.type != "cuda":
            return False
        tensors = [*self.model.parameters(), *self.model.buffers()]
        free, _ = torch.cuda.mem_get_info(self.device)
        return sum(t.numel() * t.element_size() for t in tensors) > _ROOM * free

    def load(self, weights: Weights) -> None:
        """Put another model's weights in.

        Raises:
            RunError: They belong to another architecture.
            StageLensError: The model is too large for one device, and cannot be split.
        """
        if not self._split:
            load_into(self.model, weights)
            return
        from accelerate import dispatch_model
        from accelerate.hooks import remove_hook_from_submodules

        if self._places is None:
            self._places = self._spread()
        # Hooks hold offloaded weights elsewhere, with placeholders in the module. Without them the
        # module has tensors to copy into again, but two where input and output embeddings were one.
        remove_hook_from_submodules(self.model)
        self.model.tie_weights()
        load_into(self.model, weights)
        # A new folder for each model; what the last one had on the disk is no longer used.
        if self._disk is not None:
            self._disk.cleanup()
        self._disk = temporaries.folder("stagelens")
        dispatch_model(
            self.model, self._places, main_device=self.device, offload_dir=self._disk.name
        )

    def _spread(self) -> dict[str, Any]:
        """Which device each block goes to, by name."""
        from accelerate import infer_auto_device_map

        blocks = getattr(self.model, "_no_split_modules", None)
        if blocks is None:
            raise StageLensError(
                "the model does not fit on the GPU, and only models of transformers are known to "
                "work in parts; use --device cpu, or a larger GPU"
            )
        places: dict[str, Any] = infer_auto_device_map(
            self.model, max_memory=self._memory, no_split_module_classes=list(blocks)
        )
        return places
