"""What an optimiser keeps, as plain tensors with names, and back again without loss.

An optimiser keeps tensors, but also Python numbers (a count of steps), tensors of a class of its
own (quantised moments), and values of a whole parameter group. Each becomes plain tensors, which
safetensors hold, and its name says what it was:

    exp_avg                             a tensor
    step:int, mode:bool, d:float        a number
    note:json                           a text, a list or a dictionary, as bytes
    exp_avg:OptimState8bit.codes        a tensor inside one of another class ...
    exp_avg:OptimState8bit.:json        ... and what else that is made of
    group k:int                         a value of the parameter's group
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stagelens.contracts import RecordingError, RunError, imported

from .shards import is_shared_out

GROUP = "group "
"""Begins the names of what belongs to the parameter's group."""

_NUMBERS: Mapping[type, torch.dtype] = {
    bool: torch.bool,
    int: torch.int64,
    float: torch.float64,
}
_KINDS = {kind.__name__: kind for kind in _NUMBERS}
_JSON, _INSIDE = "json", "."


def as_tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Values by name as plain tensors (not copies of those that are tensors).

    None is left out, as a value that is not there.

    Raises:
        RecordingError: A value is of a kind that no file holds; names it.
    """
    found: dict[str, Tensor] = {}
    for key, value in values.items():
        plain = type(value) is Tensor or type(value) is torch.nn.Parameter
        if plain or is_shared_out(value):
            found[key] = value
        elif value is not None:
            found.update(_as_tensors(key, value))
    return found


def _as_tensors(key: str, value: Any) -> dict[str, Tensor]:
    kind = type(value)
    if kind in _NUMBERS:
        return {f"{key}:{kind.__name__}": torch.tensor(value, dtype=_NUMBERS[kind])}
    if isinstance(value, Tensor) and hasattr(value, "__tensor_flatten__"):
        inner, rest = value.__tensor_flatten__()
        name = f"{key}:{kind.__name__}{_INSIDE}"
        found = {f"{name}{each}": getattr(value, each) for each in inner}
        return {**found, f"{name}:{_JSON}": _bytes([_plain(each) for each in rest])}
    try:
        return {f"{key}:{_JSON}": _bytes(value)}
    except (TypeError, ValueError):
        raise RecordingError(
            f"the optimiser keeps {key} of type {kind.__name__}, which is neither a tensor nor a "
            "number, a text or a list of such; a replay could not give it back"
        ) from None


def _bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value), "utf-8"), dtype=torch.uint8)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, torch.dtype) else value


def from_tensors(tensors: Mapping[str, Tensor], classes: Mapping[str, str]) -> dict[str, Any]:
    """The values of :func:`as_tensors`; those that are tensors are the same objects.

    Args:
        tensors: By name.
        classes: Class name to ``package.module:Class`` of tensors that are not plain ones; a file
            names none that is not among them.

    Raises:
        RunError: A name or a value is not what was recorded.
    """
    found: dict[str, Any] = {}
    inside: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, kind = name.partition(":")
        if not kind:
            found[key] = tensor
        elif kind in _KINDS:
            found[key] = _KINDS[kind](tensor.item())
        elif kind == _JSON:
            found[key] = _json(tensor)
        elif _INSIDE in kind:
            owner, _, attribute = kind.partition(_INSIDE)
            inside.setdefault((key, owner), {})[attribute] = tensor
        else:
            raise RunError(f"the optimiser's state holds {name!r}, which nothing here reads")
    for (key, owner), parts in inside.items():
        if owner not in classes:
            raise RunError(f"the optimiser's {key} is a {owner}, which this optimiser does not use")
        made = imported(
            classes[owner],
            lambda why, owner=owner: RunError(  # type: ignore[misc]
                f"the optimiser's state is a {owner}, which cannot be imported here ({why}); "
                "install the package that its training used"
            ),
        )
        rest = [_original(each) for each in _json(parts.pop(f":{_JSON}"))]
        found[key] = made.__tensor_unflatten__(parts, rest)
    return found


def _json(tensor: Tensor) -> Any:
    try:
        return json.loads(bytes(tensor.cpu().tolist()))
    except ValueError:
        raise RunError("the optimiser's state holds a text that is not JSON") from None


def _original(value: Any) -> Any:
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else None
    return dtype if isinstance(dtype, torch.dtype) else value
