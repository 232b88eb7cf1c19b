"""Batches of any nesting as flat tensors and a JSON description, and back.

A batch is built of tensors, numbers, strings, booleans and None, nested in tuples, lists and
mappings with string keys. Anything else is refused: replay could not give it to the model again.

The last bit of a matrix product can depend on the strides of its operands and on their place in
memory. So these are described too, and a batch is rebuilt exactly as it lay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stagelens.contracts import RecordingError

_ALIGNMENT = 64
"""Bytes: torch's own allocations begin at multiples, and no vector instruction reads more."""


def flatten(batch: Any) -> tuple[Any, list[Tensor]]:
    """Take a batch apart, copying its tensors to the CPU.

    Returns:
        The description (plain JSON) and the tensors that it refers to by number, in order.

    Raises:
        RecordingError: The batch holds something that cannot be kept; names the type.
    """
    tensors: list[Tensor] = []

    def visit(value: Any) -> Any:
        if isinstance(value, Tensor) and value.layout is torch.strided:
            # A copy, because a loop may fill the same tensor with its next batch; contiguous,
            # because all that is stored of an expanded or sliced tensor is its own elements.
            kept = value.detach().clone(memory_format=torch.contiguous_format)
            described = {"tensor": len(tensors)}
            tensors.append(kept if kept.is_cpu else kept.cpu())
            if value.stride() == kept.stride() and not (value.is_cpu and _offset(value)):
                return described  # the usual case, at every step of a training
            return described | _layout(value, kept.stride())
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        if isinstance(value, tuple):
            return {"tuple": [visit(item) for item in value]}
        if isinstance(value, list):
            return {"list": [visit(item) for item in value]}
        # JSON has only strings as keys: others would come back as strings.
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"dict": {key: visit(item) for key, item in value.items()}}
        raise RecordingError(
            f"the batch holds a {type(value).__name__}, which cannot be recorded; build batches "
            "from tensors, numbers and strings in tuples, lists and dictionaries, or record with "
            'keep_batches="none"'
        )

    return visit(batch), tensors


def unflatten(description: Any, tensors: Sequence[Tensor]) -> Any:
    """Rebuild a batch; the inverse of :func:`flatten`."""
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
        # Kept only if no two elements share memory, as in an expanded tensor, and the gaps are
        # small: a column of a wide table is not worth the memory of the table.
        count = tensor.numel()
        if count <= _span(tensor.shape, stride) <= 2 * count:
            layout["stride"] = list(stride)
    if tensor.is_cpu and (offset := _offset(tensor)):
        layout["offset"] = offset
    return layout


def _offset(tensor: Tensor) -> int:
    return tensor.data_ptr() % _ALIGNMENT


def _laid_out(tensor: Tensor, layout: Mapping[str, Any]) -> Tensor:
    """A copy that lies in memory as :func:`_layout` describes."""
    if len(layout) == 1 and tensor.is_contiguous():  # nothing unusual beside its number
        return tensor.clone()
    stride = layout.get("stride") or tensor.stride()
    # The same limit again: a damaged description must not ask for any amount of memory.
    if not 0 <= _span(tensor.shape, stride) <= 2 * max(tensor.numel(), 1):
        raise ValueError("a tensor with a memory layout that is never recorded")
    size = tensor.element_size()
    memory = torch.empty(_span(tensor.shape, stride) + _ALIGNMENT // size, dtype=tensor.dtype)
    # The offset counts from a multiple of 64 bytes; the extra elements leave room to get there.
    begin = (layout.get("offset", 0) - memory.data_ptr()) % _ALIGNMENT // size
    return memory.as_strided(tensor.shape, stride, begin).copy_(tensor)


def _span(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements between a tensor's first and its last in memory, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def batch_size(batch: Any) -> int:
    """Number of examples: the first dimension of the first tensor that has one, else 1."""
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
    """Some examples of a batch: these rows of every tensor that has one row per example.

    Args:
        batch: Tensors in any nesting of mappings, tuples and lists.
        rows: Which examples.
        mapped: Called with every mapping and what was taken of it; returns what to use instead.
    """
    size, chosen = batch_size(batch), rows if isinstance(rows, slice) else list(rows)

    def take(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[chosen] if value.ndim and value.shape[0] == size else value
        if isinstance(value, Mapping):
            return mapped(value, {key: take(item) for key, item in value.items()})
        if isinstance(value, tuple | list):
            return _like(value, [take(item) for item in value])
        return value

    return take(batch)


def _like(value: Any, items: list[Any]) -> Any:
    """Items as a tuple or list of the same kind; a named tuple takes them one by one."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def to_device(batch: Any, device: torch.device) -> Any:
    """The same batch with its tensors on ``device``; on the CPU nothing is copied."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, tuple | list):
        return _like(batch, [to_device(item, device) for item in batch])
    if isinstance(batch, Mapping):
        return {key: to_device(item, device) for key, item in batch.items()}
    return batch
