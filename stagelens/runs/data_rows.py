"""Batches that are made again from rows of a data set. Nothing here imports torch when loaded."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stagelens.contracts import Example, RunError

from .row_facts import RowFacts, no_data_set

if TYPE_CHECKING:
    from torch import Tensor

DATASETS = "STAGELENS_DATASETS"
"""Environment variable: what a command is given, a JSON list of ``stage=module:name`` and
``stage=folder``; of a dashboard, for the run that it was started with."""

Collate = Callable[[Sequence[Example]], Any]
_SAMPLE = 32
"""Rows that a fingerprint is taken of."""


class NotTheSame(Exception):
    """Rows do not make a batch that they would make again; says why."""


class GivenElsewhere:
    """Stands for a data set that other processes are given, and that is not read in this one."""


class DataRows:
    """A data set, and what makes a batch of its rows.

    Args:
        given: A map-style data set, the folder of one that ``datasets`` saved, or a ``DataLoader``:
            its data set and ``collate_fn``.
        collate: The task's own, for a data set of :class:`~stagelens.contracts.Example`; rows of
            any other are collated as a ``DataLoader`` does by default.

    Raises:
        RunError: It has no rows that can be asked for by number.
    """

    def __init__(self, given: Any, collate: Collate) -> None:
        from torch.utils.data import DataLoader, default_collate

        if isinstance(given, str | Path):
            given = _saved(given)
        made: Callable[[Any], Any] | None = None
        if isinstance(given, DataLoader):
            given, made = given.dataset, given.collate_fn
        numbered = hasattr(given, "__getitem__") and hasattr(given, "__len__")
        if not numbered or isinstance(given, Mapping):
            raise RunError(
                f"a {type(given).__name__} has no rows that can be asked for by number; give a "
                "map-style data set (dataset[row], len(dataset)), one of its splits, or its "
                "DataLoader"
            )
        if made is None:
            made = collate if _is_of_examples(given) else default_collate
        self._rows, self._collate = given, made

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int]) -> tuple[Any, list[Tensor]]:
        """What these rows make, as :func:`stagelens.runs.batches.flatten` returns it.

        Raises:
            NotTheSame: Random numbers were drawn, or they make no batch that can be recorded.
        """
        from .batches import flatten

        with _own_draws():
            before = _drawn_so_far()
            try:
                found = flatten(self._collate(self._taken(rows)))
            except Exception as error:  # of the user's data set and collator: anything
                said = f"{type(error).__name__}: {error}".rstrip(": ")
                raise NotTheSame(f"rows {_listed(rows)} make no batch ({said})") from error
            if _drawn_so_far() != before:
                raise NotTheSame("making it draws random numbers")
        return found

    def row(self, number: int) -> Any:
        """A row as the data set has it."""
        with _own_draws():
            return self._rows[number]

    def _taken(self, rows: Sequence[int]) -> Any:
        # As a DataLoader takes them, which asks for all at once where that is offered.
        if (several := getattr(self._rows, "__getitems__", None)) is not None:
            return several([*rows])
        return [self._rows[row] for row in rows]

    @cached_property
    def facts(self) -> RowFacts:
        """What is said of it in stage.json."""
        made: Any = self._collate
        named = made if hasattr(made, "__qualname__") else type(made)
        return RowFacts(
            fingerprint=self._sampled(),
            rows=len(self),
            collator=f"{named.__module__}.{named.__qualname__}",
        )

    def _sampled(self) -> str:
        last, count = len(self) - 1, min(_SAMPLE, len(self))
        rows = sorted({last * number // max(count - 1, 1) for number in range(count)})
        hasher = hashlib.sha256(str(len(self)).encode())
        try:
            for row in rows:
                hasher.update(hash_of(*self.batch([row])))
        except NotTheSame:
            return ""
        return hasher.hexdigest()


class StageRows:
    """The data set of a recorded stage, if it is at hand.

    Args:
        stage: The stage's name.
        facts: Of the data set, as recorded; None where the stage keeps its batches itself.
        given: The data set as the user gave it again; None without.
        collate: The task's own.
    """

    def __init__(
        self, stage: str, facts: RowFacts | None, given: Any = None, collate: Collate = list
    ) -> None:
        self._stage, self._facts = stage, facts
        self._given, self._collate = given, collate

    @property
    def missing(self) -> str:
        """That the data set has to be given, and how; empty where it was, or is not needed."""
        return no_data_set(self._stage, self._facts) if self._given is None else ""

    @cached_property
    def _rows(self) -> DataRows:
        if self._given is None:
            raise RunError(self.missing or no_data_set(self._stage, _NOT_SAID))
        if isinstance(self._given, DataRows):
            return self._given
        if isinstance(self._given, GivenElsewhere):
            raise RunError(
                f"the data set of stage {self._stage!r} is read by the commands that the dashboard "
                "starts, and not by its pages"
            )
        return DataRows(self._given, self._collate)

    @property
    def data(self) -> DataRows | None:
        """The data set; None where it is not at hand."""
        lacking = self._given is None or isinstance(self._given, GivenElsewhere)
        return None if lacking else self._rows

    def tensors(
        self, step: int, pass_: int, kept: Mapping[str, Tensor], description: Any
    ) -> list[Tensor]:
        """The tensors of a micro-batch, made again.

        Args:
            step: Number within the stage, from 0.
            pass_: Which micro-batch of the step, from 0.
            kept: What is kept of it, as :func:`kept_of` makes it.
            description: Of the whole micro-batch, as it was recorded.

        Raises:
            RunError: The data set is missing, or makes another batch than was recorded.
        """
        rows = kept[ROWS].tolist()
        try:
            beside = {int(n.removeprefix(MORE)): t for n, t in kept.items() if n.startswith(MORE)}
            found = with_beside(self._rows.batch(rows), description, beside)
            same = hash_of(*found) == bytes(kept[HASH].tolist())
            why = "" if same else f"rows {_listed(rows)} make another batch now"
        except NotTheSame as error:
            same, why = False, str(error)
        if same:
            return [*found[1]]
        raise RunError(
            f"step {step + 1} of stage {self._stage!r}, micro-batch {pass_ + 1}, is not what was "
            f"recorded: {why}{self._other()}; give the data set and the collator that the stage "
            "was trained on, unchanged"
        )

    def _other(self) -> str:
        known, now = self._facts or _NOT_SAID, self._rows.facts
        for name, before in known.model_dump().items():
            if before and getattr(now, name) != before:
                return f" (the data set's {name}: now {getattr(now, name)}, then {before})"
        return ""


_NOT_SAID = RowFacts(fingerprint="", rows=0, collator="what its training used")
ROWS, HASH, MORE = "rows", "sha256", "more"
"""Names of what is kept: row numbers, hash, and tensors that rows do not make, by their number."""


def kept_of(
    rows: Sequence[int], size: int, sha256: bytes, beside: Mapping[int, Tensor] | None = None
) -> dict[str, Tensor]:
    """What is kept of a micro-batch in place of its tensors.

    Args:
        rows: Their numbers in the data set.
        size: How many the data set has: they are in the smallest integers that reach so far.
        sha256: Of the batch, as :func:`hash_of` computes it.
        beside: Its tensors that the rows do not make, by number, see :func:`beside_of`.
    """
    import torch

    kinds = (torch.uint8, torch.int16, torch.int32, torch.int64)
    kind = next(kind for kind in kinds if size - 1 <= torch.iinfo(kind).max)
    return {
        ROWS: torch.tensor(rows, dtype=kind),
        HASH: torch.frombuffer(bytearray(sha256), dtype=torch.uint8),
        **{f"{MORE}{number}": tensor for number, tensor in (beside or {}).items()},
    }


Flat = tuple[Any, Sequence["Tensor"]]
"""A batch as :func:`stagelens.runs.batches.flatten` takes it apart."""


def beside_of(used: Flat, made: Flat) -> dict[int, Tensor]:
    """What a training gave its model beside what the rows make: entries of a dictionary.

    Such as ``num_items_in_batch``, which a Trainer counts over all micro-batches of an update.

    Returns:
        Number of the tensor in the batch to itself; empty where the rows make nothing of it.
    """
    ours, theirs = _entries(used[0]), _entries(made[0])
    common = ours.keys() & theirs.keys()
    if not common:
        return {}
    return {n: used[1][n] for name in ours if name not in common for n in _numbers(ours[name])}


def with_beside(made: Flat, description: Any, beside: Mapping[int, Tensor]) -> Flat:
    """What rows make and what was kept beside it, as one batch: the inverse of :func:`beside_of`.

    Args:
        made: Of the rows. Entries that the training did not use are left out.
        description: Of the whole batch.
        beside: What :func:`beside_of` found.
    """
    ours, theirs = _entries(description), _entries(made[0])
    if not ours or not ours.keys() & theirs.keys():
        return made
    found: dict[int, Tensor] = dict(beside)
    for name, own in ours.items():
        if name in theirs:
            pairs = zip(_numbers(own), _numbers(theirs[name]), strict=False)
            found |= {number: made[1][there] for number, there in pairs}
    if found.keys() != {*_numbers(description)}:
        return made  # whose hash is another one
    entries = {name: theirs.get(name, own) for name, own in ours.items()}
    return {"dict": _renumbered(entries)}, [found[number] for number in sorted(found)]


def _entries(description: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = description.get("dict", {})
    return found


def _numbers(description: Any) -> Iterator[int]:
    """The numbers of the tensors in a part of a batch, in order."""
    if "tensor" in description:
        yield description["tensor"]
        return
    ((kind, content),) = description.items()
    if kind in ("tuple", "list", "dict"):
        for item in content.values() if kind == "dict" else content:
            yield from _numbers(item)


def _renumbered(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of several batches as one, whose tensors are numbered in order."""
    count = iter(range(sys.maxsize))

    def visit(description: Any) -> Any:
        if "tensor" in description:
            return description | {"tensor": next(count)}
        ((kind, content),) = description.items()
        if kind in ("tuple", "list"):
            return {kind: [visit(item) for item in content]}
        if kind == "dict":
            return {kind: {name: visit(item) for name, item in content.items()}}
        return description

    return {name: visit(own) for name, own in entries.items()}


def hash_of(description: Any, tensors: Sequence[Tensor]) -> bytes:
    """sha256 of a flat batch: its nesting, plain values, dtypes, shapes and every bit; 32 bytes.

    Lists and tuples count as the same, see :func:`structure`.
    """
    import torch

    hasher = hashlib.sha256(json.dumps(structure(description)).encode())
    for tensor in tensors:
        hasher.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes, because numpy has no bfloat16.
        hasher.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.digest()


def structure(description: Any) -> Any:
    """A batch's description, but for what rows do not decide: it is kept with the batch.

    That is where its tensors lie in memory, and whether they are in a list, as ``default_collate``
    makes it, or in a tuple, as loops do that take it apart.
    """
    if "tensor" in description:
        return {"tensor": description["tensor"]}
    ((kind, content),) = description.items()
    if kind in ("tuple", "list"):
        return {"list": [structure(item) for item in content]}
    if kind == "dict":
        return {kind: {key: structure(item) for key, item in content.items()}}
    return description


def _saved(folder: str | Path) -> Any:
    try:
        from datasets import load_from_disk

        return load_from_disk(str(folder))
    except ModuleNotFoundError:
        raise RunError(
            f"reading the saved data set {folder} needs datasets: pip install datasets, or give "
            "the data set itself"
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder} is not the folder of a data set that dataset.save_to_disk wrote ({error})"
        ) from None


@contextmanager
def _own_draws() -> Iterator[None]:
    """Whatever is drawn inside, a training draws its own numbers afterwards."""
    import torch

    others = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=_devices()):
        try:
            yield
        finally:
            random.setstate(others[0])
            np.random.set_state(others[1])


def _drawn_so_far() -> tuple[Any, ...]:
    """Where the generators stand that collators and augmentations draw from, as a rule."""
    import torch

    _, key, *rest = np.random.get_state()
    states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, _devices())]
    own = [state.numpy().tobytes() for state in states]
    return own, random.getstate(), np.asarray(key).tobytes(), rest


def _devices() -> list[int]:
    import torch

    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []


def _is_of_examples(data: Any) -> bool:
    with _own_draws(), suppress(Exception):  # that a row cannot be had is told where it is needed
        return len(data) > 0 and isinstance(data[0], Example)
    return False


def _listed(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:4])) + (", ..." if len(rows) > 4 else "")
