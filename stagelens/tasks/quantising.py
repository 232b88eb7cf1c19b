"""Models with 4-bit layers of ``bitsandbytes``, on which QLoRA trains adapters."""

from __future__ import annotations

from typing import Any

from torch import nn

from stagelens.contracts import TaskError

from .adapters import is_adapted

_KIND = ("bitsandbytes.nn.modules", "Linear4bit")


def quantised_config(model: nn.Module) -> dict[str, Any] | None:
    """Which layers of a model are 4-bit, and how, as plain JSON for :func:`quantise`.

    Raises:
        TaskError: They are quantised in different ways.
    """
    base = model.get_base_model() if is_adapted(model) else model
    layers = {
        # An adapter wraps the layer that it adds to.
        path.removesuffix(".base_layer"): module
        for path, module in base.named_modules()
        if _is_4bit(module)
    }
    if not layers:
        return None
    ways = [_way(module) for module in layers.values()]
    if any(way != ways[0] for way in ways):
        raise TaskError(
            "layers of the model are quantised in different ways; quantise all of them alike"
        )
    return {"layers": list(layers), **ways[0]}


def _is_4bit(module: nn.Module) -> bool:
    # By name: asking for the class would import bitsandbytes.
    return any((k.__module__, k.__name__) == _KIND for k in type(module).__mro__)


def _way(module: Any) -> dict[str, Any]:
    dtype = module.compute_dtype
    return {
        "quant_type": module.weight.quant_type,
        "compress_statistics": bool(module.weight.compress_statistics),
        "compute_dtype": None if dtype is None else str(dtype).removeprefix("torch."),
    }


def quantise(model: nn.Module, config: dict[str, Any]) -> None:
    """Give layers of a model 4-bit weights, in place; recorded ones are loaded into them.

    Args:
        model: As it is without quantisation.
        config: As :func:`quantised_config` gives it.

    Raises:
        TaskError: bitsandbytes is not installed, or the model has no such layers.
    """
    import torch

    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:
        raise TaskError(
            "the model has 4-bit weights, but bitsandbytes is not installed; install it "
            "(pip install bitsandbytes)"
        ) from None
    dtype = config["compute_dtype"]
    for path in config["layers"]:
        try:
            old = model.get_submodule(path)
        except AttributeError:
            raise TaskError(
                f"the model has no layer {path}, which was quantised when it was recorded"
            ) from None
        if not isinstance(old, nn.Linear):
            raise TaskError(f"{path} is a {type(old).__name__}, and only Linear can be quantised")
        new = Linear4bit(
            old.in_features,
            old.out_features,
            bias=old.bias is not None,
            compute_dtype=None if dtype is None else getattr(torch, dtype),
            compress_statistics=config["compress_statistics"],
            quant_type=config["quant_type"],
        )
        if old.bias is not None:
            new.bias = old.bias
        # Else evaluation on such a processor packs weights anew, rounding their scales to bfloat16.
        new.support_avx512bf16_for_cpu = False
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new.to("cpu"))  # packs it
    # peft looks for it to choose the adapter's class.
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
