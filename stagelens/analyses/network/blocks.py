"""Blocks of a model: groups of its parameters and buffers, found from its modules.

In a layer, which is one of several in a row that are made of several modules, all attention is a
block, the MLP is one, the norms are one, and so on. Outside of layers the embeddings are a block,
and every other module that has parameters is one of its own. A parameter that two modules share is
in one block only. Adapters belong to the block that they change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from stagelens.contracts import Example, Task
from stagelens.runs.batches import to_device

from .block_table import Block, Kind

_MOST_BLOCKS = 96
"""From here on whole layers are blocks: each takes a forward pass over the examples."""

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_CROSS = re.compile(r"cross_?attn|cross_?attention|encoder_attn|EncDecAttention", re.IGNORECASE)
_NORM = re.compile(r"norm", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed|^(wte|wpe|shared|cls_token|pos_\w+)$", re.IGNORECASE)
_HEAD = re.compile(r"head|classif|score|qa_outputs|pooler|projection$", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:^|[_a-zA-Z])(\d+)$")


_WRAPPER = re.compile(r"dense|default|modules_to_save|original_module|base_layer|module|lora_\w+")
"""Parts of a path that say nothing of the module."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor stands.

    Attributes:
        module: Path of the module that holds it.
        layer: Path of the layer that it is in, if it is in one.
        kind: Of its block.
    """

    module: str
    layer: str | None
    kind: Kind


def blocks_of(model: nn.Module, names: Iterable[str], order: Mapping[str, int]) -> list[Block]:
    """The blocks of a model, in the order of the forward pass; every name is in one of them.

    Args:
        model: The module; its values are not looked at.
        names: Of its parameters and buffers, as they are recorded.
        order: Path of a module to its place in the forward pass, see :func:`forward_order`.
    """
    modules = dict(model.named_modules())
    layers = _layers(modules)
    attending = {layer for path in modules if (layer := _layer_of(path, layers))
                 and _ATTENTION.search(path.removeprefix(layer))}  # fmt: skip
    places = {name: _place(name, modules, layers, attending) for name in names}
    places = _with_head(places, modules, layers, order)
    tied = _tied(model)
    groups: dict[tuple[Kind, str], list[str]] = {}
    for name, place in places.items():
        outside = "" if place.kind == "embedding" else _bare(place.module)
        groups.setdefault((place.kind, place.layer or outside), []).append(name)
    if len(groups) > _MOST_BLOCKS:
        groups = {}
        for name, place in places.items():
            kind: Kind = "layer" if place.layer else place.kind
            groups.setdefault((kind, place.layer or place.module), []).append(name)
    found: list[tuple[int, int, Block]] = []
    for (kind, _), own_names in groups.items():
        place = places[own_names[0]]
        first = min(_rank(places[name].module, order) for name in own_names)
        also = sorted({other for name in own_names for other in tied.get(name, ())})
        layer = None if place.layer is None else layers[place.layer]
        named = place.module if kind != "embedding" or layer else ""
        shape = sum(_size(modules, name) for name in own_names)
        block = Block(
            name=named,
            kind=kind,
            layer=layer,
            tensors=tuple(own_names),
            tied=tuple(also),
            size=shape,
        )
        found.append((first, len(found), block))
    return _named([block for _, _, block in sorted(found, key=lambda each: each[:2])])


def forward_order(task: Task, model: nn.Module, example: Example) -> dict[str, int]:
    """Path of every module that an example passes through to its place in the forward pass.

    Args:
        task: Runs the model.
        model: With weights, in evaluation mode.
        example: Any.
    """
    seen: dict[str, int] = {}

    def note(path: str) -> Any:
        def hook(*_: Any) -> None:
            seen.setdefault(path, len(seen))

        return hook

    hooks = [part.register_forward_pre_hook(note(path)) for path, part in model.named_modules()]
    try:
        with torch.inference_mode():
            device = next(model.parameters()).device
            task.outputs(model, to_device(task.collate([example]), device))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _rank(path: str, order: Mapping[str, int]) -> int:
    """The place of a module, or of what it is part of: some are used without being called."""
    while path and path not in order:
        path = path.rpartition(".")[0]
    return order.get(path, 0)


def _layers(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Path of every layer to its name, as the model numbers it; outermost ones only."""
    rows: dict[str, list[str]] = {}
    for path, module in modules.items():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        if any(path.startswith(f"{other}.") for row in rows.values() for other in row):
            continue
        parts = [name for name, part in module.named_children() if _is_composite(part)]
        numbered = [name for name in parts if _NUMBERED.search(name)]
        # A plain chain of modules, a Sequential of convolutions for instance, has no layers.
        if len(numbered) == len(list(module.children())) > 0 and _of_a_kind(module):
            rows[path] = [f"{path}.{name}" if path else name for name in numbered]
    titles = _told_apart(list(rows))
    return {
        layer: f"{titles[path]}layer {_number(layer)}"
        for path, row in rows.items()
        for layer in row
    }


def _number(path: str) -> int:
    found = _NUMBERED.search(path.rpartition(".")[2])
    return int(found[1]) if found else 0


def _is_composite(module: nn.Module) -> bool:
    """Whether a module is made of at least two modules that have parameters of their own."""
    own = [
        part for part in module.modules() if next(part.parameters(recurse=False), None) is not None
    ]
    return len(own) >= 2


def _of_a_kind(row: nn.Module) -> bool:
    return len({type(part) for part in row.children()}) == 1


def _told_apart(paths: Sequence[str]) -> dict[str, str]:
    """Rows of layers by what tells their paths apart; empty where there is one."""
    if len(paths) < 2:
        return dict.fromkeys(paths, "")
    split = [path.split(".") for path in paths]
    while len({parts[0] for parts in split}) == 1 and min(map(len, split)) > 1:
        split = [parts[1:] for parts in split]
    while len({parts[-1] for parts in split}) == 1 and min(map(len, split)) > 1:
        split = [parts[:-1] for parts in split]
    return {path: f"{'.'.join(parts)} " for path, parts in zip(paths, split, strict=True)}


def _layer_of(path: str, layers: Mapping[str, str]) -> str | None:
    parts = path.split(".")
    for end in range(1, len(parts) + 1):
        if (layer := ".".join(parts[:end])) in layers:
            return layer
    return None


def _place(
    name: str, modules: Mapping[str, nn.Module], layers: Mapping[str, str], attending: set[str]
) -> _Place:
    path = name.rpartition(".")[0]
    while path and path not in modules:  # what unpacks 4-bit weights is named below them
        path = path.rpartition(".")[0]
    layer = _layer_of(path, layers)
    inside = path if layer is None else path.removeprefix(layer)
    module = modules[path]
    kind = _kind(name, inside, module, layer, layer in attending)
    return _Place(path, layer, kind)


def _kind(name: str, inside: str, module: nn.Module, layer: str | None, attends: bool) -> Kind:
    parts = [*inside.split("."), type(module).__name__, name.rpartition(".")[2]]
    if layer is None and any(_EMBEDDING.search(part) for part in parts):
        return "embedding"
    if _NORM.search(type(module).__name__):
        return "norm"
    if any(_CROSS.search(part) for part in parts):
        return "cross-attention"
    if any(_ATTENTION.search(part) for part in parts):
        return "attention"
    if attends:
        return "MLP"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "recurrent"
    if layer is None and any(_HEAD.search(part) for part in inside.split(".")):
        return "head"
    return "linear" if isinstance(module, nn.Linear | nn.Bilinear) else "other"


def _with_head(
    places: Mapping[str, _Place],
    modules: Mapping[str, nn.Module],
    layers: Mapping[str, str],
    order: Mapping[str, int],
) -> dict[str, _Place]:
    """What computes the output is the head, whatever it is called: the last module but norms."""
    outside = [p.module for p in places.values() if p.layer is None and p.kind != "norm"]
    if not outside or any(place.kind == "head" for place in places.values()):
        return dict(places)
    last = max(outside, key=lambda path: _rank(path, order))
    if not isinstance(modules[last], nn.Linear):
        return dict(places)
    return {n: replace(p, kind="head") if p.module == last else p for n, p in places.items()}


def _tied(model: nn.Module) -> dict[str, list[str]]:
    """Name of a parameter that several modules share to its other names."""
    first: dict[int, str] = {}
    found: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (own := first.setdefault(id(parameter), name)) != name:
            found.setdefault(own, []).append(name)
    return found


def _size(modules: Mapping[str, nn.Module], name: str) -> int:
    """Elements of a parameter; 0 for buffers, which are not trained."""
    path, _, own = name.rpartition(".")
    parameter = modules[path]._parameters.get(own) if path in modules else None
    return 0 if parameter is None else parameter.numel()


def _named(blocks: Sequence[Block]) -> list[Block]:
    """Blocks with names that tell them apart."""
    kinds = [block.kind for block in blocks]
    outside = [block.name for block in blocks if block.layer is None]
    brief = {path: _brief(path) for path in outside}
    if len(set(brief.values())) < len(set(outside)):
        brief = {path: path for path in outside}
    seen: dict[str, int] = {}
    named = []
    for block in blocks:
        seen[block.kind] = seen.get(block.kind, 0) + 1
        if block.kind == "layer" and block.layer:
            name = block.layer
        elif block.layer is not None:
            name = f"{block.layer} {'norms' if block.kind == 'norm' else block.kind}"
        elif re.fullmatch(r"[\d.]*", block.name):
            # A module that is only numbered is named by its kind.
            alone = kinds.count(block.kind) == 1
            name = block.kind if alone else f"{block.kind} {seen[block.kind]}"
        else:
            name = brief[block.name]
        if block.tied and block.kind == "embedding":
            name = f"{name} and head, tied"
        named.append(block.model_copy(update={"name": name}))
    return named


def _brief(path: str) -> str:
    """A module's path without the parts that say nothing: of the whole model, and of wrappers."""
    return _bare(path).rpartition(".")[2]


def _bare(path: str) -> str:
    """A module's path without wrappers, such as those of adapters, if anything is left of it."""
    return ".".join(part for part in path.split(".") if not _WRAPPER.fullmatch(part)) or path
