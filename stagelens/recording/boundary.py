"""What happened between two stages, found by comparing the states on both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, permutations
from typing import Literal

import torch
from torch import Tensor

from stagelens.contracts import RecordingError
from stagelens.runs.boundaries import low_rank_product, merged_weight
from stagelens.runs.boundary_facts import Boundary, LowRank
from stagelens.runs.optimizer_ends import end_optimizer
from stagelens.runs.optimizer_facts import EndOptimizer
from stagelens.runs.run import Stage
from stagelens.runs.states import TrainingState

from .adapters import Adapter
from .boundary_fit import ROUNDING, Fit, Operation, fit_of
from .weight_average import HINT

_MANY = 4
"""Adapters up to which all orders of merging some of them are looked at."""


_COMBINED = 0.3
"""Cosine, to what adapters before it do, from which on a new one was computed from them."""


class Unexplained(RecordingError):
    """A stage does not start where the one before ended.

    Attributes:
        likeliest: The boundary that explains most, over which nothing is carried.
    """

    def __init__(self, what: str, likeliest: Boundary) -> None:
        super().__init__(what)
        self.likeliest = likeliest.model_copy(update={"problem": what})


def first_boundary(start: TrainingState, frozen: Sequence[str]) -> Boundary:
    """The boundary of the first stage: everything begins here."""
    carried = sorted(start.optimizer)
    return Boundary(
        optimizer="carried" if carried else "new", new=list(start.model), frozen=list(frozen)
    )


def find_boundary(
    before: TrainingState,
    start: TrainingState,
    *,
    stage: str,
    ended: EndOptimizer | None = None,
    reinitialised: Sequence[str] = (),
    frozen: Sequence[str] = (),
    adapters: tuple[Adapter | None, Adapter | None] = (None, None),
) -> Boundary:
    """Name the boundary rule that leads from the end of one stage to the start of the next.

    Args:
        before: End state of the stage before.
        start: State that the new stage starts from.
        stage: The new stage's name, for messages.
        ended: What the optimiser kept there, where that is known without its state.
        reinitialised: Names, or prefixes of names, of parameters and buffers that were given new
            initial values on purpose.
        frozen: Parameters that the new stage does not train.
        adapters: Those of the models of the stage before and of the new stage.

    Raises:
        Unexplained: A value changed in between that nothing explains: replay could not tell
            what the change would have been without an earlier stage.
    """
    declared = {
        name
        for name in start.model
        # A prefix ends at a dot: "head" must not cover "header.weight".
        if any(name == r or name.startswith(r.rstrip(".") + ".") for r in reinitialised)
    }
    candidates = _operations(before.model, start.model, *adapters)
    fits = [fit_of(operation, before.model, start.model, declared) for operation in candidates]
    # The first of equals, and candidates come in order of likelihood.
    fit = min(fits, key=lambda fit: (len(fit.changed), fit.deviation))
    sources = fit.sources
    kept = {name: old for name, old in sources.items() if name in start.model}
    gone = before.model.keys() - start.model.keys() - set(kept.values())
    boundary = Boundary(
        optimizer="not known",
        new=fit.new,
        removed=[name for name in before.model if name in gone],
        frozen=list(frozen),
        adapters=fit.operation.adapters,
        renamed={name: old for name, old in kept.items() if name != old},
        merged=fit.merged,
        started=fit.started,
        unpacked=fit.unpacked,
        packed=fit.packed,
        grown=fit.grown,
        averaged=fit.averaged,
        trimmed=fit.trimmed,
        casts=fit.casts,
        deviation=fit.deviation,
    )
    if fit.changed:
        raise Unexplained(_unexplained(fit, stage), boundary)
    if adapters[0] is not None and _is_combined(fit, adapters[0], before.model, start.model):
        raise Unexplained(
            f"an adapter of stage {stage!r} was computed from those before it, as by "
            "add_weighted_adapter, and how is not known; go on with these adapters themselves (all "
            "of them can be in use), or merge them with merge_and_unload(adapter_names=[...])",
            boundary,
        )
    carried = []
    known = (ended or end_optimizer(before.optimizer)).digests
    for name, own in end_optimizer(start.optimizer).digests.items():
        if own != known.get(sources.get(name, name)):
            raise Unexplained(
                f"the optimiser's state of {name} is neither new nor the one from the end of the "
                "previous stage; pass a new optimiser, or the previous stage's optimiser, "
                "unchanged",
                boundary,
            )
        if name in fit.new:
            raise Unexplained(
                f"{name} is new in stage {stage!r}, but the optimiser already has a state for it; "
                "pass a new optimiser",
                boundary,
            )
        carried.append(name)
    lost = [n for n in start.model if sources.get(n, n) in known and n not in carried]
    how = "new" if not carried else "partly carried" if lost else "carried"
    return boundary.model_copy(update={"optimizer": how, "carried": carried})


def _is_combined(
    fit: Fit, was: Adapter, before: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> bool:
    """Whether a new adapter has much of what those before it do; looked at in one weight."""
    begun = [one for starts in fit.started.values() for one in starts if one.kind != "plain"]
    known = {one.term.b for one in begun}
    # The largest first: small ones may be alike by chance.
    weights = sorted(fit.operation.added.items(), key=lambda item: -start[item[0]].numel())
    for name, added in weights:
        olds = was.terms.get(fit.sources.get(name, name), {}).values()
        for term in (term for term, _ in added if term.b in fit.new and term.b not in known):
            own = low_rank_product(term, start[term.a], start[term.b]).double().flatten()
            if not own.any():
                continue
            parts = [low_rank_product(old, before[old.a], before[old.b]) for old in olds]
            parts = [part.double().flatten() for part in parts if part.numel() == own.numel()]
            if not parts:
                continue
            basis = torch.linalg.qr(torch.stack(parts, 1))[0]
            return float((basis.T @ own).norm() / own.norm()) > _COMBINED
    return False


def check_reloaded(boundary: Boundary, last: Stage, stage: str) -> None:
    """Tell weights that were trained, packed into 4 bits, and loaded again as they were before.

    Packed weights do not say how the whole ones would have moved: packing rounds by more than a
    stage changes them.

    Args:
        boundary: Before the new stage.
        last: The stage before it.
        stage: The new one's name.

    Raises:
        Unexplained: Says which, and what to do.
    """
    if not (boundary.unpacked and boundary.deviation):
        return
    earlier: Stage | None = last
    while earlier is not None:
        if earlier.facts.boundary.packed:
            raise Unexplained(
                f"{boundary.unpacked[0]} was packed into 4 bits before stage {earlier.name!r}, and "
                f"stage {stage!r} starts with what it was before; what that would be without an "
                "earlier stage cannot be told from packed weights. Merge the adapter into the "
                "packed weights (merge_and_unload), or unpack these (model.dequantize())",
                boundary,
            )
        earlier = earlier.previous


def _operations(
    before: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    was: Adapter | None,
    now: Adapter | None,
) -> list[Operation]:
    """The operations that lead from one architecture to the other, the likeliest first."""
    same = [Operation([], {name: name for name in start})] if was == now else []
    if was is None and now is None:
        return same
    left = {name: name for name in before} if was is None else was.left
    origin = {name: name for name in start} if now is None else now.origin
    sources = {name: left[plain] for name, plain in origin.items() if plain in left}
    added: list[Literal["added", "merged", "removed"]] = [] if now is None else ["added"]
    if was is None:
        begun = {} if now is None else now.added(now.names)
        return [Operation(added, sources, added=begun)]
    shared = set() if now is None else set(was.names) & set(now.names)
    if now is not None and was != now and shared and len({*was.names, *now.names}) > 1:
        # One more beside those that are there, one less, or another in use: they keep their names.
        more, fewer = set(now.names) - set(was.names), set(was.names) - set(now.names)
        told: list[Literal["added", "merged", "removed"]] = ["removed"] if fewer else []
        told += ["added"] if more else []
        # A new adapter copies the original, not what another one trained in its place.
        copied = {name: old for name, old in now.copies.items() if old in before}
        own = {name: name for name in start if name in before}
        begun = now.added([name for name in now.names if name in more])
        same = [Operation(told, sources | copied | own, added=begun)]
    # An adapter in place of one with the same names, but with other values, counts as added only if
    # it does nothing yet (B A = 0): otherwise it may be the same one, changed by hand.
    begun = {} if now is None else now.added(now.names)
    may_be_same = now is not None and bool(same)
    zero = [term for here in begun.values() for term, _ in here] if may_be_same else []
    merges = [
        Operation(["merged", *added], sources, merged, added=begun)
        for merged in _merges(was, sources, before, start)
    ]
    return [*same, *merges, Operation(["removed", *added], sources, zero=zero, added=begun)]


def _merges(
    was: Adapter,
    sources: Mapping[str, str],
    before: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
) -> list[dict[str, LowRank]]:
    """What merging adapters may have added to each weight, the likeliest first.

    Merged are those in use, in their order, unless ``adapter_names`` says otherwise; which ones
    then is found out at the smallest weight that most of them sit on.
    """
    orders = [was.active]
    if 1 < len(was.names) <= _MANY:
        every = (permutations(was.names, count) for count in range(1, len(was.names) + 1))
        there = {n: old for n, old in sources.items() if old in was.terms and n in start}
        probe = max(there, key=lambda n: (len(was.terms[there[n]]), -start[n].numel()))
        known = before[there[probe]]

        def gap(order: Sequence[str]) -> float:
            term = was.merging(order).get(there[probe])
            value = known if term is None else merged_weight(known, term, before)
            return float((value.double() - start[probe].double()).norm())

        if known.shape == start[probe].shape and known.is_floating_point():
            orders.append(min(chain.from_iterable(every), key=gap))
    merged = [was.merging(order) for order in dict.fromkeys(orders)]
    return [{n: one[old] for n, old in sources.items() if old in one} for one in merged]


def _unexplained(fit: Fit, stage: str) -> str:
    """Names a value that even the operation that explains most leaves unexplained."""
    if fit.repacked is not None:
        name, packed = fit.repacked
        were = "was in 4 bits at the end of the previous stage, and is not"
        are = "is in 4 bits, and was not at the end of the previous stage,"
        return (
            f"{name} {were if packed else are} in stage {stage!r}; what it would be without an "
            "earlier stage cannot be told from the run. Go on with the same 4-bit base and its "
            "adapters, or record the stages before with the weights that are trained on"
        )
    name, gap = next(iter(fit.changed.items()))
    anew = f"if it was re-initialised on purpose, pass reinitialised=[{name!r}]"
    if not fit.operation.adapters:
        return (
            f"{name} differs from its value at the end of the previous stage, so stage {stage!r} "
            "does not start where that one ended. Start from that model (after an interruption: "
            f"recorder.restore(model, optimizer)); {HINT}; {anew}"
        )
    return (
        f"an adapter was {' and another '.join(fit.operation.adapters)} before stage {stage!r}, "
        f"but {name} is {gap:.1e} of its norm away from what that gives (rounding explains "
        f"{ROUNDING:g}). Between the stages change nothing but the adapter, with get_peft_model, "
        'merge_and_unload or unload, and add it with init_lora_weights=True, "pissa" or '
        f'"olora", since LoftQ rewrites the weights beneath; {anew}'
    )
