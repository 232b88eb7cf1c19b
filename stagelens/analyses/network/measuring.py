"""A stage's change undone block by block: forward passes over models made of two."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stagelens.contracts import Progress, ProgressCallback, Refused, no_progress
from stagelens.effects.computing import attribute
from stagelens.effects.results import BehaviourFacts
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.registry import make_estimator
from stagelens.measuring.models import Measured, empty_model, measure_set
from stagelens.measuring.placed import Placed
from stagelens.runs.run import Run, Stage
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.states import Weights, difference_of
from stagelens.runs.streaming import Reader, Streamed, TensorFacts, facts_of, flat_blocks, reader_of
from stagelens.trust.verification import trusted

from .block_table import Block, Network, NetworkFacts, load_network, network_path, save_network
from .blocks import blocks_of, forward_order

_TOGETHER = 4
"""Models that pass over the examples at a time; progress is told after each such group."""


class Mixed(Streamed):
    """One model's weights, with some tensors of another; nothing is copied.

    Args:
        most: Where all other tensors come from.
        some: Where the named ones come from; of the same names and shapes.
        names: Of those.
    """

    def __init__(self, most: Weights, some: Weights, names: Collection[str]) -> None:
        self._most, self._some, self._names = most, some, frozenset(names)

    def _source(self, name: str) -> Weights:
        return self._some if name in self._names else self._most

    def __iter__(self) -> Iterator[str]:
        return iter(self._most)

    def __len__(self) -> int:
        return len(self._most)

    def __getitem__(self, name: str) -> Tensor:
        return self._source(name)[name]

    def facts(self, name: str) -> TensorFacts:
        return facts_of(self._source(name), name)

    def reader(self, name: str) -> Reader:
        return reader_of(self._source(name), name)


def measure_network(
    run: Run,
    set_name: str,
    stage: str,
    estimator: str,
    settings: Mapping[str, Any] | None = None,
    progress: ProgressCallback = no_progress,
) -> Network:
    """Undo a stage's change block by block, see :mod:`.block_table`; stored with the results.

    It is an intervention on weights, not a training: no training gave the models in between. By
    an exact counterfactual its numbers are exact. Where an estimator has twins, they have no part.

    Args:
        run: The run.
        set_name: One of its evaluation sets.
        stage: Whose change is undone.
        estimator: How the counterfactual is obtained.
        settings: Of the estimator; None for its defaults.
        progress: Called for the counterfactual (half of it) and for every few models.

    Raises:
        Refused: The estimator cannot give the stage, or the two models have not the same tensors.
        RunError: The set or the stage is not there.
    """
    examples = run.measurable_set(set_name)
    overall = Progress(progress)
    result = attribute(run, set_name, estimator, [stage], overall.part(0.0, 0.5), settings)
    trust = trusted(run, result).trust[stage]
    if trust.trust == "refused":
        raise Refused(f"{stage} by {estimator}: {trust.reason}")
    used = result.facts.settings
    if (stored := load_network(run, examples, stage, estimator, used)) is not None:
        # What is known of the counterfactual may have changed since, by a replay for instance.
        return replace(stored, facts=stored.facts.model_copy(update={"trust": trust}))
    (found,) = counterfactuals(run, make_estimator(estimator, used), [run.stage(stage)])
    assert found.weights is not None, "refused stages end above"
    final, without = run.last.end().model, found.weights
    check_same_tensors(final, without, stage)
    blocks = found_blocks(run, examples, final, without, run.stage(stage))
    models: dict[int, Weights] = {0: final, 1: without}
    for number, block in enumerate(blocks):
        if block.moved:
            models[2 + 2 * number] = Mixed(final, without, block.tensors)
            models[3 + 2 * number] = Mixed(without, final, block.tensors)
    key = network_path(run, examples, stage, estimator, used).stem
    measured = _measured(run, examples, models, key, overall.part(0.5, 1.0))
    facts = NetworkFacts(
        run_digest=run.digest,
        set_digest=examples.digest,
        estimator=estimator,
        settings=dict(used),
        stage=stage,
        blocks=tuple(blocks),
        behaviours=tuple(BehaviourFacts.of(kind) for kind in run.task.behaviour_kinds),
        trust=trust,
    )
    told = examples.table(["example_id", "label"])
    network = Network(facts, _table(told["example_id"], measured), told["label"])
    save_network(run, examples, network)
    return network


def check_same_tensors(final: Weights, without: Weights, stage: str) -> None:
    """Refuse two models that cannot be put together.

    Raises:
        Refused: A tensor is in one of them only, or has another shape; names it.
    """
    for name in sorted({*final} ^ {*without}):
        side = "final model" if name in final else f"model without {stage}"
        raise Refused(
            f"{name} is in the {side} only, so {stage} cannot be undone block by block; "
            "look at its effect as a whole"
        )
    for name in final:
        shapes = [facts_of(weights, name).shape for weights in (final, without)]
        if shapes[0] != shapes[1]:
            raise Refused(
                f"{name} has shape {shapes[0]} in the final model and {shapes[1]} without {stage}, "
                f"so {stage} cannot be undone block by block; look at its effect as a whole"
            )


def found_blocks(
    run: Run, examples: EvaluationSet, final: Weights, without: Weights, stage: Stage
) -> list[Block]:
    """The blocks of a run's model, with how far the stage moved each of them."""
    placed = Placed(empty_model(run))
    placed.load(final)
    order = forward_order(run.task, placed.model, next(iter(examples.batches(1)))[0])
    begun = {*stage.facts.boundary.new, *stage.appeared}
    return [
        block.model_copy(
            update={
                "moved": moved(final, without, block.tensors),
                "begins": not begun.isdisjoint(block.tensors),
            }
        )
        for block in blocks_of(placed.model, list(final), order)
    ]


def moved(final: Weights, without: Weights, names: Sequence[str]) -> float:
    """Norm of the change over the norm of the values without it; 0 only where nothing changed.

    Infinite where all of these values are zero.
    """
    change = size = 0.0
    differs = False
    for name in names:
        pairs = zip(flat_blocks(final, name), flat_blocks(without, name), strict=True)
        for one, other in pairs:
            if not torch.equal(one, other):
                differs = True
            if one.dtype.is_floating_point:
                change += float(difference_of(one, other).square().sum())
                size += float(other.double().square().sum())
    if not differs:
        return 0.0
    # A count that changed, or a change that is too small to be squared, is a change all the same.
    return max(sqrt(change / size), 1e-300) if size > 0 else float("inf")


def _measured(
    run: Run,
    examples: EvaluationSet,
    models: Mapping[int, Weights],
    key: str,
    progress: ProgressCallback,
) -> dict[int, Measured]:
    """Number of every model to what it says of the set, a few models at a time."""
    module, numbers = empty_model(run), list(models)
    found: dict[int, Measured] = {}
    overall = Progress(progress)
    for at in range(0, len(numbers), _TOGETHER):
        mine = numbers[at : at + _TOGETHER]
        share = overall.part(at / len(numbers), min(at + _TOGETHER, len(numbers)) / len(numbers))
        own = measure_set(run, examples, module, [models[n] for n in mine], f"{key}-{at}", share)
        found |= dict(zip(mine, own, strict=True))
    return found


def _table(ids: pd.Series, models: Mapping[int, Measured]) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {
                "example_id": ids.astype(str),
                "model": np.int16(number),
                "prediction": one.answers,
                "confidence": one.confidences,
                **one.values,
            }
        )
        for number, one in models.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    return table.astype({"example_id": "category"})
