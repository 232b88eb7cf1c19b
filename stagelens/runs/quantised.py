"""4-bit weights of ``bitsandbytes`` among named tensors: packed, beside what unpacks them.

Such a weight is a parameter of packed bytes; scales and code book hang on it as its
``quant_state``. Here they are tensors of their own, named as ``bitsandbytes`` names them in
checkpoints: ``weight.absmax``, ``weight.quant_map``, ``weight.quant_state.bitsandbytes__nf4``, ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_SCALES = ".absmax"
_SETTINGS = 512
"""Bytes: twice what they take."""


def quantised_parts(name: str, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What unpacks a parameter, by name; empty for one that is not packed."""
    state = getattr(parameter, "quant_state", None)
    if state is None or not hasattr(state, "as_dict"):
        return {}
    parts = {key: part.detach() for key, part in state.as_dict(packed=True).items()}
    return {f"{name}.{key}": _padded(key, part) for key, part in parts.items()}


def _padded(key: str, part: Tensor) -> Tensor:
    """The settings, which are JSON as bytes, at a length that numbers in it do not change."""
    if not key.startswith("quant_state."):
        return part
    spaces = part.new_full((-len(part) % _SETTINGS,), ord(" "))
    return torch.cat([part, spaces])


def is_quantised(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a tensor among others is packed."""
    return f"{name}{_SCALES}" in tensors


def take_quantised(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module's packed weights recorded values, which cannot be copied into them alone.

    Args:
        model: Made with packed weights in the same places.
        tensors: Recorded ones; those of other names are left alone.
    """
    for path, module in list(model.named_modules()):
        own = module._parameters.get("weight")
        if own is None or not quantised_parts("", own):
            continue
        name = f"{path}.weight"
        parts = {n: tensors[n].clone() for n in tensors if n.startswith(f"{name}.")}
        if name not in tensors or not parts:
            continue  # the caller compares names, and says which is missing
        packed: Any = type(own)
        prefix = len(name) + 1
        module._parameters["weight"] = packed.from_prequantized(
            data=tensors[name].clone(),
            quantized_stats={n[prefix:]: part for n, part in parts.items()},
            requires_grad=False,
            device=own.device,
            module=module,
        )
