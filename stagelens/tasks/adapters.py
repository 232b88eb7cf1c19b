"""LoRA adapters of ``peft``: their configuration as plain JSON, and models made with it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import nn

from stagelens.contracts import TaskError

if TYPE_CHECKING:
    from peft import PeftModel

_KEPT = (
    "task_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "bias",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
)
"""What decides which modules exist and what they compute."""

_IMMATERIAL = {
    # Where the adapter came from, and what is done with it.
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "runtime_config",
    # Initial values, which a recorded state replaces.
    "corda_config",
    "eva_config",
    "init_lora_weights",
    "lora_ga_config",
    "loftq_config",
}


def plain_adapter(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``peft`` configuration, as plain JSON that :func:`with_adapter` takes.

    Args:
        config: As ``LoraConfig.to_dict()`` or an ``adapter_config.json`` holds it, whole or in
            part; ``adapter_name`` may be added, if it is not ``"default"``.

    Raises:
        TaskError: It belongs to another tuner than LoRA, or to a variant of LoRA other than DoRA
            that merges differently; the message names it.
    """
    from peft import LoraConfig

    kind = _plain(config.get("peft_type") or "LORA")
    if kind != "LORA":
        raise TaskError(
            f"the adapter is of kind {kind}, and only LoRA can be recorded and replayed; use "
            "peft.LoraConfig"
        )
    # Variants of LoRA are options of the same class, and every version of peft adds some: what is
    # not known here may pass only where it is off or has its default.
    usual = LoraConfig().to_dict()
    known = {*_KEPT, *_IMMATERIAL, "peft_type", "adapter_name"}
    for name, value in config.items():
        if name not in known and value and _plain(value) != _plain(usual.get(name)):
            raise TaskError(
                f"the adapter's configuration says {name}={_plain(value)!r}, which is beyond the "
                "plain LoRA that can be recorded and replayed; omit it"
            )
    kept = {name: _plain(config.get(name)) for name in _KEPT}
    # What is unset is left to the default of LoraConfig.
    kept = {name: value for name, value in kept.items() if value not in (None, {})}
    if not kept.get("use_dora"):  # runs without it were recorded before it was known
        kept.pop("use_dora", None)
    name = config.get("adapter_name", "default")
    return {"peft_type": kind, **kept} | ({} if name == "default" else {"adapter_name": name})


def _plain(value: Any) -> Any:
    """Enums as strings, collections as sorted lists: nowhere here does their order matter."""
    # peft's enums are strings, but str() would give 'PeftType.LORA' instead of 'LORA'.
    if isinstance(value, str):
        return str(getattr(value, "value", value))
    return sorted(set(value)) if isinstance(value, set | list | tuple) else value


def is_adapted(model: nn.Module) -> TypeGuard[PeftModel]:
    """Whether a model is a ``PeftModel``; never the first to import ``peft``."""
    # A PeftModel can exist only where peft has been imported.
    if "peft" not in sys.modules:
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def adapter_config(model: PeftModel) -> dict[str, Any]:
    """The adapter of a model, or all of them, as plain JSON for :func:`with_adapter`.

    Raises:
        TaskError: One cannot be recorded; the message says what to do.
    """
    first, *others = (
        plain_adapter({**config.to_dict(), "adapter_name": name})
        for name, config in model.peft_config.items()
    )
    return first | ({"others": others, "active": active_adapters(model)} if others else {})


def active_adapters(model: PeftModel) -> list[str]:
    """Names of the adapters that are in use."""
    return list(model.base_model.active_adapters)


def with_adapter(model: nn.Module, config: Mapping[str, Any]) -> PeftModel:
    """Wrap a model with fresh LoRA adapters, in place; recorded states are loaded into it.

    Args:
        model: Without adapters.
        config: As :func:`adapter_config` or an ``adapter_config.json`` gives it.

    Raises:
        TaskError: ``config`` is not plain LoRA, or does not fit the model.
    """
    from peft import LoraConfig, get_peft_model

    config = dict(config)
    others, active = config.pop("others", []), config.pop("active", [])
    (name, first), *more = (_named(each) for each in (config, *others))
    try:
        with warnings.catch_warnings():
            # Said when the adapter was first made, and peft corrects it for every layer.
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
            # peft asks transformers by a name that goes with the next major version.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            adapted = get_peft_model(model, LoraConfig(**first), adapter_name=name)
            for other, options in more:
                adapted.add_adapter(other, LoraConfig(**options))
            if active:
                adapted.base_model.set_adapter(active)
            return adapted
    except (TypeError, ValueError) as error:
        raise TaskError(f"the adapter's configuration does not fit the model: {error}") from None


def _named(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """An adapter's name, and the keywords of its ``LoraConfig``."""
    options = plain_adapter(config)
    del options["peft_type"]
    return options.pop("adapter_name", "default"), options
