"""Which models are measured for a coalition, and what they say of its error.

A coalition differs from the recording from its first missing stage on, and is trained for the last
time in its own last stage. Up to there it is judged like a model without that first stage: by what
the stages in between are like, by the twins and by the task vectors. Boundary rules that follow
change both models alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stagelens.estimators.coalition_plan import first_missing, trained
from stagelens.estimators.coalitions import without_changes
from stagelens.estimators.course import course, unlike_the_bench
from stagelens.estimators.evidence import Evidence, PairedEvidence
from stagelens.estimators.expected_error import judged, judged_replay
from stagelens.estimators.protocol import CoalitionModel
from stagelens.estimators.registry import find
from stagelens.estimators.stage_trust import REPLAY, StageTrust
from stagelens.measuring.models import Measured
from stagelens.runs.run import Run
from stagelens.runs.states import Weights

from .computing import combined

_WHOSE = "the effect of the stages that did not happen"
_SEVERAL = (
    " Its error is that of a model without the first of the stages that did not happen; the "
    "calibration leaves out one at a time, so it is not called reliable."
)


def models_to_measure(run: Run, model: CoalitionModel) -> list[Weights]:
    """The models to measure: its own, and with twins both of them and the task vectors."""
    assert model.weights is not None
    if model.twins is None:
        return [model.weights]
    twins = model.twins
    vector = without_changes(run, model.stages)
    return [model.weights, twins.factual, twins.counterfactual, vector]


def valued(
    run: Run,
    model: CoalitionModel,
    models: Sequence[Measured],
    repeated: Measured | None,
    final: Measured | None,
    end: Measured | None,
    settings: Mapping[str, Any],
) -> tuple[Mapping[str, np.ndarray], StageTrust]:
    """Behaviours of a coalition's model, (N,) each, and what is known of them once measured.

    Args:
        run: The run.
        model: The coalition.
        models: What :func:`models_to_measure` gives.
        repeated: The final model as repeated, where replay is not bit for bit.
        final: The final model; None while it is measured itself.
        end: The recorded model of everybody up to the coalition's last stage.
        settings: Of the estimator.
    """
    own, trust = models[0], model.trust
    kind = run.task.behaviour_kinds[0].name
    if final is None or end is None or trust.trust == "exact":
        return own.values, trust
    known = np.isfinite(final.values[kind])  # examples without a label have no value
    if not known.any():
        return own.values, trust
    if not np.isfinite(own.values[kind][known]).any():
        reason = "Its model answers with NaN or infinite numbers."
        return {}, trust.model_copy(update={"trust": "refused", "reason": reason})
    if repeated is not None:
        whole, again, value = (each.values[kind][known] for each in (final, repeated, own))
        return own.values, judged_replay(trust, whole, again, whole - value, kind, _WHOSE)
    if trust.estimator == REPLAY or not trained(model.stages, run.stages):
        return own.values, trust
    evidence = evidence_of(run, model, [each.values[kind][known] for each in (end, *models)])
    stage = run.stages[first_missing(model.stages)]
    if isinstance(evidence, PairedEvidence):
        weights = {"twins_share": evidence.twins_share, "twins_anchor": evidence.twins_anchor}
        trust = trust.model_copy(update=weights)
    scale = lost_by_then(evidence, final.values[kind][known] - end.values[kind][known])
    unlike, title = unlike_the_bench(run, stage, settings), find(trust.estimator).title
    # However large its error: what a number made of it comes to is judged where all its models are.
    trust = judged(trust, evidence, title, unlike, np.inf)
    if trust.trust == "refused":
        return {}, trust
    values: Mapping[str, np.ndarray] = own.values
    if trust.twins_share:
        effects = combined(run.task.behaviour_kinds, end, models, trust)
        values = {name: end.values[name] - effect for name, effect in effects.items()}
    return values, _of_all(run, model, trust, scale)


def evidence_of(run: Run, model: CoalitionModel, values: Sequence[np.ndarray]) -> Evidence:
    """What measured models say of what was lost up to the coalition's last stage.

    Args:
        run: The run.
        model: The coalition.
        values: The first behaviour of the recorded model there, and of
            :func:`models_to_measure`; (N,) each, over the labelled examples.
    """
    stage, later = run.stages[first_missing(model.stages)], trained(model.stages, run.stages)
    end, own, *others = values
    if model.twins is None:
        way = course(run, stage, recorded=False, later=later)
        return Evidence(way, end, end - own, end - own)
    factual, twin, vector = others
    return PairedEvidence(
        course=course(run, stage, later=later),
        final=end,
        by_weights=end - own,
        by_task_vector=end - vector,
        factual=factual,
        by_twins=factual - twin,
        sampling=model.twins.sampling,
        travels=model.twins.travels,
    )


def lost_by_then(evidence: Evidence, later: np.ndarray) -> float:
    """The size of what was lost up to a coalition's last stage, over that of all that was lost.

    Args:
        evidence: Of the first behaviour there, (N,).
        later: (N,) what the recorded stages after it did.
    """
    lost = evidence.effect()
    return _length(lost) / max(_length(later + lost), 1e-12)


def _of_all(run: Run, model: CoalitionModel, trust: StageTrust, scale: float) -> StageTrust:
    """Errors of what was lost up to the last stage, as those of all that did not happen.

    Args:
        run: The run.
        model: The coalition.
        trust: Its errors are relative to what was lost up to the last stage.
        scale: The size of that, over the size of all.
    """
    if model.stages.bit_count() == len(run.stages) - 1:
        return trust
    names = ("expected_error", "typical_error", "group_error")
    errors = {name: getattr(trust, name) for name in names}
    scaled = {name: None if error is None else scale * error for name, error in errors.items()}
    # Signs were promised of another effect.
    said = {"reliable": False, "wrong_signs": None, "reason": trust.reason + _SEVERAL}
    return trust.model_copy(update={**scaled, **said})


def _length(values: np.ndarray) -> float:
    return float(np.linalg.norm(values[np.isfinite(values)]))
