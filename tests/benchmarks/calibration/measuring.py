"""What every estimate of a recording says of itself, and how far off it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from stagelens.contracts import Refused
from stagelens.effects import computing
from stagelens.effects.evidence import evidence_of, is_estimate, models_of
from stagelens.effects.results import Result
from stagelens.estimators.calibration import kind_of
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.evidence import PairedEvidence
from stagelens.estimators.registry import estimate_name, make_estimator
from stagelens.measuring.models import Measured, empty_model, measure_set
from stagelens.runs.run import Run
from stagelens.trust.fidelity import fidelity
from tests.benchmarks.calibration.recipes import Recipe

Settings = Mapping[str, Any]

BEHAVIOURS = ("margin", "loss", "log-likelihood", "log-likelihood per token")
"""An estimate is as wrong as it is on the worst of these; others saturate."""


_PARTIAL, _UNROLLED = range(1, 12, 2), (0, 3, 6)
"""Numbers of the recordings on which the dearer estimates are measured too."""


def estimates(recipe: Recipe) -> list[tuple[str, Settings]]:
    """The estimates of a recording; the dearer ones of some recordings only."""
    coarse: list[tuple[str, Settings]] = [
        ("coarse-replay", {"budget": b}) for b in (0.125, 0.25, 0.5)
    ]
    wanted: list[tuple[str, Settings]] = [("task-vector", {}), *coarse]
    if recipe.family.network == "encoder":
        return wanted
    if recipe.number in _PARTIAL:
        wanted.append(("coarse-replay", {"budget": 0.25, "exact_stages": 1}))
    if recipe.number in _UNROLLED:
        wanted += [("unrolled-jump", {}), ("unrolled-scale", {})]
    return wanted


def rows(run: Run, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """A row per estimate of a stage: what it is, its features, and its true errors."""
    truth = computing.attribute(run, "test", "replay")
    group = truth.table.drop_duplicates("example_id")["group"].to_numpy()
    for name, settings in estimates(recipe):
        for stage, features, effects, kind in _judged(run, name, settings):
            yield {
                "family": recipe.family.name,
                "recording": recipe.name,
                "stage": stage,
                "kind": kind,
                "estimator": estimate_name(name, settings),
                "optimizer": recipe.optimizer,
                **_errors(truth, stage, effects, group),
                **features,
            }


def _judged(
    run: Run, name: str, settings: Settings
) -> Iterator[tuple[str, dict[str, float], Mapping[str, np.ndarray], str]]:
    """Stage, features, effects by behaviour, and kind of each estimate that is not refused."""
    examples = run.measurable_set("test")
    made = make_estimator(name, settings)
    try:
        without = list(counterfactuals(run, made, run.stages[:-1]))
    except Refused:
        return
    without = [each for each in without if each.weights is not None and is_estimate(run, each)]
    models = [models_of(run, each) for each in without]
    final, *measured = _measured(run, examples, [run.last.end().model, *chain(*models)])
    left = iter(measured)
    first = run.task.behaviour_kinds[0].name
    known = np.isfinite(final.values[first])
    for each, own in zip(without, models, strict=True):
        here = [next(left) for _ in own]
        values = [model.values[first][known] for model in (final, *here)]
        if not all(np.isfinite(value).all() for value in values):
            continue
        evidence = evidence_of(run, each, values)
        trust, partial = each.trust, False
        if isinstance(evidence, PairedEvidence):
            weights = {"twins_share": evidence.twins_share, "twins_anchor": evidence.twins_anchor}
            trust, partial = trust.model_copy(update=weights), evidence.partial is not None
        effects = computing.combined(run.task.behaviour_kinds, final, here, trust)
        yield each.stage, evidence.features(), effects, kind_of(name, partial)


def _measured(run: Run, examples: Any, models: list[Any]) -> list[Measured]:
    return measure_set(run, examples, empty_model(run), models, "calibration", lambda *_: None)


def _errors(
    truth: Result, stage: str, effects: Mapping[str, np.ndarray], group: np.ndarray
) -> dict[str, float]:
    """How far effects are off, on the worst behaviour."""
    found = []
    for name in effects:
        if name not in BEHAVIOURS and len(effects) > 1:
            continue
        rows = truth.table[(truth.table["stage"] == stage) & (truth.table["behaviour"] == name)]
        true, estimate = rows["effect"].to_numpy(), effects[name]
        figures = fidelity(estimate, true, ranks=False)
        size = float(np.sqrt(np.mean(estimate**2))) + 1e-12
        means = [abs(float((estimate - true)[group == own].mean())) for own in np.unique(group)]
        means.append(abs(float((estimate - true).mean())))
        found.append(
            {
                "error": figures["relative_error"],
                "r": figures["r"],
                "slope": figures["slope"],
                "wrong_signs": 1 - figures["sign_agreement"],
                "group_error": max(means) / size,
            }
        )
    return max(found, key=lambda each: each["error"])
