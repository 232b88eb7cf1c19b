"""Quantised checkpoints: their weights expanded again by transformers."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .checkpoints import CONFIG_BYTES, read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantised(folder: Path) -> str | None:
    """How a folder's weights are quantised; None if they are not."""
    if not (folder / "config.json").is_file():
        return None
    own = read_json_object(folder / "config.json", CONFIG_BYTES).get("quantization_config")
    return None if own is None else str((own or {}).get("quant_method") or "of no known kind")


def expanding(content: Mapping[str, Any]) -> Any:
    """The quantisation of a folder, told to expand its weights; None where it cannot be told."""
    from transformers.quantizers.auto import AutoQuantizationConfig

    own = AutoQuantizationConfig.from_dict(dict(content))
    if not hasattr(own, "dequantize"):
        return None
    own.dequantize = True
    return own


def dequantise(model: PreTrainedModel, *, expanded: bool) -> None:
    """Expand a model's weights, and let it be one that was never quantised.

    Args:
        model: As it was loaded.
        expanded: Whether loading has expanded its weights already.
    """
    if not expanded:
        model.dequantize()
    for holder in (model, model.config):
        if hasattr(holder, "quantization_config"):
            del holder.quantization_config
    model.hf_quantizer = None
    _turn_back(model)


def _turn_back(model: PreTrainedModel) -> None:
    """Turn back the weights of GPT-2's Conv1D, of which quantising makes transposed layers."""
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        built = type(model)(deepcopy(model.config))
    for name, module in built.named_modules():
        own = model.get_submodule(name)
        if isinstance(module, Conv1D) and isinstance(own, nn.Linear):
            own.weight = nn.Parameter(own.weight.detach().t().contiguous(), requires_grad=False)
