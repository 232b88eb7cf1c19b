"""Final weights minus the change of a stage, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stagelens.contracts import Refused, RunError
from stagelens.runs.boundaries import carry, check_crossable, magnitudes
from stagelens.runs.boundary_facts import Boundary
from stagelens.runs.quantised import is_quantised
from stagelens.runs.run import Run, Stage
from stagelens.runs.scratch import scratch
from stagelens.runs.states import Weights, all_finite
from stagelens.runs.streaming import (
    Reader,
    Streamed,
    TensorFacts,
    computed,
    facts_of,
    reader_of,
)


def appeared_there(stage: Stage) -> str:
    """What first appears in an assembled stage, in words."""
    first, *others = stage.appeared
    return f"{first} and {len(others)} more" if others else first


def keeps(stage: Stage) -> str:
    """Says what a counterfactual without an assembled stage keeps, as it first appears there."""
    return (
        f"What first appears in this stage's checkpoint ({appeared_there(stage)}) keeps its final "
        "value: no earlier value is known"
    )


def subtract_stage(
    final: Mapping[str, Tensor], stage: Stage, later: Sequence[Stage]
) -> WithoutStage:
    """Take a stage's change out of the final weights.

    Args:
        final: The final model's parameters and buffers.
        stage: Its change is end - start.
        later: The stages after it; their boundary rules carry the change into the final model.

    Raises:
        Refused: Not all that happened at one of their boundaries is known, or weights were packed
            into 4 bits there.
    """
    for other in later:
        check_crossable(other.name, other.facts.boundary)
        packed = [name for name in other.facts.boundary.packed if is_quantised(name, final)]
        if packed:
            raise Refused(
                f"{packed[0]} was packed into 4 bits before stage {other.name!r}, and a change of "
                f"stage {stage.name!r} cannot be subtracted from packed weights; use "
                "--estimator replay"
            )
    boundaries = [stage.facts.boundary, *(other.facts.boundary for other in later)]
    start, end = stage.start().model, stage.end().model
    return WithoutStage(final, start, end, boundaries, bool(stage.appeared))


def without_stage(run: Run, stage: Stage) -> tuple[WithoutStage, tuple[Weights, ...]]:
    """The final weights without a stage's change, and the recorded states they are derived from."""
    without = subtract_stage(run.last.end().model, stage, run.stages[stage.index + 1 :])
    return without, (stage.start().model, stage.end().model)


class WithoutStage(Streamed):
    """``final - (end - start)``; a tensor is computed each time it is read.

    So the weights without a stage take only the memory of one tensor at a time: the three states
    are memory-mapped. Names and shapes are those of the final model.

    Args:
        final: The final model's parameters and buffers.
        start: Those of the stage's start.
        end: Those of its end.
        boundaries: Before the stage, and before each later stage.
        appeared: Whether the start lacks the rows that its own boundary added (``Stage.appeared``).
    """

    def __init__(
        self,
        final: Mapping[str, Tensor],
        start: Mapping[str, Tensor],
        end: Mapping[str, Tensor],
        boundaries: Sequence[Boundary],
        appeared: bool = False,
    ) -> None:
        self.final, self._start, self._end = final, start, end
        self._own, *self._later = boundaries
        # Of a recorded stage, its start holds them already.
        self._appeared = appeared
        # end - (end - start) is the start itself, without the rounding.
        self._is_start = not self._later

    def __iter__(self) -> Iterator[str]:
        return iter(self.final)

    def __len__(self) -> int:
        return len(self.final)

    def __getitem__(self, name: str) -> Tensor:
        change = self._change(name)
        if change is None:
            return self.final[name]
        return computed(self.facts(name), self._reader(name, change))

    def facts(self, name: str) -> TensorFacts:
        return facts_of(self.final, name)

    def reader(self, name: str) -> Reader:
        change = self._change(name)
        return reader_of(self.final, name) if change is None else self._reader(name, change)

    def _reader(self, name: str, change: _Change) -> Reader:
        final = reader_of(self.final, name)
        variance = name.endswith("running_var")

        def read(start: int, out: Tensor) -> None:
            carried = out[: max(change.count - start, 0)]
            if len(carried) < len(out) or not self._is_start:
                # Rows that a vocabulary gained have no value before: they keep their final ones.
                final(start, out)
            with scratch(len(carried), *change.dtypes) as (before, after):
                change.before(start, before)
                if self._is_start:
                    carried.copy_(before)
                else:
                    change.after(start, after)
                    _take_out(carried, before, after, variance)

        return read

    def _change(self, name: str) -> _Change | None:
        """Start and end of the elements that carry the change, those in both; None without any.

        Raises:
            RunError: The shapes differ other than by added rows; nothing is broadcast.
        """
        final = self.facts(name)
        if not final.dtype.is_floating_point:
            return None  # a count is no sum of changes: it stays as in the final model
        before, after = (self._carried(name, each) for each in (self._start, self._end))
        if before is None or after is None:
            return None
        shapes = [facts_of(*before).shape, facts_of(*after).shape, final.shape]
        rows = self._rows(name)
        if rows is not None and len({shape[1:] for shape in shapes}) == 1:
            # Rows come and go at the end only; anything else is another tensor.
            rows = min(rows, *(shape[0] for shape in shapes))
            fits = rows > 0
        else:
            fits, rows = len(set(shapes)) == 1, None
        if not fits:
            raise RunError(
                f"{name} has other shapes at the stage's start, at its end and in the final model "
                f"({', '.join(map(str, shapes))}), so its change cannot be subtracted; restore "
                "the original run folder"
            )
        count = math.prod(shapes[0]) if rows is None else rows * math.prod(shapes[0][1:])
        dtypes = facts_of(*before).dtype, facts_of(*after).dtype
        return _Change(reader_of(*before), reader_of(*after), dtypes, count)

    def _rows(self, name: str) -> int | None:
        """The fewest rows that a tensor of the final model had since the stage; None if all.

        Rows that it lost and gained again are others.
        """
        rows: list[int] = []
        for boundary in reversed(self._later):
            if name in boundary.trimmed:
                rows.append(boundary.trimmed[name])
            # Those that it gained at the mean of the others carry the change too.
            if name in boundary.grown and name not in boundary.averaged:
                rows.append(boundary.grown[name])
            name = boundary.source(name)
        # An assembled stage has no values of rows that first appear in it.
        rows += [self._own.grown[name]] if name in self._own.grown and self._appeared else []
        return min(rows, default=None)

    def _carried(self, name: str, state: Weights) -> tuple[Weights, str] | None:
        """What the later boundaries leave of a state in a final tensor: weights, and their name."""
        own = name
        for boundary in reversed(self._later):
            normed = own in magnitudes(boundary)
            if own in boundary.new and not normed:
                return None
            computed = own in boundary.merged or own in boundary.averaged
            if normed or computed or own in boundary.unpacked:
                tensor = carry(name, self._later, state)
                return None if tensor is None else ({name: tensor}, name)
            own = boundary.source(own)
        return (state, own) if own in state else None


@dataclass(frozen=True)
class _Change:
    """What a stage did to the first ``count`` elements of a tensor: those before and after it."""

    before: Reader
    after: Reader
    dtypes: tuple[torch.dtype, torch.dtype]
    count: int


def _take_out(final: Tensor, before: Tensor, after: Tensor, variance: bool) -> None:
    """``final -= after - before``, rounded once; variances stay positive.

    Args:
        final: (n,) floating; overwritten.
        before: (n,).
        after: (n,).
        variance: Whether to scale by ``before / after`` instead; where that is not a positive
            number, the final value is kept.
    """
    if variance:
        ratio = before.double() / after.double()
        usable = torch.isfinite(ratio) & (ratio > 0)
        final.copy_(final.double() * torch.where(usable, ratio, 1.0))
        return
    wide = torch.float32 if final.dtype.itemsize <= 2 else torch.float64
    with scratch(len(final), wide, wide) as (change, without):
        change.copy_(after)
        change.sub_(without.copy_(before))
        without.copy_(final).sub_(change)
        if not all_finite(without):
            # The same infinity, as in an attention mask, is no change.
            change.copy_(torch.where(after == before, 0.0, change))
            without.copy_(final).sub_(change)
        final.copy_(without)


def subtract_tangent(
    final: Mapping[str, Tensor], tangent: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """``final - tangent``, with variances kept positive and integer buffers unchanged.

    A variance s with derivative d > 0 becomes s / (1 + d / s), which is s - d to first order.
    """
    without: dict[str, Tensor] = {}
    for name, tensor in final.items():
        if name not in tangent:
            without[name] = tensor.clone()
            continue
        s, d = tensor.double(), tangent[name].double()
        changed = s - d
        if name.endswith("running_var"):
            changed = torch.where((d > 0) & (s > 0), s / (1 + d / s), changed)
        without[name] = changed.to(tensor.dtype)
    return without
