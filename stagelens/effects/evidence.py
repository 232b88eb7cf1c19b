"""Which models are measured for a counterfactual, and what they say about its error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stagelens.estimators.course import course
from stagelens.estimators.evidence import Evidence, PairedEvidence
from stagelens.estimators.protocol import Counterfactual, PartialReplay
from stagelens.estimators.stage_trust import REPLAY
from stagelens.estimators.subtraction import subtract_stage
from stagelens.runs.run import Run, Stage
from stagelens.runs.states import Weights


def is_estimate(run: Run, counterfactual: Counterfactual) -> bool:
    """Whether its error has to be estimated, and can be: no replay, not of the last stage."""
    trust = counterfactual.trust
    if counterfactual.part:
        return False
    later = run.stage(counterfactual.stage).index < run.last.index
    return later and trust.trust == "estimated" and trust.estimator != REPLAY


def models_of(run: Run, counterfactual: Counterfactual) -> list[Weights]:
    """The models to measure for one counterfactual.

    A replay: the counterfactual, and the repeated final model where it is not bit for bit. Other
    estimates: the counterfactual, both twins where there are any, and the task vector (unless it is
    the estimate), which costs only a forward pass and says how much the later stages did with the
    stage's change; and the model to second order, where it is known. With a partial replay, the
    models where it ends as well: the recorded one, the one by replay and the one by cheap replay.
    """
    if counterfactual.weights is None:
        return []
    stage = run.stage(counterfactual.stage)
    if counterfactual.part and (twins := counterfactual.twins) is not None:
        return [counterfactual.weights, twins.factual, twins.counterfactual]
    if counterfactual.twins is None:
        repeated = counterfactual.repeated
        if repeated is not None:
            return [counterfactual.weights, repeated]
        # The task vector is derived from recorded states, and needs no second one.
        if counterfactual.derived_from or not is_estimate(run, counterfactual):
            return [counterfactual.weights]
        models = [counterfactual.weights, _task_vector(run, stage)]
        return models if counterfactual.corrected is None else [*models, counterfactual.corrected]
    twins = counterfactual.twins
    models = [counterfactual.weights, twins.factual, twins.counterfactual, _task_vector(run, stage)]
    part = twins.partial
    if part is not None and _answers_alike(run, part):
        models += [run.stage(part.stage).end().model, part.exact, part.cheap]
    return models


def _task_vector(run: Run, stage: Stage) -> Weights:
    return subtract_stage(run.last.end().model, stage, run.stages[stage.index + 1 :])


def _answers_alike(run: Run, part: PartialReplay) -> bool:
    """Whether the models where a partial replay ends are of the final model's architecture."""
    return run.stage(part.stage).facts.build_config == run.last.facts.build_config


def evidence_of(run: Run, counterfactual: Counterfactual, values: Sequence[np.ndarray]) -> Evidence:
    """What the measured models say about the effect of one stage, which is not the last.

    Args:
        run: The run.
        counterfactual: Without the stage, by an estimate.
        values: The first behaviour of the final model and of each of :func:`models_of`; (N,) each,
            over the labelled examples.
    """
    stage, twins = run.stage(counterfactual.stage), counterfactual.twins
    final, own, *others = values
    if twins is None:
        if not others:  # the task vector, which is known of checkpoints alone
            way = course(run, stage, recorded=False)
            return Evidence(way, final, final - own, final - own)
        vector, *corrected = others
        by_second = final - corrected[0] if corrected else None
        return Evidence(course(run, stage), final, final - own, final - vector, by_second)
    factual, twin, vector, *boundary = others
    # What was replayed exactly is no source of error.
    passed = None if twins.partial is None else run.stage(twins.partial.stage)
    partial = None
    if boundary:
        recorded, exact, cheap = boundary
        partial = _relative_error(recorded - cheap, recorded - exact)
    return PairedEvidence(
        course=course(run, stage, passed),
        final=final,
        by_weights=final - own,
        by_task_vector=final - vector,
        factual=factual,
        by_twins=factual - twin,
        sampling=twins.sampling,
        travels=twins.travels,
        partial=partial,
    )


def _relative_error(estimate: np.ndarray, truth: np.ndarray) -> float | None:
    """Of (N,) effects; None where it is not finite."""
    length = np.linalg.norm(truth)
    error = float(np.linalg.norm(estimate - truth) / length) if length else float("nan")
    return error if np.isfinite(error) else None
