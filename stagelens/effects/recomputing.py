"""A sample of stored effects, computed again from the models behind them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stagelens.estimators.counterfactuals import changed_nothing, counterfactuals
from stagelens.estimators.protocol import Estimator
from stagelens.estimators.registry import make_estimator
from stagelens.estimators.stored_counterfactuals import find_cached
from stagelens.measuring.models import BATCH_SIZE, measure
from stagelens.runs.run import Run, Stage

from .computing import combined
from .evidence import models_of
from .results import Result

_ROUNDING = 1e-3
"""Relative; other batch sizes and processors round otherwise."""


def recomputed(run: Run, result: Result, count: int) -> tuple[int, list[str]]:
    """Compute effects of a few examples, drawn anew each time, again.

    Of those stages whose counterfactual is there: read off the recording, or in the cache.

    Args:
        run: The run.
        result: A stored effect table.
        count: How many examples to draw.

    Returns:
        How many numbers were compared, and a sentence for each stage whose numbers differ.
    """
    facts = result.facts
    examples = run.measurable_set(facts.set_name)
    estimator = make_estimator(facts.estimator, facts.settings)
    known = [s for s in run.stages if s.name in result.trust and _at_hand(run, s, estimator)]
    found = [c for c in counterfactuals(run, estimator, known) if c.weights is not None]
    models = [models_of(run, each) for each in found]
    ids = examples.table([])["example_id"].to_numpy()
    drawn = np.random.default_rng().choice(ids, min(count, len(ids)), replace=False).tolist()
    own = examples.by_id(drawn)
    final, *measured = measure(
        run.task,
        run.task.build_model(run.last.facts.build_config),
        [run.last.end().model, *(weights for each in models for weights in each)],
        [own[start : start + BATCH_SIZE] for start in range(0, len(own), BATCH_SIZE)],
        len(own),
    )
    rows = result.table[result.table["example_id"].isin(drawn)]
    compared, wrong, left = 0, [], iter(measured)
    for counterfactual, weights in zip(found, models, strict=True):
        here = [next(left) for _ in weights]
        trust = result.trust[counterfactual.stage]
        if trust.trust == "refused":
            continue
        effects = combined(run.task.behaviour_kinds, final, here, trust)
        stage = rows[rows["stage"] == counterfactual.stage]
        for behaviour, effect in effects.items():
            stored = stage[stage["behaviour"] == behaviour].set_index("example_id").loc[drawn]
            compared += 2 * len(drawn)
            if not (
                _alike(stored["final"], final.values[behaviour])
                and _alike(stored["effect"], effect)
            ):
                wrong.append(
                    f"the {behaviour} of stage {counterfactual.stage} by {facts.estimator} on set "
                    f"{facts.set_name} is not what its models give"
                )
    return compared, wrong


def _at_hand(run: Run, stage: Stage, estimator: Estimator) -> bool:
    if stage is run.last or estimator.free or changed_nothing(run, stage):
        return True
    return find_cached(run, stage, estimator) is not None


def _alike(stored: pd.Series, found: np.ndarray) -> bool:
    scale = float(np.nanmax(np.abs(found), initial=0))
    return np.allclose(
        stored.to_numpy(), found, rtol=_ROUNDING, atol=_ROUNDING * scale, equal_nan=True
    )
