"""What makes a ``transformers`` model again: its configuration as plain JSON, and its attention."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stagelens.contracts import TaskError

from .adapters import adapter_config, is_adapted
from .config_limits import check_counts
from .quantising import quantised_config

_NO_PART = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "transformers_version",
        "architectures",
        "auto_map",
        "custom_pipelines",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "use_pretrained_backbone",
    }
)
"""Keys of a configuration that say where a model came from, or would fetch code or weights."""

_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2")


def with_special_floats(value: Any) -> Any:
    """A configuration's JSON with the floats that JSON lacks, which transformers writes by name."""
    if isinstance(value, list):
        return [with_special_floats(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"}:  # as {"__float__": "Infinity"}, in Mamba 2 for instance
        return float(value["__float__"])
    return {key: with_special_floats(each) for key, each in value.items()}


def plain_config(config: Any) -> dict[str, Any]:
    """A ``transformers`` configuration as plain JSON, with nothing but the architecture.

    Args:
        config: A ``PreTrainedConfig``, or one as a dictionary.

    Raises:
        TaskError: The model is quantised, too large to be one, or of no known type.
    """
    if hasattr(config, "to_json_string"):
        # With the defaults too: another version of transformers may have others.
        config = json.loads(config.to_json_string(use_diff=False))
    check_counts(config)
    kept = _without(dict(config))
    quantisation = kept.pop("quantization_config", None)
    # Which layers are 4-bit is read off the model itself.
    if quantisation is not None and not quantisation.get("load_in_4bit"):
        raise TaskError(
            "the model is quantised otherwise than in 4 bits of bitsandbytes, and such weights "
            "cannot be made again; load it without quantization_config, or with load_in_4bit"
        )
    if not isinstance(kept.get("model_type"), str):
        raise TaskError(
            "the model configuration has no model_type; give model.config.to_dict() of a "
            "transformers model"
        )
    return kept


def model_facts(model: Any) -> dict[str, Any]:
    """What recreates a model, as the keywords ``model`` and ``attention`` of a task."""
    config = plain_config(model.config)
    # What is trained, whatever the configuration says.
    config["dtype"] = str(_first_dtype(model)).removeprefix("torch.")
    return {"model": config, "attention": getattr(model.config, "_attn_implementation", None)}


def _first_dtype(model: nn.Module) -> torch.dtype:
    # Packed weights are bytes, which no other weight is made of.
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floating, torch.float32)


def own_config(
    model: nn.Module, known: Mapping[str, Any] | None, attention: str | None
) -> dict[str, Any]:
    """What makes a stage's model, where it is not the one that a task describes.

    Args:
        model: Is trained.
        known: The task's configuration; None to compare nothing but adapters.
        attention: The task's attention implementation; None for transformers' default.

    Returns:
        ``model``, ``attention``, ``quantised`` and ``peft``, each where it is another, or is one.

    Raises:
        TaskError: The model, or its adapter, cannot be made again; says why.
    """
    own: dict[str, Any] = {}
    base = model.get_base_model() if is_adapted(model) else model
    if known is not None and hasattr(getattr(base, "config", None), "to_json_string"):
        facts = model_facts(base)
        if _differs(facts["model"], known):
            own["model"] = facts["model"]
        if facts["attention"] not in (attention or _USUAL_ATTENTION, None):
            own["attention"] = facts["attention"]
    if (quantised := quantised_config(model)) is not None:
        own["quantised"] = quantised
    if is_adapted(model):
        own["peft"] = adapter_config(model)
    return own


_USUAL_ATTENTION = "sdpa"
_NAMES_ONLY = frozenset({"label2id", "use_cache"})
"""Keys that change no module and no loss."""


def _differs(found: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether two configurations make other models."""
    import transformers

    options = {key: value for key, value in known.items() if key != "model_type"}
    # With the defaults of this version of transformers, as the model that was found has them.
    whole = plain_config(transformers.AutoConfig.for_model(known["model_type"], **options))
    whole["dtype"] = whole.get("dtype") or "float32"
    for key in found.keys() | whole.keys():
        one, other = found.get(key), whole.get(key)
        if key in _NAMES_ONLY or (key == "id2label" and len(one or ()) == len(other or ())):
            continue
        # transformers finds it out in the first forward pass, from the labels.
        if key == "problem_type" and None in (one, other):
            continue
        if one != other:
            return True
    return False


def _without(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _without(item) for k, item in value.items() if k not in _NO_PART}
    return [_without(item) for item in value] if isinstance(value, list | tuple) else value


def checked_attention(attention: str | None) -> str | None:
    """The attention implementation, which must be one of transformers' own.

    Raises:
        TaskError: It is another, which transformers would fetch, or it is not installed.
    """
    if attention is None:
        return None
    if attention not in _ATTENTION:
        raise TaskError(
            f"attention {attention!r} is not one of {', '.join(_ATTENTION)}; load the model with "
            'attn_implementation="sdpa" or "eager"'
        )
    if attention.startswith("flash") and importlib.util.find_spec("flash_attn") is None:
        raise TaskError(
            f"the model uses attention {attention!r}, but flash_attn is not installed; install "
            'it, or make the task with attention="sdpa"'
        )
    return attention
