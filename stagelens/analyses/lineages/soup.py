"""What each parent, and each stage on its way, gave to a merged model.

With the merge m = sum_i w_i p_i of its parents' ends, the effect of parent j is m's behaviour less
that of the merge without it, the others' weights scaled so that their sum stays what it was:
m + sum_i (w_i' - w_i) p_i with w_j' = 0. The effect of a stage on a way is m's behaviour less that
of m - W (s_b - s_a), with s_b - s_a what the stage changed and W how much of it is in m (see
:mod:`.routes`): its task vector. Neither is the counterfactual of a training: nobody trained these
models, and without the stage later ones would have learned otherwise. No replay can settle them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from torch import Tensor

from stagelens.contracts import BASE, ProgressCallback, no_progress
from stagelens.effects.computing import Without, stage_rows
from stagelens.effects.results import BehaviourFacts
from stagelens.estimators.counterfactuals import check_final
from stagelens.estimators.stage_trust import StageTrust
from stagelens.measuring.models import empty_model, measure_set
from stagelens.runs import fact_tables
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest
from stagelens.runs.scratch import scratch
from stagelens.runs.states import Weights
from stagelens.runs.streaming import (
    Reader,
    Streamed,
    TensorFacts,
    computed,
    facts_of,
    reader_of,
)

from .routes import merge_of, routes, stages_of
from .soup_table import METHOD, PARENT, STAGE, Part, Soup, SoupFacts, load_soup, path_of


class Shifted(Streamed):
    """``weights + sum c_i t_i``, tensor by tensor; rounded once, to the dtype of the weights.

    Counts and running statistics are those of the weights, and so is what a term does not have in
    the same shape.
    """

    def __init__(self, weights: Weights, terms: Sequence[tuple[float, Weights]]) -> None:
        self._weights, self._terms = weights, terms

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __getitem__(self, name: str) -> Tensor:
        return computed(self.facts(name), self.reader(name))

    def facts(self, name: str) -> TensorFacts:
        return facts_of(self._weights, name)

    def reader(self, name: str) -> Reader:
        facts, own = self.facts(name), reader_of(self._weights, name)
        fixed = not facts.dtype.is_floating_point or name.endswith(("running_mean", "running_var"))
        if fixed or not all(self._has(term, name, facts) for _, term in self._terms):
            return own
        terms = [
            (factor, reader_of(term, name), facts_of(term, name).dtype)
            for factor, term in self._terms
        ]

        def read(start: int, out: Tensor) -> None:
            own(start, out)
            total = out.double()
            for factor, read_term, dtype in terms:
                with scratch(len(out), dtype) as (part,):
                    read_term(start, part)
                    total += factor * part.double()
            out.copy_(total)

        return read

    @staticmethod
    def _has(term: Weights, name: str, facts: TensorFacts) -> bool:
        return name in term and facts_of(term, name).shape == facts.shape


@dataclass(frozen=True)
class _Asked:
    """A part with the model without it; None where that cannot be had."""

    part: Part
    model: Weights | None


def credit(run: Run, set_name: str, progress: ProgressCallback = no_progress) -> Soup:
    """What each parent and stage gave to the merge that ends a run; stored once computed.

    Args:
        run: Along the merge's path.
        set_name: One of its evaluation sets.
        progress: Called for the forward passes.

    Raises:
        Refused: The leaf is no merge, or no linear combination of its parents.
    """
    merge_of(run)
    check_final(run)
    if (stored := load_soup(run, set_name)) is not None:
        return stored
    examples = run.measurable_set(set_name)
    final = run.last.end().model
    stages = stages_of(run)
    asked = [*_without_parents(run, final, stages), *_without_stages(run, final, stages)]
    models = [each.model for each in asked if each.model is not None]
    key = digest("soup", METHOD, run.digest, examples.digest)[:32]
    own, *measured = measure_set(run, examples, empty_model(run), [final, *models], key, progress)
    table, left, blocks = examples.table(), iter(measured), []
    for each in asked:
        without = None
        if each.model is not None:
            model = next(left)
            effects = {name: own.values[name] - model.values[name] for name in own.values}
            without = Without(effects, model, each.part.trust)
        rows = stage_rows(table, examples.name, each.part.name, "soup", own, without)
        blocks.append(rows.assign(part=each.part.kind))
    facts = SoupFacts(
        run_digest=run.digest,
        set_name=examples.name,
        set_digest=examples.digest,
        behaviours=[BehaviourFacts.of(kind) for kind in run.task.behaviour_kinds],
        parts=[each.part for each in asked],
    )
    found = Soup(facts, pd.concat(blocks, ignore_index=True))
    fact_tables.write(path_of(run, examples), found.table, facts)
    return found


def _without_parents(run: Run, final: Weights, stages: Mapping[str, Stage]) -> Iterator[_Asked]:
    weights = merge_of(run).weights
    ends = {name: _end(run, name, stages) for name in weights}
    total = sum(weights.values())
    for name, weight in weights.items():
        rest = total - weight
        # Of others that add up to next to nothing, scaling would make another model altogether.
        if abs(rest) < 1e-3 * max(abs(each) for each in weights.values()):
            reason = (
                f"The weights of the other parents add up to {rest:.3f}, so there is no merge "
                f"without {name}; see what its stages gave."
            )
            yield _Asked(_part(PARENT, name, weight, reason, refused=True), None)
            continue
        scale = total / rest
        terms = [
            ((0.0 if other == name else scale * w) - w, ends[other]) for other, w in weights.items()
        ]
        others = ", ".join(f"{scale * w:.3f} {o}" for o, w in weights.items() if o != name)
        one = len(weights) == 2 and abs(total - 1) < 1e-3
        left = others if one else f"{others}, which nobody trained"
        reason = (
            f"No counterfactual of a training: the merge without {name} and with the weights of "
            f"the others scaled to the same sum, that is {left}."
        )
        yield _Asked(_part(PARENT, name, weight, reason), Shifted(final, terms))


def _end(run: Run, name: str, stages: Mapping[str, Stage]) -> Weights:
    """A parent's weights; one that is in the common history is a stage of the run."""
    if name == BASE:
        return run.stages[0].start().model
    stage = stages[name] if name in stages else run.stage(name)
    return stage.end().model


def _without_stages(run: Run, final: Weights, stages: Mapping[str, Stage]) -> Iterator[_Asked]:
    for route in routes(run, stages):
        stage = route.stage
        if not route.plain:
            reason = (
                f"What {stage.name} changed is under other names in the merge, as an adapter was "
                "merged or tensors were renamed after it; see what its parent gave."
            )
            yield _Asked(_part(STAGE, stage.name, route.weight, reason, refused=True), None)
            continue
        reason = (
            f"No counterfactual of a training: {route.weight:.3f} of what {stage.name} changed, "
            "which is what the merge has of it, subtracted from the merge's weights (a task "
            "vector), whatever later stages did with it."
        )
        terms = [(-route.weight, stage.end().model), (route.weight, stage.start().model)]
        yield _Asked(_part(STAGE, stage.name, route.weight, reason), Shifted(final, terms))


def _part(
    kind: Literal["parent", "stage"], name: str, weight: float, reason: str, refused: bool = False
) -> Part:
    trust = StageTrust(
        stage=name,
        estimator="soup",
        trust="refused" if refused else "estimated",
        reason=reason,
        no_replay="" if refused else "merging is no training that could be repeated without it",
    )
    return Part(kind=kind, name=name, weight=weight, trust=trust)
