"""Beginnings that rows of tokens share, read once: the keys and values of a cache, expanded.

Examples with the same few-shot prefix, several completions of one prompt, a completion and the
rejected one: a causal model computes the same keys and values for what they share. A tree of
beginnings is read level by level, each once, and every row goes on from a copy of its own.

Only where it is right: models of transformers whose cache is a ``DynamicCache`` of plain keys and
values, within every window of their attention. What a configuration does not tell is tried: a few
tokens are read both ways, and where the answers differ, nothing is shared.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from .cutting import spans_of_similar_length

_LEAST_SAVED = 16
"""Tokens that a shared beginning has to save."""
LEAST_SHARE = 0.2
"""The share of all tokens that shared beginnings have to save; below, further passes cost more."""
_CACHE_BYTES = 512 << 20
"""Most bytes of keys and values that the rows of one pass take, unless a single row takes more."""
_ALIKE = 0.05
"""Largest relative difference of logits read both ways at any precision, and"""
_ALIKE_EPS = 256
"""in units of the precision's own rounding."""
_WINDOWS = (
    "attention_chunk_size",
    "attention_window",
    "local_attention_window",
    "sliding_window",
    "window_size",
)
"""Settings that say how far back attention sees: padding inside a cache would count as distance."""
_LENGTHY_ROPE = ("dynamic", "longrope", "su")
"""Position encodings of a token that depend on how long the text is that it stands in."""

_NAMES = ("cache", "past_key_values")
"""What models call their cache: the first since transformers 5."""

_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass
class Node:
    """A beginning that several rows share.

    Attributes:
        row: One of the rows.
        start, stop: The tokens of that row that this node adds to those of its parent.
        children: Longer beginnings.
        leaves: Rows that go on from here by themselves.
    """

    row: int = 0
    start: int = 0
    stop: int = 0
    children: list[Node] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Read:
    """What a pass says about R rows.

    Attributes:
        rows: (R,) their numbers.
        first: (R,) the place in each row of the first logits.
        logits: (R, S, V); beyond a row's end they mean nothing.
    """

    rows: Tensor
    first: Tensor
    logits: Tensor


def alike_to(one: str, other: str) -> int:
    """How many characters two texts begin with alike, roughly: by their bytes."""
    pair = [np.frombuffer(text.encode(errors="replace"), np.uint8) for text in (one, other)]
    least = min(map(len, pair))
    differ = pair[0][:least] != pair[1][:least]
    return int(differ.argmax()) if differ.any() else least


def tree(ids: np.ndarray, shareable: Sequence[int]) -> tuple[Node, int]:
    """The beginnings that are worth reading once.

    Args:
        ids: (B, T) tokens.
        shareable: (B,) how many tokens of each row may be read for all: their logits are not
            needed.

    Returns:
        The root, which adds no tokens, and how many tokens are saved.
    """
    # Big-endian, so that bytes sort as the numbers do.
    keys = [row[:n].tobytes() for row, n in zip(ids.astype(">u4"), shareable, strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    alike = _shared_by_neighbours(ids[order], np.asarray(shareable)[order])
    root, saved = Node(), 0
    # Rows order[low:high], below a node.
    todo = [(root, 0, len(order))]
    while todo:
        parent, low, high = todo.pop()
        if high - low == 1:
            parent.leaves.append(order[low])
            continue
        shared = int(alike[low : high - 1].min())
        own = (high - low - 1) * (shared - parent.stop)
        if own >= _LEAST_SAVED:
            saved += own
            node = Node(order[low], parent.stop, shared)
            parent.children.append(node)
            parent = node
        ends = (low + 1 + np.flatnonzero(alike[low : high - 1] == shared)).tolist()
        todo += [(parent, *pair) for pair in zip([low, *ends], [*ends, high], strict=True)]
    return root, saved


def _shared_by_neighbours(ids: np.ndarray, shareable: np.ndarray) -> np.ndarray:
    """(B - 1,) tokens that each row and the next begin with alike, as far as they may."""
    most = np.minimum(shareable[:-1], shareable[1:])
    differ = ids[:-1] != ids[1:]
    first = np.where(differ.any(1), differ.argmax(1), ids.shape[1])
    return np.minimum(first, most)


def reader(
    model: nn.Module, ids: Tensor, lengths: Sequence[int], shareable: Sequence[int]
) -> Callable[[int], Iterator[Read]] | None:
    """How to read rows with shared beginnings; None where that saves little, or is not right.

    Args:
        model: In evaluation mode.
        ids: (B, T) tokens, padded on the right.
        lengths: (B,) tokens of each row without padding.
        shareable: As :func:`tree` has it.

    Returns:
        A function of the most tokens of a pass that yields what is read, every row once.
    """
    # Gradients, and the tangents of forward mode, do not go through a cache that is cut up.
    if not torch.is_inference_mode_enabled() or len(ids) < 2 or hasattr(model, "_hf_hook"):
        return None
    root, saved = tree(ids.cpu().numpy(), shareable)
    if saved < LEAST_SHARE * sum(lengths):
        return None
    reading = _Reading(model, ids, lengths)
    if not _has_room(getattr(model, "config", None), _reach(root, lengths)):
        return None
    if model not in _tried:
        _tried[model] = _answers_alike(model, ids[root.children[0].row])
    return (lambda tokens: reading.below([root], None, tokens)) if _tried[model] else None


def _reach(root: Node, lengths: Sequence[int]) -> int:
    """Most places that a row takes in a cache, the padding of other rows included."""
    reach, level = 0, [root]
    longest = 0
    while level:
        reach += max(node.stop - node.start for node in level)
        rest = [lengths[row] - node.stop for node in level for row in node.leaves]
        longest = max(longest, reach + max(rest, default=0))
        level = [child for node in level for child in node.children]
    return longest


def _has_room(config: Any, reach: int) -> bool:
    """Whether so many tokens are within every window, and their positions do not depend on them."""
    if config is None:
        return False
    facts = config.get_text_config().to_dict()
    windows = [facts[name] for name in _WINDOWS if isinstance(facts.get(name), int)]
    return all(reach < window for window in windows) and not _lengthy(facts)


def _lengthy(facts: Mapping[str, Any]) -> bool:
    kinds = (facts.get("rope_type"), facts.get("type"))
    inner = [value for value in facts.values() if isinstance(value, Mapping)]
    return any(kind in _LENGTHY_ROPE for kind in kinds) or any(map(_lengthy, inner))


class _Reading:
    """Passes over a tree of rows.

    Args:
        model: See :func:`reader`.
        ids: (B, T).
        lengths: (B,).
    """

    def __init__(self, model: nn.Module, ids: Tensor, lengths: Sequence[int]) -> None:
        self._model, self._ids, self._lengths = model, ids, lengths
        known = inspect.signature(model.forward).parameters
        # Of what only fills the cache no logits are wanted; some models have no way to say so.
        self._fewest = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def below(self, nodes: Sequence[Node], held: _Held | None, tokens: int) -> Iterator[Read]:
        """Reads what goes on from some nodes.

        Args:
            nodes: N of one level.
            held: What the cache holds of them; None for the root.
            tokens: Most in one pass.
        """
        leaves = [(at, row, node.stop) for at, node in enumerate(nodes) for row in node.leaves]
        ends = [(row, start, self._lengths[row]) for _, row, start in leaves]
        for chosen in self._cut(ends, held, tokens):
            own = [ends[n] for n in chosen]
            logits, _ = self._pass(own, held, [leaves[n][0] for n in chosen])
            yield Read(
                torch.tensor([row for row, *_ in own], device=self._ids.device),
                torch.tensor([start for _, start, _ in own], device=self._ids.device),
                logits,
            )
            del logits  # before the next are computed
        children = [(at, child) for at, node in enumerate(nodes) for child in node.children]
        edges = [(child.row, child.start, child.stop) for _, child in children]
        for chosen in self._cut(edges, held, tokens):
            places = [children[n][0] for n in chosen]
            _, deeper = self._pass([edges[n] for n in chosen], held, places, **self._fewest)
            yield from self.below([children[n][1] for n in chosen], deeper, tokens)

    def _cut(
        self, parts: Sequence[tuple[int, int, int]], held: _Held | None, tokens: int
    ) -> Iterator[list[int]]:
        """Numbers of parts of rows, those of one pass together."""
        lengths = [stop - start for _, start, stop in parts]

        def most(longest: int) -> int:
            return max(tokens // longest, 1) if held is None else held.rows(longest, tokens)

        return spans_of_similar_length(lengths, most)

    def _pass(
        self,
        parts: Sequence[tuple[int, int, int]],
        held: _Held | None,
        places: Sequence[int],
        **options: Any,
    ) -> tuple[Tensor, _Held]:
        """Logits of parts of rows, and the cache with them.

        Args:
            parts: R of row, start and stop.
            held: What stands before them.
            places: (R,) where in ``held``.
            options: Of the model.
        """
        width = max(stop - start for _, start, stop in parts)
        ids = self._ids.new_zeros(len(parts), width)
        mask = torch.zeros_like(ids)
        for number, (row, start, stop) in enumerate(parts):
            ids[number, : stop - start] = self._ids[row, start:stop]
            mask[number, : stop - start] = 1
        if held is not None:
            options |= {held.name: held.selected(places)}
            mask = torch.cat([held.mask[list(places)], mask], 1)
        # Padding stands inside the cache, and is no place of the text.
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -width:]
        found = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **options,
        )
        name = next(name for name in _NAMES if name in found)
        return found.logits, _Held(name, found[name], mask)


@dataclass(frozen=True)
class _Held:
    """Keys and values of N beginnings.

    Attributes:
        name: What the model calls its cache.
        cache: A ``DynamicCache``.
        mask: (N, L) 1 for tokens, 0 for padding.
    """

    name: str
    cache: Any
    mask: Tensor

    def selected(self, places: Sequence[int]) -> Any:
        """A cache of those beginnings, of which one may come several times."""
        chosen = copy.copy(self.cache)
        chosen.layers = [copy.copy(layer) for layer in self.cache.layers]
        # New tensors: those of this cache stay as they are.
        chosen.batch_select_indices(torch.tensor(places, device=self.mask.device))
        return chosen

    def rows(self, longest: int, tokens: int) -> int:
        """Most rows that go on from here with so many tokens each."""
        count, length = self.mask.shape
        size = sum(t.nbytes for layer in self.cache.layers for t in (layer.keys, layer.values))
        each = size / (count * length) * (length + longest)
        return max(min(tokens // longest, int(_CACHE_BYTES / each)), 1)


def _answers_alike(model: nn.Module, row: Tensor) -> bool:
    """Whether a few tokens, read on from a cache with padding in it, have the logits they have.

    Args:
        model: See :func:`reader`.
        row: (T,) tokens, of which some are read.
    """
    # Two beginnings of other lengths below a common one, with rows of other lengths behind them.
    root = Node(children=[(shared := Node(0, 0, 3))])
    shared.children = [Node(0, 3, 5, leaves=[0]), Node(1, 3, 7, leaves=[1, 2])]
    lengths = (9, 10, 12)
    row = row.repeat(max(lengths))  # it may be shorter
    ids = row[: max(lengths)].repeat(3, 1)
    ids[1, 3], ids[2, 3], ids[2, 7] = row[4], row[4], row[0]
    try:
        mask = torch.arange(ids.shape[1], device=ids.device) < torch.tensor(lengths)[:, None].to(
            ids.device
        )
        plain = model(input_ids=ids, attention_mask=mask.long()).logits.float()
        bound = min(_ALIKE, _ALIKE_EPS * torch.finfo(_dtype(model)).eps) * plain.abs().max()
        reading = _Reading(model, ids, lengths)
        _, held = reading._pass([(0, 0, 3)], None, [0])
        if not _plain_cache(held.cache, 3):
            return False
        for read in reading.below([root], None, 1024):
            for number, (n, first) in enumerate(zip(read.rows, read.first, strict=True)):
                own = read.logits[number, : lengths[n] - first].float()
                if not bool(((own - plain[n, first : lengths[n]]).abs() <= bound).all()):
                    return False
    except Exception:  # whatever a model that takes no cache raises
        return False
    return True


def _dtype(model: nn.Module) -> torch.dtype:
    kinds = {p.dtype for p in model.parameters() if p.dtype.is_floating_point}
    return max(kinds, key=lambda kind: torch.finfo(kind).eps, default=torch.float32)


def _plain_cache(cache: Any, length: int) -> bool:
    """Whether a cache is one of keys and values alone, each in its place."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    # Sliding layers keep everything as long as it fits into their window, which was asked before.
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return (
        type(cache) is DynamicCache
        and all(type(layer) in plain for layer in cache.layers)
        and all(layer.get_seq_length() == length for layer in cache.layers)
    )
