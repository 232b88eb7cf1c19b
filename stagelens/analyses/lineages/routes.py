"""How much of what each stage changed is in a merge: by the weights along the ways that lead to it.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stagelens.contracts import BASE, Refused
from stagelens.runs.boundary_facts import Merge
from stagelens.runs.lineage import Lineage
from stagelens.runs.merge_words import merge_words
from stagelens.runs.run import Run, Stage, open_run


@dataclass(frozen=True)
class Route:
    """A stage on the way to a merge.

    Attributes:
        stage: With its history.
        weight: The share of its change that is in the merge: over all ways from it, the product of
            the weights at the merges on them, added up.
        plain: Whether its parameters keep their names and shapes on all ways to the merge.
    """

    stage: Stage
    weight: float
    plain: bool


def merge_of(run: Run) -> Merge:
    """What the leaf of a run was merged from.

    Raises:
        Refused: It is no merge, or no linear combination of its parents; says so.
    """
    last = run.last
    if last.facts.merge is None:
        raise Refused(
            f"{last.name!r} is no merge of other stages: it was trained; name one with --leaf, or "
            "see stagelens attribute for the effects of its stages"
        )
    if not last.facts.merge.exact:
        raise Refused(
            f"{merge_words(last.name, last.facts.merge)}: nothing of it can be credited to them"
        )
    return last.facts.merge


def stages_of(run: Run, objectives: Mapping[str, object] | None = None) -> dict[str, Stage]:
    """The stages that a merge came from since its parents parted, in the order of recording."""
    lineage, leaf = run.lineage, run.last.name
    shared = lineage.history(leaf)[:-1]
    names = [name for name in lineage.ancestors(leaf) if name not in shared]
    return {name: open_run(run.path, leaf=name).last for name in names}


def routes(run: Run, stages: Mapping[str, Stage]) -> list[Route]:
    """The stages on the ways to a merge, but for merges between, with their weights.

    Args:
        run: Along the merge's path.
        stages: From :func:`stages_of`.

    Raises:
        Refused: A merge on the way is no linear combination of its parents.
    """
    lineage, leaf = run.lineage, run.last
    weights = {leaf.name: 1.0}
    plain = {leaf.name: True}
    for name in [leaf.name, *reversed(list(stages))]:
        stage = leaf if name == leaf.name else stages[name]
        if (merge := stage.facts.merge) is not None and not merge.exact:
            raise Refused(f"{merge_words(name, merge)}: nothing can be credited through it")
        for parent, part in _parts(lineage, stage):
            if parent in stages:
                weights[parent] = weights.get(parent, 0.0) + part * weights.get(name, 0.0)
                plain[parent] = plain.get(parent, True) and plain[name] and _keeps_names(stage)
    return [
        Route(stage, weights.get(name, 0.0), plain.get(name, True))
        for name, stage in stages.items()
        if stage.facts.merge is None
    ]


def _parts(lineage: Lineage, stage: Stage) -> list[tuple[str, float]]:
    """What a stage came from, each with the weight of its change in it."""
    if stage.facts.merge is not None:
        return [(name, w) for name, w in stage.facts.merge.weights.items() if name != BASE]
    return [(parent, 1.0) for parent in lineage.parents(stage.name) if parent != BASE]


def _keeps_names(stage: Stage) -> bool:
    """Whether what came before it is in its parameters as it was."""
    boundary = stage.facts.boundary
    if stage.facts.merge is not None:
        return True  # least squares compared each tensor with that of the same name
    told = (boundary.problem, boundary.merged, boundary.renamed, boundary.unpacked)
    return not any((*told, boundary.packed, boundary.started, boundary.trimmed, boundary.averaged))
