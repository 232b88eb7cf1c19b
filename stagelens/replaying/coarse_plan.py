"""Which recorded steps one coarse step stands for, and which of their examples it looks at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagelens.runs.batches import batch_size, flatten, rows_of
from stagelens.runs.step_records import MicroBatch, StepRecord
from stagelens.runs.steps import RecordedSteps

_TINY = 1e-30


@dataclass(frozen=True)
class Group:
    """The recorded steps ``first`` to ``last`` (exclusive) that one coarse step stands for."""

    first: int
    last: int

    @property
    def merged(self) -> int:
        """How many steps, r."""
        return self.last - self.first

    @property
    def middle(self) -> int:
        """The step whose batch is used."""
        return (self.first + self.last) // 2


def groups_of_equal_rate(rates: Sequence[float], count: int) -> list[Group]:
    """Cut steps into about ``count`` groups of equal summed learning rate.

    What limits merging is the largest sum of a group, so warm-up and decay merge far more than
    the peak.

    Args:
        rates: Learning rate of every step.
        count: Between 1 and the number of steps.
    """
    steps = len(rates)
    count = max(1, min(count, steps))
    # A step without any learning rate still weighs a little, so that every step has a group.
    floor = max(sum(rates), _TINY) * 1e-6 / steps
    total = sum(rates) + floor * steps
    groups: list[Group] = []
    first, summed = 0, 0.0
    for step, rate in enumerate(rates):
        summed += rate + floor
        closed = len(groups) + 1
        # 1e-12: rounding of the running sum must not move a cut by a step.
        if step == steps - 1 or (summed >= total * closed / count - 1e-12 and closed < count):
            groups.append(Group(first, step + 1))
            first = step + 1
    return groups


Owners = Callable[[Any], Sequence[int] | None]
"""From a batch to the example that each of its rows belongs to; None where each is one itself."""

ITEMS = "num_items_in_batch"
"""What a ``transformers`` model divides its summed loss by: the labels of the whole step."""
_SCORED = "completion_mask"
"""In batches of TRL without labels: the tokens that the loss is over."""
IGNORED = -100
"""The label that torch's cross-entropy leaves out."""


def take_rows(batch: Any, rows: Sequence[int]) -> Any:
    """The examples ``rows`` of a batch: those rows of every tensor with one row per example.

    A count of labels that the loss is divided by shrinks with the labels, so that the loss keeps
    its size.
    """
    return rows_of(batch, rows, _rescaled)


def take_examples(batch: Any, examples: Sequence[int], owners: Sequence[int] | None) -> Any:
    """Some examples of a batch, with all their rows; see :func:`take_rows`.

    Args:
        batch: As recorded.
        examples: Their numbers, in order.
        owners: The example of each row; None where each is one by itself.
    """
    if owners is None or len(owners) != batch_size(batch):
        # A model that joins what a batch has apart, of a pair say, has more rows than the batch.
        return take_rows(batch, examples)
    chosen, count = set(examples), max(owners) + 1
    taken = take_rows(batch, [row for row, owner in enumerate(owners) if owner in chosen])
    # Beside rows, a batch may have values for each example: a margin of each pair, say.
    return {
        name: value[list(examples)]
        if isinstance(value, Tensor) and value.ndim and len(batch[name]) == count
        else value
        for name, value in taken.items()
    }


def _rescaled(whole: Mapping[str, Any], taken: dict[str, Any]) -> dict[str, Any]:
    if whole.get(ITEMS) is None:
        return taken
    if isinstance(whole.get("labels"), Tensor):
        taken[ITEMS] = whole[ITEMS] * _labels(taken["labels"]) / _labels(whole["labels"])
    elif isinstance(whole.get(_SCORED), Tensor):
        counts = [max(int(each[_SCORED].sum()), 1) for each in (taken, whole)]
        taken[ITEMS] = whole[ITEMS] * counts[0] / counts[1]
    return taken


def _labels(labels: Tensor) -> int:
    """How many labels count towards the loss; at least 1, since it is divided by."""
    return max(int((labels != IGNORED).sum()), 1)


def _kinds(batch: Any, owners: Sequence[int] | None) -> list[tuple[int, ...]]:
    """Per example, what has a due of its own: the example itself, and its label if it has one.

    An example is recognised by its tensors without padding: a text is padded to the longest of its
    batch, which differs from epoch to epoch. A label is a whole number, one per example.
    """
    size = batch_size(batch)
    rows: list[list[bytes]] = [[] for _ in range(size)]
    labels: list[list[int]] = [[] for _ in range(size)]
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    kept = mask.bool().numpy() if isinstance(mask, Tensor) and mask.ndim == 2 else None
    _, tensors = flatten(batch)
    for place, tensor in enumerate(tensors):
        if tensor.ndim and tensor.shape[0] == size:
            # Bytes, which tell rows of any dtype apart.
            values = tensor.reshape(size, -1).view(torch.uint8).numpy()
            if kept is not None and tensor.shape == kept.shape:
                values = values.reshape(*kept.shape, -1)
                own = [row[mine] for row, mine in zip(values, kept, strict=True)]
            else:
                own = list(values)
            for row, part in zip(rows, own, strict=True):
                row.append(part.tobytes())
            if tensor.ndim == 1 and not tensor.is_floating_point():
                for number, value in enumerate(tensor.tolist()):
                    labels[number].append(hash((place, value)))
    if owners is not None and len(owners) == size:
        joined: list[list[bytes]] = [[] for _ in range(max(owners) + 1)]
        for row, owner in zip(rows, owners, strict=True):
            joined[owner] += row
        rows, labels = joined, [[] for _ in joined]
    # Hashes are keys within this process only: those of bytes differ in the next.
    return [(hash(tuple(row)), *own) for row, own in zip(rows, labels, strict=True)]


def _size(size: int, share: float) -> int:
    """How many examples to keep: at least two, which batch statistics need."""
    return max(min(size, 2), round(size * share))


class Thinning:
    """Chooses which examples a coarse step keeps, so that over a stage all get their due.

    An example is due its recorded uses, scaled down as the batches are, and so is a label. A batch
    keeps the examples that, with their labels, are owed most: so what was drawn often is kept
    often, chance does not choose again, and few examples hold labels in the proportions of many.

    Args:
        share: Of the examples, how many are kept.
        owners: From a batch to the example of each row; see :meth:`Task.row_examples`.
    """

    def __init__(self, share: float, owners: Owners = lambda _: None) -> None:
        self._share, self._owners = share, owners
        self._due: defaultdict[int, float] = defaultdict(float)
        self._turn = 0

    def keep(self, used: Sequence[MicroBatch], shown: Sequence[MicroBatch]) -> list[MicroBatch]:
        """The examples to keep of one recorded step.

        Args:
            used: All micro-batches of the steps that the coarse step stands for.
            shown: The recorded step's own; fewer of them are kept first, then smaller ones. Which
                is by turns, as the micro-batches of a step may differ in kind and in weight.
        """
        if self._share >= 1:
            return list(shown)
        kinds = {
            id(micro): _kinds(micro.batch, self._owners_of(micro)) for micro in (*used, *shown)
        }
        count = max(1, round(len(shown) * self._share))
        # What dropping whole micro-batches did not save is taken from their sizes.
        share = min(1.0, len(shown) * self._share / count)
        places = sorted((self._turn + number) % len(shown) for number in range(count))
        self._turn += count
        taken = [shown[place] for place in places]
        sizes = [_size(len(kinds[id(micro)]), share) for micro in taken]
        examples = [example for micro in used for example in kinds[id(micro)]]
        for kind in chain.from_iterable(examples):
            self._due[kind] += sum(sizes) / len(examples)
        return [
            self._part(micro, kinds[id(micro)], size)
            for micro, size in zip(taken, sizes, strict=True)
        ]

    def _part(self, micro: MicroBatch, own: Sequence[tuple[int, ...]], size: int) -> MicroBatch:
        members: defaultdict[int, list[int]] = defaultdict(list)
        for row, kinds in enumerate(own):
            for kind in kinds:
                members[kind].append(row)
        due = np.asarray([sum(self._due[kind] for kind in kinds) for kinds in own])
        rows = []
        for _ in range(size):
            row = int(due.argmax())
            rows.append(row)
            for kind in own[row]:
                self._due[kind] -= 1
                due[members[kind]] -= 1
            due[row] = -np.inf
        batch = take_examples(micro.batch, sorted(rows), self._owners_of(micro))
        return replace(micro, batch=batch)

    def _owners_of(self, micro: MicroBatch) -> Sequence[int] | None:
        found = self._owners(micro.batch)
        # A trainer may make the model's rows of several tensors with one row per example each.
        return found if found is not None and len(found) == batch_size(micro.batch) else None


@dataclass(frozen=True)
class CoarseStep:
    """One coarse step, ready to run.

    Attributes:
        facts: The recorded steps that it stands for, without batches.
        shown: The recorded step, without batches, that ``batches`` are of: the middle one or the
            nearest to it whose batches were kept.
        batches: What its gradient is computed from.
        last: Number of the step that follows it.
        examples: How many examples' gradients it costs.
    """

    facts: list[StepRecord]
    shown: StepRecord
    batches: list[MicroBatch]
    last: int
    examples: int

    @property
    def middle(self) -> StepRecord:
        """The recorded step in the middle."""
        return self.facts[len(self.facts) // 2]

    def scale(self, accumulation: int) -> float:
        """What the divided losses of ``batches`` are multiplied by.

        Every micro-batch of the step that is shown is kept as often as the others, so their
        gradient is in the mean that of the whole step; its weight is that of the middle step.
        """
        weights = self.middle.weight(accumulation) / self.shown.weight(accumulation)
        return weights * self.shown.micro_batches / len(self.batches)


def coarse_steps(
    steps: RecordedSteps,
    merge: float,
    thin: float,
    kept: Callable[[int], int] = lambda step: step,
    owners: Owners = lambda _: None,
) -> Iterator[CoarseStep]:
    """The coarse steps of a stage, in order.

    Args:
        steps: The stage's recorded steps.
        merge: Mean number of steps per group, r >= 1.
        thin: Batches are cut to 1/thin of their examples, q >= 1.
        kept: Step to the nearest step whose batches were kept.
        owners: From a batch to the example of each row; None for one each.
    """
    facts = [steps.facts(number) for number in range(len(steps))]
    rates = [max(float(group["lr"]) for group in record.groups) for record in facts]
    thinning = Thinning(1 / thin, owners)
    for group in groups_of_equal_rate(rates, round(len(steps) / merge)):
        # Only thinning asks what all steps of a group used; reading them takes time.
        numbers = range(group.first, group.last) if thin > 1 else range(0)
        read = {number: steps[number].batches or [] for number in numbers}
        middle = kept(group.middle)
        shown = read.get(middle) or steps[middle].batches or []
        used = [micro for batches in read.values() for micro in batches] or shown
        batches = thinning.keep(used, shown)
        examples = sum(batch_size(micro.batch) for micro in batches)
        merged = facts[group.first : group.last]
        yield CoarseStep(merged, facts[middle], batches, group.last, examples)
