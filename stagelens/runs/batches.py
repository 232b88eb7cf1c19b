"""Batches of any nesting as flat tensors and a JSON description, and back.

A batch is built of tensors, numbers, strings, booleans and None, nested in tuples, lists and
mappings with string keys. Anything else is refused: replay could not give it to the model again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..contracts import RecordingError


def flatten(batch: Any) -> tuple[Any, list[Tensor]]:
    """Take a batch apart, copying its tensors to the CPU.

    Returns:
        The description (plain JSON) and the tensors that it numbers, in order.

    Raises:
        RecordingError: The batch holds something that cannot be kept; names the type.
    """
    tensors: list[Tensor] = []

    def visit(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value.detach().to("cpu", copy=True).contiguous())
            return {"tensor": len(tensors) - 1}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        if isinstance(value, tuple):
            return {"tuple": [visit(item) for item in value]}
        if isinstance(value, list):
            return {"list": [visit(item) for item in value]}
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"dict": {key: visit(item) for key, item in value.items()}}
        raise RecordingError(
            f"the batch holds a {type(value).__name__}, which cannot be recorded; make batches of "
            "tensors, numbers and strings in tuples, lists and dictionaries, or record with "
            'keep_batches="none"'
        )

    return visit(batch), tensors


def unflatten(description: Any, tensors: Sequence[Tensor]) -> Any:
    """Put a batch together again; the inverse of :func:`flatten`."""
    ((kind, content),) = description.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(unflatten(item, tensors) for item in content)
    if kind == "list":
        return [unflatten(item, tensors) for item in content]
    if kind == "dict":
        return {key: unflatten(item, tensors) for key, item in content.items()}
    return content


def batch_size(batch: Any) -> int:
    """Number of examples: the first dimension of the first tensor with one; 1 without any."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else 1
    items = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(items, str) or not hasattr(items, "__iter__"):
        return 1
    for item in items:
        if isinstance(item, Tensor | tuple | list | Mapping):
            return batch_size(item)
    return 1


def to_device(batch: Any, device: torch.device) -> Any:
    """The same batch with its tensors on ``device``; on the CPU nothing is copied."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(item, device) for item in batch)
    if isinstance(batch, Mapping):
        return {key: to_device(item, device) for key, item in batch.items()}
    return batch
