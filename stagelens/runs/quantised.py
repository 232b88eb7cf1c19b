"""4-bit weights of ``bitsandbytes`` among named tensors: packed, beside what unpacks them.

Such a weight is a parameter of packed bytes; scales and code book hang on it as its
``quant_state``. Here they are tensors of their own, named as ``bitsandbytes`` names them in
checkpoints: ``weight.absmax``, ``weight.quant_map``, ``weight.quant_state.bitsandbytes__nf4``, ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.contracts import Refused

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


def parts_of(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What unpacks a tensor among others, by the names that it has beside it."""
    return {n.removeprefix(f"{name}."): t for n, t in tensors.items() if n.startswith(f"{name}.")}


def unpack(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """A packed weight, (out, in), in the dtype that it is computed with, as its library does it.

    Args:
        name: Its name.
        tensors: Hold it, and what unpacks it.
    """
    functional = _functional(name)
    data = tensors[name]
    state = functional.QuantState.from_dict(dict(parts_of(name, tensors)), device=data.device)
    unpacked: Tensor = functional.dequantize_4bit(data.contiguous(), state)
    return unpacked


def pack(name: str, weight: Tensor, like: Mapping[str, Tensor], there: str) -> dict[str, Tensor]:
    """A weight in 4 bits, and what unpacks it, by name.

    Args:
        name: To give it.
        weight: (out, in).
        like: Hold a weight that is packed as this one is to be.
        there: That weight's name.
    """
    settings = packing(there, like)
    data, state = _functional(name).quantize_4bit(
        weight.to(getattr(torch, settings["dtype"])).contiguous(),
        blocksize=settings["blocksize"],
        compress_statistics="nested_blocksize" in settings,
        quant_type=settings["quant_type"],
        quant_storage=like[there].dtype,
    )
    parts = {key: _padded(key, part) for key, part in state.as_dict(packed=True).items()}
    return {name: data, **{f"{name}.{key}": part for key, part in parts.items()}}


def packing(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """How a tensor among others is packed, as ``bitsandbytes`` notes it."""
    parts = parts_of(name, tensors)
    noted = next(part for key, part in parts.items() if key.startswith("quant_state."))
    settings: dict[str, Any] = json.loads(bytes(noted.tolist()))
    return settings


def _functional(name: str) -> Any:
    try:
        from bitsandbytes import functional
    except ImportError:
        raise Refused(
            f"{name} is in 4 bits, but bitsandbytes is not installed; install it "
            "(pip install bitsandbytes)"
        ) from None
    return functional
