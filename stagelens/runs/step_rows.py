"""Rows of a part's table: from a row to a recorded step, and the names of its stacks."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .data_rows import HASH, MORE, ROWS, StageRows
from .step_records import MicroBatch, StepRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# A damaged count must not make the reader allocate memory without bound.
_MOST_MICRO_BATCHES = 1 << 20


def stack_name(place: str, tensor: Tensor) -> str:
    """The stack for tensors of this place in a step; one stack has one dtype and shape."""
    return _stack_name(place, tensor.dtype, tuple(tensor.shape))


@lru_cache(maxsize=1024)
def _stack_name(place: str, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    kind = str(dtype).removeprefix("torch.")
    return f"{place} {kind} {'x'.join(map(str, shape))}".rstrip()


def numbers_of(stack: str) -> int:
    """How many numbers a tensor of this stack holds; none of a random state, which is no data."""
    place, _, shape = stack.partition(" ")
    if not place.rpartition(".")[2].isdigit():
        return 0
    sides = shape.rpartition(" ")[2].split("x")
    return math.prod(int(side) for side in sides if side.isdigit())


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """JSON that many steps have in common; nobody may change it."""
    return json.loads(text)


@lru_cache(maxsize=256)
def _place(stack: str) -> tuple[int, str]:
    """Which micro-batch of a step a stack belongs to, and its place there."""
    number, _, place = stack.split(" ", 1)[0].partition(".")
    return int(number), place


def stored(names: Sequence[str]) -> Sequence[str]:
    """Of a step's stacks those that are on disk: what rows of a data set make is only named."""
    made = {number for number, place in map(_place, names) if place == ROWS}
    if not made:
        return names
    places = ((name, *_place(name)) for name in names)
    return [name for name, number, place in places if number not in made or not place.isdigit()]


def _is_more(place: str) -> bool:
    return place.startswith(MORE) and place.removeprefix(MORE).isdigit()


def as_step(
    row: dict[str, Any],
    tensors: Sequence[tuple[str, Tensor]] | None = None,
    rows: StageRows | None = None,
) -> StepRecord:
    """A step, with its batches if what is stored of them is given.

    Args:
        row: Of the part's table.
        tensors: Those of the stacks that are stored, each with the name of its stack.
        rows: Make the batches again of which rows of a data set are stored.
    """
    # Inside, because it imports torch, which pages that only list steps do without.
    from .batches import unflatten

    if not 1 <= row["micro_batches"] <= _MOST_MICRO_BATCHES:
        raise ValueError("no such number of forward passes")
    divisors = tuple(row["divisors"] or [None] * row["micro_batches"])
    batches: list[MicroBatch] | None = None
    if row["batch"] is not None and tensors is not None:
        leaves: dict[int, list[Tensor]] = defaultdict(list)
        rng: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors:
            number, place = _place(name)
            if place.isdigit():
                leaves[number].append(tensor)
            else:
                # In memory of its own: torch crashes on a generator state that is not aligned.
                rng[number][place] = tensor.clone()
        numbers: dict[int, tuple[int, ...]] = {}
        for number, kept in rng.items():
            if ROWS in kept:
                own = [place for place in kept if place in (ROWS, HASH) or _is_more(place)]
                made = {place: kept.pop(place) for place in own}
                rows = rows or StageRows("", None)
                described = _parsed(row["batch"])[number]
                leaves[number] = rows.tensors(row["step"], number, made, described)
                numbers[number] = tuple(made[ROWS].tolist())
        batches = [
            MicroBatch(
                unflatten(description, leaves[number]),
                rng[number],
                divisors[number],
                rows=numbers.get(number),
            )
            for number, description in enumerate(_parsed(row["batch"]))
        ]
    return StepRecord(
        step=row["step"],
        loss=row["loss"],
        groups=[dict(group) for group in _parsed(row["groups"])],
        missing=tuple(row["missing"]),
        divisors=divisors,
        batches=batches,
    )
