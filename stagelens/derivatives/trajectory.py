"""A recorded stage prepared for derivatives: what is refused, its space, and its boundaries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.func import jvp, vjp

from stagelens.contracts import Refused
from stagelens.replaying.averaging import check_not_averaged
from stagelens.replaying.replay import check_replayable
from stagelens.runs.boundaries import check_crossable, low_rank_product
from stagelens.runs.boundary_facts import Boundary, LowRank
from stagelens.runs.optimizer_kinds import without_formula
from stagelens.runs.run import Run, Stage
from stagelens.runs.states import TrainingState

from .batch_norm import tracking
from .curvature import StageLoss
from .curvature_kinds import USUAL, Curvature
from .step_map import Betas, Layout, State, StateVectors, difference, rebase_factors, state_of
from .tangent import MASSES, Blocks

DORA = ".lora_magnitude_vector."
"""In names of parameters that only DoRA has."""

_LARGEST_DEVIATION = 0.05
"""Between the factual trajectory and the recording, relative to what the stage changed."""


@dataclass(frozen=True)
class DerivativeOptions:
    """How derivatives of a run are computed.

    Attributes:
        dtype: ``"float32"`` or ``"float64"``; None is the dtype of the recording.
        curvature: What stands for second derivatives, see :mod:`~.derivatives.products`.
        plain_sgd: Treat every optimiser as plain SGD; for the benchmark only.
    """

    dtype: Literal["float32", "float64"] | None = None
    curvature: Curvature = USUAL
    plain_sgd: bool = False


class LinearStage:
    """One stage, ready to be stepped and differentiated."""

    def __init__(
        self, run: Run, stage: Stage, active: frozenset[str], options: DerivativeOptions
    ) -> None:
        self.stage = stage
        dtype = working_dtype(run, options)
        self.loss = StageLoss(run.task, stage, active, dtype, options.curvature)
        self._recorded = stage.start(), stage.end()
        self._refuse_foreign_buffers()
        self.start = self.state_of(self._recorded[0])
        self.end = self.state_of(self._recorded[1])
        self.layout = Layout(stage, self.loss, self.start)

    def state_of(self, recorded: TrainingState) -> State:
        """A recorded state as a point of this stage's space."""
        return state_of(self.stage, recorded, self.loss.dtype, self.loss.device)

    def _refuse_foreign_buffers(self) -> None:
        """Refuse buffers, other than BatchNorm's, that training changes: how is not known here."""
        start, end = (recorded.model for recorded in self._recorded)
        # The root module's own name is empty, and its buffers have no dot before theirs.
        known = {f"{module}." if module else "" for module in tracking(self.loss.model)}
        for name, _ in self.loss.model.named_buffers():
            own = name.rpartition(".")[0]
            if (
                f"{own}." not in known
                and own not in known
                and not torch.equal(start[name], end[name])
            ):
                raise Refused(
                    f"buffer {name} changes during stage {self.stage.name!r} and is no running "
                    "statistic of a BatchNorm, so how it depends on the parameters is not known; "
                    "use coarse-replay or replay"
                )

    def check_end(self, reached: State) -> None:
        """Refuse where the trajectory that derivatives belong to is not the recorded one."""
        gap = change = 0.0
        start, end, own = self.start.values, self.end.values, reached.values
        for name in self.layout.values:
            gap += float((own[name] - end[name]).double().square().sum())
            change += float((end[name] - start[name]).double().square().sum())
        # Negated, so that a trajectory that became NaN is refused too.
        if not gap**0.5 <= _LARGEST_DEVIATION * change**0.5:
            share = (gap / change) ** 0.5 if change else float("inf")
            raise Refused(
                f"replaying stage {self.stage.name!r} for its derivatives ends {share:.2g} of the "
                "stage's own change "
                "away from the recording, so they are not derivatives of what was trained "
                "(training amplifies rounding); use coarse-replay or replay"
            )


def working_dtype(run: Run, options: DerivativeOptions) -> torch.dtype:
    """The dtype that derivatives are computed in.

    Raises:
        Refused: The run was trained in half precision, or its forward passes ran in it.
    """
    for stage in run.stages:
        if stage.facts.precision != "float32":
            raise Refused(
                f"stage {stage.name!r} was trained in {stage.facts.precision} mixed precision, "
                "whose rounding within every pass has no derivative; use coarse-replay or replay"
            )
    floats = {
        tensor.dtype
        for stage in run.stages
        for tensor in stage.start().model.values()
        if tensor.is_floating_point()
    }
    half = floats & {torch.bfloat16, torch.float16}
    if half:
        name = str(next(iter(half))).removeprefix("torch.")
        raise Refused(
            f"the run was trained in {name}, whose rounding of every update has no derivative; use "
            "coarse-replay or replay"
        )
    if options.dtype is None:
        return max(floats, key=lambda dtype: dtype.itemsize)
    return torch.float64 if options.dtype == "float64" else torch.float32


def active_names(run: Run, stages: Sequence[Stage]) -> frozenset[str]:
    """Names to differentiate: what stages train or change, and what is derived from that later.

    Everything else is the same with and without any stage, so it is a constant.
    """
    names: set[str] = set()
    for stage in stages:
        facts = stage.facts
        # In training order: what an earlier stage changed goes on under its name in this one.
        names |= {new for new, old in facts.boundary.renamed.items() if old in names}
        names |= {
            n
            for n, term in facts.boundary.merged.items()
            if any(names & {each.a, each.b} for each in term.terms)
        }
        optimised = {n for group in stage.optimizer.groups for n in group.parameters}
        names |= optimised & set(facts.trainable)
        start, end = stage.start().model, stage.end().model
        for name, tensor in start.items():
            statistic = name.rpartition(".")[2] in ("running_mean", "running_var")
            if tensor.is_floating_point() and (statistic or not torch.equal(tensor, end[name])):
                names.add(name)
    return frozenset(names)


def check_differentiable(stages: Sequence[Stage], moved: Sequence[Stage] = ()) -> None:
    """Refuse, before any work, what cannot be differentiated here.

    Args:
        stages: Whose steps are differentiated.
        moved: Stages before them whose change is carried through these steps.

    Raises:
        Refused: Batches were not kept, the optimiser has no formula here, clipping covers gradients
            that no optimiser clears, or a reference model depends on what is differentiated.
    """
    check_replayable(stages)
    for number, stage in enumerate(stages):
        _check_references(stage, (*moved, *stages))
        _check_adapters(stage, crossed=number > 0)
        check_not_averaged(stage, "A derivative")
        facts = stage.facts
        if (why := without_formula(stage.optimizer)) is not None:
            raise Refused(f"stage {stage.name!r}: {why}; use coarse-replay or replay")
        optimised = {n for group in stage.optimizer.groups for n in group.parameters}
        # The optimiser's zero_grad leaves these gradients to pile up, and clipping counts them.
        outside = [name for name in facts.trainable if name not in optimised]
        if facts.clip_norm is not None and outside:
            raise Refused(
                f"stage {stage.name!r} clips gradients of {outside[0]}, which its optimiser does "
                "not train; record it with requires_grad_(False) there, or use replay"
            )


def _check_adapters(stage: Stage, crossed: bool) -> None:
    """Refuse adapters whose start, training or merge has no derivative here.

    Args:
        stage: A stage.
        crossed: Whether its boundary is differentiated too.
    """
    boundary = stage.facts.boundary if crossed else Boundary(optimizer="new")
    if packed := [*boundary.packed, *boundary.unpacked]:
        raise Refused(
            f"{packed[0]} was packed into 4 bits, or unpacked, before stage {stage.name!r}, which "
            "has no derivative; use coarse-replay or replay"
        )
    kinds = {start.kind for starts in boundary.started.values() for start in starts} - {"plain"}
    if kinds:
        raise Refused(
            f"an adapter of stage {stage.name!r} began with values that depend on the weights "
            f"beneath ({', '.join(sorted(kinds))}), and how is not known here; use coarse-replay "
            "or replay"
        )
    merged = [term for first in boundary.merged.values() for term in first.terms]
    dora = any(DORA in name for name in stage.facts.trainable)
    if dora or any(term.magnitude is not None for term in merged):
        raise Refused(
            f"stage {stage.name!r} trains or merges DoRA adapters, whose loss treats norms of "
            "weights as constants that they are not; use coarse-replay or replay"
        )


def _check_references(stage: Stage, stages: Sequence[Stage]) -> None:
    """Refuse a reference model that is no constant along ``stages``, which include the stage."""
    names = [each.name for each in stages]
    for reference in stage.facts.objective.references.values() if stage.facts.objective else ():
        of = stage.name if reference.stage is None else reference.stage
        if reference.kind == "kept" or of not in names:
            moves = False
        elif of == stage.name and reference.kind == "start":
            moves = False  # its derivative is known: see `StartReferences`
        elif of == stage.name and reference.kind == "adapter off":
            # Computed from what is differentiated anyway, unless TRL's copy of an adapter is left.
            moves = any(".ref." in name for name in stage.start().model) and names.index(of) > 0
        elif reference.kind == "end":
            moves = True
        else:  # the first stage's start is where all of it begins
            moves = names.index(of) > 0
        if moves or reference.sync_every is not None:
            raise Refused(
                f"the loss of stage {stage.name!r} is computed from {reference.said}, which "
                "training before it changes, and how is not known here; use coarse-replay or replay"
            )


class Crossing:
    """The boundary rule between two stages, linearised: a map of vectors.

    New parameters and buffers start from their recorded values, so their tangents are zero, as are
    those of moments where the optimiser is new. Where carried masses are computed from other betas
    than before, they are rebased. A weight that an adapter was merged into gets
    ``dW' = dW + scaling (dB A + B dA)``. Rows that were cut off have no tangent any more, and added
    ones have none, or that of the mean which they began at. A cast is taken for the identity.

    Raises:
        Refused: Not all that happened at the boundary is known.
    """

    def __init__(self, before: LinearStage, after: LinearStage) -> None:
        boundary = after.stage.facts.boundary
        check_crossable(after.stage.name, boundary)
        self.boundary = boundary
        new = set(boundary.new)
        self.before, self.after = before.layout, after.layout
        sources = {n: boundary.source(n) for n in self.after.values if n not in new}
        self.values = {n: old for n, old in sources.items() if old in self.before.values}
        self.merged = {n: term for n, term in boundary.merged.items() if n in self.after.values}
        ends = before.end.values
        self.rows = {n: len(ends[boundary.source(n)]) for n in boundary.trimmed}
        carried = {n: boundary.source(n) for n in boundary.carried}
        self.moments = {
            n: old
            for n, old in carried.items()
            if old in self.before.optimised and n in self.after.optimised
        }
        self.betas = after.start.betas
        self.counts = {n: float(getattr(after.start.optimised[n], "t", 0)) for n in self.moments}

    def push(self, vectors: StateVectors, end: State) -> StateVectors:
        """Tangents at the end of the stage before, to tangents at the start of the next."""
        return self._push(vectors, end.values, end.betas)

    def jump(self, before: LinearStage) -> StateVectors:
        """``s_end - s_start`` of the stage before, carried over the boundary; K = 1.

        A merge is bilinear in the factors, so its derivative at their midpoint gives the finite
        difference of the merged weights exactly.
        """
        # Masses by the next stage's betas, from which torch computes them there: exact, where a
        # rebased difference by the old ones would be of first order only.
        betas = {old: self.betas[n] for n, old in self.moments.items() if n in self.betas}
        jump = difference(before.end, before.start, before.layout, betas)
        # B'A' - BA = (B' - B) (A + A')/2 + (B + B')/2 (A' - A)
        start, end = before.start.values, before.end.values
        midpoint = {name: (start[name] + tensor) / 2 for name, tensor in end.items()}
        return self._push(jump, midpoint, betas)

    def _push(
        self, vectors: StateVectors, point: Mapping[str, Tensor], betas: Mapping[str, Betas]
    ) -> StateVectors:
        count = len(vectors.tensors()[0])
        out = self.after.zeros(count)
        moved = {name: vectors.values[old] for name, old in self.values.items()}
        for name, term in self._terms():
            product, factors = partial(low_rank_product, term), (point[term.a], point[term.b])
            # A factor that no stage changes is a constant, and has no vector.
            tangents = [
                vectors.values.get(factor, point[factor].new_zeros(count, *point[factor].shape))
                for factor in (term.a, term.b)
            ]
            own = [jvp(product, factors, pair)[1] for pair in zip(*tangents, strict=True)]
            moved[name] = torch.stack(own) + moved.get(name, 0.0)
        for name, own_vectors in moved.items():
            out.values[name] = self._resized(name, own_vectors)
        for name, old in self.moments.items():
            out.moments[name] = self._rebased(name, vectors.moments[old], betas.get(old))
        return out

    def pull(self, vectors: StateVectors, end: State) -> StateVectors:
        """The transpose of :meth:`push`."""
        out, point = self.before.zeros(len(vectors.tensors()[0])), end.values
        names = self.values.keys() | self.merged.keys()
        values = {name: self._sized_back(name, vectors.values[name]) for name in names}
        for name, old in self.values.items():
            out.values[old] = out.values[old] + values[name]
        for name, term in self._terms():
            back = vjp(partial(low_rank_product, term), point[term.a], point[term.b])[1]
            pairs = [back(cotangent) for cotangent in values[name]]
            for factor, parts in zip((term.a, term.b), zip(*pairs, strict=True), strict=True):
                if factor in out.values:
                    out.values[factor] = out.values[factor] + torch.stack(parts)
        for name, old in self.moments.items():
            out.moments[old] = self._rebased(name, vectors.moments[name], end.betas.get(old))
        return out

    def _terms(self) -> Iterator[tuple[str, LowRank]]:
        """Every adapter that was merged into a weight, with the weight's name."""
        return ((name, term) for name, first in self.merged.items() for term in first.terms)

    def _resized(self, name: str, vectors: Tensor) -> Tensor:
        """(K, rows before, ...) to (K, rows after, ...)."""
        if (kept := self.boundary.trimmed.get(name)) is not None:
            return vectors[:, :kept]
        if (rows := self.boundary.grown.get(name)) is None:
            return vectors
        shape = self.after.values[name].shape
        added = vectors.new_zeros(len(vectors), shape[0] - rows, *shape[1:])
        if name in self.boundary.averaged:
            added = added + vectors.mean(1, keepdim=True)
        return torch.cat([vectors, added], 1)

    def _sized_back(self, name: str, vectors: Tensor) -> Tensor:
        """The transpose of :meth:`_resized`."""
        if name in self.boundary.trimmed:
            cut = vectors.new_zeros(
                len(vectors), self.rows[name] - vectors.shape[1], *vectors.shape[2:]
            )
            return torch.cat([vectors, cut], 1)
        if (rows := self.boundary.grown.get(name, 0)) == 0:
            return vectors
        kept = vectors[:, :rows]
        if name in self.boundary.averaged:
            kept = kept + vectors[:, rows:].sum(1, keepdim=True) / rows
        return kept

    def _rebased(self, name: str, moments: Blocks, before: Betas | None) -> Blocks:
        """Moments whose masses were computed from the betas ``before``; its own transpose."""
        if before is None or name not in self.betas:
            return dict(moments)
        factors = rebase_factors(before, self.betas[name], self.counts[name])
        return dict(moments) | {
            mass: factor * moments[mass] for mass, factor in zip(MASSES, factors, strict=True)
        }
