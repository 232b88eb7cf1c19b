"""A recorded micro-batch, cut into the examples that are left and those that are left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stagelens.contracts import Refused, Task
from stagelens.runs.batches import batch_size
from stagelens.runs.run import Stage
from stagelens.runs.step_records import MicroBatch, Part
from stagelens.tasks.packed_documents import with_other_tokens, without_documents

from .coarse_plan import IGNORED, ITEMS, take_examples

Kind = Literal["mean", "count", "sum"]
"""What the loss of a micro-batch is; see :class:`Cut`."""


@dataclass
class Cut:
    """A micro-batch, and which of its examples are kept.

    Attributes:
        micro: As recorded.
        owners: The example of each row; None where each is one by itself.
        documents: The example of each token, (B, T), where rows hold several: no row leaves then,
            and tokens lose their labels. None elsewhere.
        count: How many examples it has.
        kept: Those that are left, in order.
        terms: How many terms its loss is the mean of.
        left: How many of them are of those that are left.
        kind: Its loss: a ``"mean"`` over terms; a sum over a ``"count"`` that the batch itself
            says; or a plain ``"sum"``.
    """

    micro: MicroBatch
    owners: Sequence[int] | None
    documents: Tensor | None
    count: int
    kept: list[int]
    terms: float = 0.0
    left: float = 0.0
    kind: Kind = "mean"

    @classmethod
    def of(cls, stage: Stage, task: Task, micro: MicroBatch, left_out: set[int], first: int) -> Cut:
        owners = stage.objective.row_examples(task, micro.batch)
        documents = stage.objective.documents(task, micro.batch)
        if documents is not None:
            count = int(documents.max()) + 1
        else:
            count = batch_size(micro.batch) if owners is None else max(owners) + 1
        kept = [place for place in range(count) if first + place not in left_out]
        cut = cls(micro, owners, documents, count, kept)
        if not left_out:
            return cut
        if (why := stage.objective.coupling(task, micro.batch)) is not None:
            raise Refused(
                f"no example of stage {stage.name!r} can be left out by itself, because {why}"
            )
        cut.kind, cut.terms = _counted(stage, task, micro.batch, count)
        if cut.kind == "sum":
            cut.left = len(kept)
        elif len(kept) == count:
            cut.left = cut.terms
        elif kept:
            cut.left = _terms(stage, task, cut.rest().batch, len(kept))
        return cut

    def terms_of_examples(self, stage: Stage, task: Task) -> np.ndarray:
        """How many of its terms each example has, where it is the examples' own sum; (count,)."""
        one = _told_terms(stage, task, self.micro.batch)
        if self.kind == "sum" or one is None:
            return np.ones(self.count)
        parts = (self._part([place]) for place in range(self.count))
        return np.array([_terms(stage, task, part.batch, 1) for part in parts])

    @property
    def adds_up(self) -> bool:
        """Whether the losses of its parts add up to its own; else it is their mean."""
        return self.kind != "mean"

    def rest(self) -> MicroBatch:
        """The micro-batch of those that are left."""
        return self._part(self.kept)

    def others(self) -> MicroBatch:
        """The micro-batch of those that are left out."""
        kept = set(self.kept)
        return self._part([place for place in range(self.count) if place not in kept])

    @property
    def shares_rows(self) -> bool:
        """Whether an example that is left comes after one in its row that is left out."""
        if self.documents is None:
            return False
        gone = (self.documents >= 0) & ~torch.isin(self.documents, torch.tensor(self.kept))
        mine = (self.documents >= 0) & ~gone
        return bool((mine & (gone.cumsum(1) > 0)).any())

    def rest_after_others(self) -> MicroBatch:
        """As :meth:`rest`, with other tokens in those left out: do those that are left see it?"""
        assert self.documents is not None
        rest = self.rest()
        batch = with_other_tokens(rest.batch, self.documents, self.kept)
        return replace(rest, batch=batch)

    def _part(self, examples: Sequence[int]) -> MicroBatch:
        if len(examples) == self.count:
            return replace(self.micro)
        if self.documents is not None:
            batch = without_documents(self.micro.batch, self.documents, examples)
            return replace(self.micro, batch=batch, rows=None)
        batch = take_examples(self.micro.batch, examples, self.owners)
        if self.kind == "count":
            # Here the divisor is counted over all micro-batches of the step.
            batch[ITEMS] = self.micro.batch[ITEMS]
        chosen, size = set(examples), self.count if self.owners is None else len(self.owners)
        rows = examples if self.owners is None else self._rows(chosen)
        return replace(self.micro, batch=batch, rows=None, part=Part(size, tuple(rows)))

    def _rows(self, chosen: set[int]) -> list[int]:
        return [row for row, owner in enumerate(self.owners or ()) if owner in chosen]


def denominators(
    micros: Sequence[MicroBatch], terms: Sequence[float], examples: Sequence[int]
) -> list[int]:
    """Which micro-batches of a step have losses that are divided by one number of terms.

    A mean has a denominator of its own. A count (``num_items_in_batch``) is one over the step's
    micro-batches: those of all processes, or those of each process by itself, as the Trainer counts
    without ``average_tokens_across_devices``. Which of the two is read off the counts, which differ
    where each process has its own. Where they are equal by chance, each is that of its process's
    terms; it may include the first token of every example, which older Trainers count too.

    Args:
        micros: Of the step, in order.
        terms: Of each, see :class:`Cut`.
        examples: How many each has.

    Returns:
        Equal numbers where the denominator is the same.
    """
    found = list(range(len(micros)))
    counted = [place for place in found if _items(micros[place].batch) is not None]
    counts = {_items(micros[place].batch) for place in counted}
    own: dict[int, list[int]] = {}
    for place in counted:
        own.setdefault(micros[place].process, []).append(place)

    def of_process(places: Sequence[int], count: float) -> bool:
        least = sum(terms[place] for place in places)
        return least <= count <= least + sum(examples[place] for place in places)

    apart = len(own) > 1 and len(counts) > 1
    if len(own) > 1 and len(counts) == 1 and (count := counts.pop()) is not None:
        of_all = math.isclose(count, sum(terms[place] for place in counted))
        apart = not of_all and all(of_process(places, count) for places in own.values())
    for places in own.values() if apart else [counted]:
        for place in places:
            found[place] = places[0]
    return found


@dataclass(frozen=True)
class _Whole:
    """What losses with one denominator are of their step.

    Attributes:
        terms: How many they are divided by, as their examples have them.
        left: How many of them are of examples that are left.
        share: Of the step: 1 over the divisors, by terms.
    """

    terms: float
    left: float
    share: float


def _wholes(cuts: Sequence[Cut], shares: Sequence[float]) -> list[_Whole]:
    """Of each micro-batch, what it is a part of."""
    micros, terms = [cut.micro for cut in cuts], [cut.terms for cut in cuts]
    numbers = denominators(micros, terms, [cut.count for cut in cuts])
    wholes = {}
    for number in dict.fromkeys(numbers):
        own = [place for place, other in enumerate(numbers) if other == number]
        total, share = sum(terms[place] for place in own), shares[own[0]]
        if len(own) > 1:
            share = sum(shares[place] * terms[place] for place in own) / total if total else 0.0
        wholes[number] = _Whole(total, sum(cuts[place].left for place in own), share)
    return [wholes[number] for number in numbers]


def scaled(
    cuts: Sequence[Cut], divisor_of: Callable[[MicroBatch], float], kept: bool
) -> list[MicroBatch]:
    """What is left of each micro-batch of a step, with the divisor that its loss then has.

    Args:
        cuts: Of the step.
        divisor_of: What the loss of a micro-batch is divided by, as recorded.
        kept: Whether divisors stay those of the whole; see :mod:`.left_out`.
    """
    wholes = _wholes(cuts, [1 / divisor_of(cut.micro) for cut in cuts])
    each = list({id(whole): whole for whole in wholes}.values())
    of_wholes = sum(w.share for w in each) / sum(w.share for w in each if w.left)
    found = []
    for cut, whole in zip(cuts, wholes, strict=True):
        if not cut.left:
            continue
        if kept:
            factor = 1.0 if cut.adds_up else cut.left / cut.terms
        elif cut.kind == "sum":
            factor = 1.0
        else:
            factor = of_wholes * (whole.terms / whole.left if cut.kind == "count" else 1.0)
        micro = cut.rest()
        if factor != 1:
            micro.divisor = divisor_of(micro) / factor
        found.append(micro)
    return found


def weighed(
    cuts: Sequence[Cut], divisor_of: Callable[[MicroBatch], float], kept: bool, weight: float
) -> list[MicroBatch]:
    """Both parts of each micro-batch, with the divisors that their losses have in the sum.

    A mean of which nothing is left counts as its examples do among the others of its step; with a
    weight near 0 this is :func:`scaled`. Where nothing is left of the whole step, there is
    no rest to take a mean with, and the divisor is kept.

    Args:
        cuts: As for :func:`scaled`, like the following two.
        divisor_of: See there.
        kept: See there.
        weight: Of the examples that are not left, above 0; of the others it is 1.
    """
    kept = kept or not any(cut.left for cut in cuts)
    wholes = _wholes(cuts, [1 / divisor_of(cut.micro) for cut in cuts])
    each = list({id(whole): whole for whole in wholes}.values())
    of_wholes = sum(w.share for w in each) / sum((1 if w.left else weight) * w.share for w in each)
    found = []
    for cut, whole in zip(cuts, wholes, strict=True):
        out = cut.terms - cut.left
        for micro, own, terms in ((cut.rest, 1.0, cut.left), (cut.others, weight, out)):
            if not terms:
                continue
            factor = own
            if cut.kind == "mean":
                counts = cut.terms if kept or not cut.left else cut.left + weight * out
                factor *= (1.0 if kept else of_wholes) * terms / counts
            elif cut.kind == "count" and not kept:
                counts = whole.left + weight * (whole.terms - whole.left)
                factor *= of_wholes * (whole.terms / counts if whole.left else 1.0)
            part = micro()
            part.divisor = divisor_of(part) / factor
            found.append(part)
    return found


@dataclass(frozen=True)
class Terms:
    """What the loss of a micro-batch counts, for weighing examples to first order.

    Attributes:
        kind: Of the loss, see :class:`Cut`.
        total: How many terms it is the mean of; of a plain sum, how many examples it has.
        of_examples: (B,) how many of them each example has; they sum to ``total``.
    """

    kind: Kind
    total: float
    of_examples: np.ndarray


def terms_of(stage: Stage, task: Task, micro: MicroBatch) -> Terms:
    """What the loss of a micro-batch counts, as :func:`weighed` counts it.

    Args:
        stage: The stage.
        task: The run's.
        micro: One of its micro-batches.

    Raises:
        Refused: The terms of its examples are not those of the whole.
    """
    cut = Cut.of(stage, task, micro, {0}, 0)
    each = cut.terms_of_examples(stage, task)
    if abs(each.sum() - cut.terms) > 1e-9 * cut.terms:
        raise Refused(
            f"a batch of stage {stage.name!r} has {cut.terms:g} terms by the task's loss_terms, "
            f"but its examples {each.sum():g}"
        )
    return Terms(cut.kind, cut.terms, each)


def divided_by(stage: Stage, task: Task, batch: Any) -> float:
    """What a stage's loss divides the sum over a batch's terms by; 1 for a plain sum.

    Args:
        stage: The stage.
        task: The run's.
        batch: Of one micro-batch.
    """
    if (items := _items(batch)) is not None:
        return items
    owners = stage.objective.row_examples(task, batch)
    count = batch_size(batch) if owners is None else max(owners) + 1
    return _terms(stage, task, batch, count) or 1.0


def _items(batch: Any) -> float | None:
    """What the batch itself says that its loss is divided by."""
    items = batch.get(ITEMS) if isinstance(batch, Mapping) else None
    return None if items is None else float(items)


def _counted(stage: Stage, task: Task, batch: Any, examples: int) -> tuple[Kind, float]:
    """What kind of loss a batch has, and how many terms; see :class:`Cut`."""
    terms = _terms(stage, task, batch, examples)
    if _items(batch) is not None:
        return "count", terms
    return ("mean", terms) if terms else ("sum", examples)  # see Task.loss_terms


def _terms(stage: Stage, task: Task, batch: Any, examples: int) -> float:
    """How many terms the loss of a batch is the mean of, or would be without a count in it."""
    told = _told_terms(stage, task, batch)
    return examples if told is None else told


def _told_terms(stage: Stage, task: Task, batch: Any) -> float | None:
    """The same; None where it is one for each example."""
    if isinstance(batch, Mapping):
        batch = {name: value for name, value in batch.items() if name != ITEMS}
    if stage.facts.objective is None:
        return task.loss_terms(batch)
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(labels, Tensor) and labels.ndim == 2:
        return float((labels[:, 1:] != IGNORED).sum())
    return None
