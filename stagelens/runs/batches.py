"""Batches of any nesting as flat tensors and a JSON description, and back.

A batch is built of tensors, numbers, strings, booleans and None, nested in tuples, lists and
mappings with string keys. Anything else is refused: replay could not give it to the model again.

A matrix product can differ in its last bit with the strides of its operands, and with where they
lie in memory. So these are described too, and a batch is put together again just as it lay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stagelens.contracts import RecordingError

_ALIGNMENT = 64
"""Bytes: where torch's own allocations begin, and the most that a vector instruction reads."""


def flatten(batch: Any) -> tuple[Any, list[Tensor]]:
    """Take a batch apart, copying its tensors to the CPU.

    Returns:
        The description (plain JSON) and the tensors that it numbers, in order.

    Raises:
        RecordingError: The batch holds something that cannot be kept; names the type.
    """
    tensors: list[Tensor] = []

    def visit(value: Any) -> Any:
        if isinstance(value, Tensor) and value.layout is torch.strided:
            kept = value.detach().clone(memory_format=torch.contiguous_format)
            tensors.append(kept if kept.is_cpu else kept.cpu())
            return {"tensor": len(tensors) - 1} | _layout(value, kept.stride())
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        if isinstance(value, tuple):
            return {"tuple": [visit(item) for item in value]}
        if isinstance(value, list):
            return {"list": [visit(item) for item in value]}
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"dict": {key: visit(item) for key, item in value.items()}}
        raise RecordingError(
            f"the batch holds a {type(value).__name__}, which cannot be recorded; build batches "
            "from tensors, numbers and strings in tuples, lists and dictionaries, or record with "
            'keep_batches="none"'
        )

    return visit(batch), tensors


def unflatten(description: Any, tensors: Sequence[Tensor]) -> Any:
    """Put a batch together again; the inverse of :func:`flatten`."""
    if "tensor" in description:
        return _laid_out(tensors[description["tensor"]], description)
    ((kind, content),) = description.items()
    if kind == "tuple":
        return tuple(unflatten(item, tensors) for item in content)
    if kind == "list":
        return [unflatten(item, tensors) for item in content]
    if kind == "dict":
        return {key: unflatten(item, tensors) for key, item in content.items()}
    return content


def _layout(tensor: Tensor, usual_stride: tuple[int, ...]) -> dict[str, Any]:
    """What is unusual about where a tensor lies; nothing for a fresh, contiguous one."""
    layout: dict[str, Any] = {}
    stride = tensor.stride()
    if stride != usual_stride:
        count = tensor.numel()
        if count <= _span(tensor.shape, stride) <= 2 * count:
            layout["stride"] = list(stride)
    if tensor.is_cpu and (offset := tensor.data_ptr() % _ALIGNMENT):
        layout["offset"] = offset
    return layout


def _laid_out(tensor: Tensor, layout: Mapping[str, Any]) -> Tensor:
    """A copy that lies as :func:`_layout` says."""
    stride = layout.get("stride") or tensor.stride()
    if not 0 <= _span(tensor.shape, stride) <= 2 * max(tensor.numel(), 1):
        raise ValueError("a tensor that lies as none was recorded")
    size = tensor.element_size()
    memory = torch.empty(_span(tensor.shape, stride) + _ALIGNMENT // size, dtype=tensor.dtype)
    begin = (layout.get("offset", 0) - memory.data_ptr()) % _ALIGNMENT // size
    return memory.as_strided(tensor.shape, stride, begin).copy_(tensor)


def _span(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements between a tensor's first and its last in memory, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def batch_size(batch: Any) -> int:
    """Number of examples: the first dimension of the first tensor with one; 1 without any."""
    return _first_dimension(batch) or 1


def _first_dimension(value: Any) -> int | None:
    if isinstance(value, Tensor):
        return value.shape[0] if value.ndim else None
    if isinstance(value, Mapping):
        value = list(value.values())
    items = value if isinstance(value, tuple | list) else ()
    return next((n for n in map(_first_dimension, items) if n is not None), None)


def rows_of(
    batch: Any,
    rows: slice | Sequence[int],
    mapped: Callable[[Mapping[Any, Any], dict[Any, Any]], dict[Any, Any]] = lambda _, taken: taken,
) -> Any:
    """Some examples of a batch: those rows of every tensor that has one for each.

    Args:
        batch: Tensors in any nesting of mappings, tuples and lists.
        rows: Which examples.
        mapped: Is given every mapping and what was taken of it, and may change that.
    """
    size, chosen = batch_size(batch), rows if isinstance(rows, slice) else list(rows)

    def take(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[chosen] if value.ndim and value.shape[0] == size else value
        if isinstance(value, Mapping):
            return mapped(value, {key: take(item) for key, item in value.items()})
        if isinstance(value, tuple | list):
            return type(value)(take(item) for item in value)
        return value

    return take(batch)


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
