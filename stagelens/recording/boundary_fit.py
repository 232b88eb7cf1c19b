"""How well an operation explains the start of a stage: names, merges, casts, rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from stagelens.runs.boundaries import low_rank_product, mean_rows
from stagelens.runs.boundary_facts import AdapterStart, DType, LowRank
from stagelens.runs.quantised import is_quantised, parts_of, unpack
from stagelens.runs.states import same_tensor

from .adapters import Added
from .boundary_casts import Casting, choose_casts, direct_cast, dtype_name
from .boundary_packing import explain_packing
from .boundary_starts import Starts, rounding

ROUNDING = 1e-6
"""Largest norm, relative to the weight's own, by which a merged weight may differ from the merge
computed here: room for another device or order of additions, and for nothing else. In a narrower
dtype a quarter of its spacing."""

_ANOTHER = 0.5
"""A tensor whose common rows differ by more of their norm is another one, not a changed one."""

_AROUND_MEAN = 1e-3
"""Spread of added rows around the mean of the others, relative to theirs: transformers draws them
with 3e-5."""


@dataclass(frozen=True)
class Operation:
    """What may have happened at a boundary.

    Attributes:
        adapters: What happened to adapters, in order.
        sources: Name to the name before.
        merged: Name to what was added to its value.
        zero: Factors whose products must be zero if this is the operation.
        added: Weight to the adapters that were added to it.
    """

    adapters: list[Literal["added", "merged", "removed"]]
    sources: Mapping[str, str]
    merged: Mapping[str, LowRank] = field(default_factory=dict)
    zero: Collection[LowRank] = ()
    added: Mapping[str, Sequence[Added]] = field(default_factory=dict)


@dataclass
class Fit:
    """How well an operation explains a start.

    Attributes:
        operation: The operation.
        sources: Name to the name before; those of the operation, and copies that were found.
        new: Names that it does not explain, and need not.
        changed: Names whose values it does not explain, to their difference as a share of their
            norm.
        merged: What was added to a value, by name.
        started: How added adapters began, by the weight beneath.
        unpacked: Names of weights that were in 4 bits.
        packed: Names of weights that are in 4 bits from here on.
        casts: See :class:`~stagelens.runs.boundary_facts.Boundary`, as the following.
        grown: Likewise.
        averaged: Likewise.
        trimmed: Likewise.
        deviation: Likewise.
        repacked: A weight that was in 4 bits on one side only, and not the same there; and whether
            that was before.
    """

    operation: Operation
    sources: dict[str, str]
    new: list[str] = field(default_factory=list)
    changed: dict[str, float] = field(default_factory=dict)
    merged: dict[str, LowRank] = field(default_factory=dict)
    started: dict[str, list[AdapterStart]] = field(default_factory=dict)
    unpacked: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    casts: dict[str, list[DType]] = field(default_factory=dict)
    grown: dict[str, int] = field(default_factory=dict)
    averaged: dict[str, int] = field(default_factory=dict)
    trimmed: dict[str, int] = field(default_factory=dict)
    deviation: float = 0.0
    repacked: tuple[str, bool] | None = None


def fit_of(
    operation: Operation,
    before: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    declared: Collection[str],
) -> Fit:
    """Explain a start by an operation, as far as that goes.

    Args:
        operation: The operation.
        before: Parameters and buffers at the end of the stage before.
        start: Those at the start of the stage.
        declared: Names that were given new values on purpose.
    """
    fit = Fit(operation, dict(operation.sources))
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    done = _packings(fit, before, start, declared)
    for name, tensor in start.items():
        if name in done:
            continue
        known = before.get(fit.sources.get(name, ""))
        if known is None and name not in declared:
            known = _copied(name, tensor, before, fit)
        if known is None or not _alike(known, tensor) or name in declared:
            fit.new.append(name)
            fit.sources.pop(name, None)
        else:
            pairs[name] = known, tensor
    chosen = choose_casts(pairs, operation.merged, before)
    _explain_starts(fit, pairs, chosen, before, start)
    for name, (known, tensor) in pairs.items():
        casting, gap = chosen[name]
        term = operation.merged.get(name)
        if gap and known.shape != tensor.shape and gap > _ANOTHER:
            fit.new.append(name)
            fit.sources.pop(name, None)
            continue
        if term is not None:
            fit.merged[name] = casting.term(term)
        if gap and gap <= _near(name, tensor, casting, fit):
            fit.deviation = max(fit.deviation, gap)
        elif gap:
            fit.changed[name] = gap
        if known.is_floating_point() and (casts := casting.casts(term)):
            fit.casts[name] = casts
        if known.shape != tensor.shape:
            _resized(name, casting.value(known, term, before), tensor, fit)
    all_starts = [one for starts in fit.started.values() for one in starts]
    explained = {one.term.b for one in all_starts if one.kind != "plain"}
    for term in operation.zero:
        if term.b not in explained and low_rank_product(term, start[term.a], start[term.b]).any():
            # A fresh adapter has B = 0 (init_lora_weights=True), so B is the factor to name.
            fit.changed[term.b] = 1.0
    return fit


def _explain_starts(
    fit: Fit,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    chosen: dict[str, tuple[Casting, float]],
    before: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
) -> None:
    """Note how added adapters began; what that explains of their weights is chosen."""
    starts = Starts(start)
    usual = Counter(casting for casting, gap in chosen.values() if not gap).most_common(1)
    for name in fit.operation.added:
        if is_quantised(name, start) and name not in fit.changed:  # only norms are read of it
            value = unpack(name, start)
            _, found, gap = Starts({**start, name: value}).explain(
                name, [value], fit.operation.added[name]
            )
            fit.deviation = max(fit.deviation, gap)
            fit.started |= {name: found} if found else {}
    beneath = [name for name in fit.operation.added if name in pairs]
    # The smallest first: what it tells spares work with the others.
    for name in sorted(beneath, key=lambda name: start[name].numel()):
        known, tensor = pairs[name]
        if known.shape != tensor.shape or not tensor.is_floating_point():
            continue
        term, own = fit.operation.merged.get(name), chosen[name]
        castings = [own[0]]
        if own[1]:
            castings += [*(casting for casting, _ in usual), direct_cast(known.dtype, tensor.dtype)]
        castings = list(dict.fromkeys(castings))
        values = [casting.value(known, term, before) for casting in castings]
        near = term is not None and 0 < own[1] <= _rounding(tensor, own[0])
        if near:  # a merge that rounds otherwise: what begins there begins at the recorded value
            castings, values = [own[0]], [tensor]
        here = [value for value in values if value is not None]
        which, found, gap = starts.explain(name, here, fit.operation.added[name])
        if gap <= rounding(tensor.dtype):
            chosen[name] = castings[which], max(gap, own[1] if near else 0.0)
            fit.deviation = max(fit.deviation, gap)
            if found:
                fit.started[name] = found


def _alike(known: Tensor, tensor: Tensor) -> bool:
    """Whether two tensors differ in their number of rows at most."""
    if known.is_floating_point() != tensor.is_floating_point():
        return False
    return known.dim() == tensor.dim() and known.shape[1:] == tensor.shape[1:]


def _copied(name: str, tensor: Tensor, before: Mapping[str, Tensor], fit: Fit) -> Tensor | None:
    """The tensor before that a name without one has the values of, as where a head is untied."""
    # Constants are initial values, and no sign of where they came from.
    if not tensor.is_floating_point() or tensor.numel() < 2 or _constant(tensor):
        return None
    for old, known in before.items():
        if known.shape == tensor.shape and same_tensor(known, tensor):
            fit.sources[name] = old
            return known
    return None


def _constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


def _packings(
    fit: Fit,
    before: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    declared: Collection[str],
) -> set[str]:
    """Explain weights that are in 4 bits on a side; the names that need no other explanation."""
    done: set[str] = set()
    for name, source in list(fit.sources.items()):
        if name not in start or source not in before or name in declared:
            continue
        was, now = is_quantised(source, before), is_quantised(name, start)
        for part in parts_of(name, start) if was and now else ():
            fit.sources.setdefault(f"{name}.{part}", f"{source}.{part}")
        term = fit.operation.merged.get(name)
        if was == now and not (was and term is not None):
            continue
        parts = {f"{name}.{part}" for part in parts_of(name, start)} if now else set()
        done |= {name, *parts}
        found = explain_packing(name, source, term, before, start)
        if found is None:
            fit.repacked = fit.repacked or (name, was)
            fit.changed[name] = math.inf
            continue
        fit.new += sorted(parts)
        fit.unpacked += [name] if found.unpacked else []
        fit.packed += [name] if found.packed else []
        fit.deviation = max(fit.deviation, found.gap)
        if found.term is not None:
            fit.merged[name] = found.term
        if found.casts:
            fit.casts[name] = list(found.casts)
    return done


def _near(name: str, tensor: Tensor, casting: Casting, fit: Fit) -> float:
    """How far from what is computed here rounding may take a weight."""
    if not tensor.is_floating_point():
        return 0.0
    merged = _rounding(tensor, casting) if name in fit.merged else 0.0
    return max(merged, rounding(tensor.dtype) if name in fit.started else 0.0)


def _rounding(tensor: Tensor, casting: Casting) -> float:
    dtypes = [dtype_name(tensor), casting.weights, casting.factors, *casting.after]
    spacing = max(torch.finfo(getattr(torch, dtype)).eps for dtype in dtypes if dtype is not None)
    return max(ROUNDING, spacing / 4 if spacing > 1e-4 else 0.0)


def _resized(name: str, value: Tensor | None, tensor: Tensor, fit: Fit) -> None:
    """Note the rows that a tensor lost or gained."""
    assert value is not None
    rows, known = len(tensor), len(value)
    if rows < known:
        fit.trimmed[name] = rows
        return
    fit.grown[name] = known
    added, mean = tensor[known:], mean_rows(value, rows - known)
    if same_tensor(added, mean):
        fit.averaged[name] = rows - known
    elif tensor.is_floating_point():
        spread = float((value.double() - value.double().mean(0)).norm(dim=0).norm()) / known**0.5
        gaps = (added.double() - mean.double()).flatten(1).norm(dim=1)
        if spread and float(gaps.max()) <= _AROUND_MEAN * spread:
            fit.averaged[name] = rows - known
            size = float(tensor.double().norm())
            fit.deviation = max(fit.deviation, float(gaps.norm()) / size)
