"""Which models are measured for a counterfactual, and what they say about its error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stagelens.estimators.expected_error import Evidence, correlation
from stagelens.estimators.hardness import hardness
from stagelens.estimators.protocol import Counterfactual, PartialReplay, Twins
from stagelens.estimators.subtraction import subtract_stage
from stagelens.runs.run import Run
from stagelens.runs.states import Weights


def models_of(run: Run, counterfactual: Counterfactual) -> list[Weights]:
    """The models to measure for one counterfactual.

    Without twins: the counterfactual, and the repeated final model where it is not bit for bit.
    With twins: the counterfactual, both twins, and the task vector, which costs only a forward
    pass and says how much the later stages did with the stage's change. With a partial replay, the
    models where it ends as well: the recorded one, the one by replay and the one by cheap replay.
    """
    if counterfactual.weights is None:
        return []
    if counterfactual.twins is None:
        repeated = counterfactual.repeated
        return [counterfactual.weights, *([] if repeated is None else [repeated])]
    stage = run.stage(counterfactual.stage)
    models = [
        counterfactual.weights,
        counterfactual.twins.factual,
        counterfactual.twins.counterfactual,
        subtract_stage(run.last.end().model, stage, run.stages[stage.index + 1 :]),
    ]
    part = counterfactual.twins.partial
    if part is not None and _answers_alike(run, part):
        models += [run.stage(part.stage).end().model, part.exact, part.cheap]
    return models


def _answers_alike(run: Run, part: PartialReplay) -> bool:
    """Whether the models where a partial replay ends are of the final model's architecture."""
    return run.stage(part.stage).facts.build_config == run.last.facts.build_config


def evidence_of(
    run: Run, counterfactual: Counterfactual, twins: Twins, values: Sequence[np.ndarray]
) -> Evidence:
    """What the measured models say about the effect of one stage.

    Args:
        run: The run.
        counterfactual: Without the stage.
        twins: Its twins.
        values: The first behaviour of the final model and of each of :func:`models_of`; (N,) each,
            over the labelled examples.
    """
    final, own, factual, twin, vector, *boundary = values
    # What was replayed exactly is no source of error.
    passed = counterfactual.stage if twins.partial is None else twins.partial.stage
    later = run.stages[run.stage(passed).index + 1 :]
    partial = partial_r = None
    if boundary:
        recorded, exact, cheap = boundary
        partial, partial_r = _compared(recorded - cheap, recorded - exact)
    return Evidence(
        final=final,
        factual=factual,
        by_weights=final - own,
        by_twins=factual - twin,
        by_task_vector=final - vector,
        hardness=max(hardness(stage) for stage in later),
        sgd=any(stage.optimizer.name == "SGD" for stage in later),
        sampling=twins.sampling,
        partial=partial,
        partial_r=partial_r,
        partial_weights=None if twins.partial is None else twins.partial.error,
    )


def _compared(estimate: np.ndarray, truth: np.ndarray) -> tuple[float | None, float | None]:
    """Relative error and correlation of (N,) effects; None where a number is not finite."""
    length = np.linalg.norm(truth)
    error = float(np.linalg.norm(estimate - truth) / length) if length else float("nan")
    return (error, correlation(estimate, truth)) if np.isfinite(error) else (None, None)
