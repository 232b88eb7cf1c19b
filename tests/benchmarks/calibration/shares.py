"""How far shares and other sums of estimated coalitions are off on recordings of the bench.

One command replays every coalition of recordings that the cache does not hold, and fits::

    python -m tests.benchmarks.calibration.shares --cache DIR [--numbers 4]

``--fit`` only fits, from the stored table, ``shares.parquet``. The pretrained encoder takes hours
and is left out, and so are recordings that train eight times as long. What a sum's models promise
comes from functions that were fitted without the recording's family, as everything that is fitted
here: nothing knows the family that it is asked about.
"""

from __future__ import annotations

import argparse
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from stagelens.analyses.shares import values
from stagelens.analyses.shares.share_trust import SHARES, SUMS, features, kind_of
from stagelens.effects.coalition_evidence import evidence_of, lost_by_then, models_to_measure
from stagelens.effects.computing import combined
from stagelens.estimators.calibration import (
    FUNCTIONS,
    Calibration,
    Function,
    calibration,
    known_kind,
    promised,
)
from stagelens.estimators.coalition_plan import recorded_end, trained
from stagelens.estimators.coalitions import coalitions
from stagelens.estimators.evidence import PairedEvidence
from stagelens.estimators.registry import estimate_name
from stagelens.measuring.models import BATCH_SIZE, Measured, empty_model, measure
from stagelens.runs.run import Run
from stagelens.trust.fidelity import fidelity
from tests.benchmarks.calibration import coverage, fitting
from tests.benchmarks.calibration.measuring import BEHAVIOURS
from tests.benchmarks.calibration.recipes import FAMILIES, LONG, recipe
from tests.benchmarks.calibration.recording import recorded

_HERE = Path(__file__).parent
TABLE, LEFT_OUT_ONE = _HERE / "shares.parquet", _HERE / "table.parquet"
MOST_STAGES = 6
_EXACT = "exact"
"""Stands in the place of an estimate's name in stored measurements."""

_ESTIMATES: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("coarse-replay", {"budget": budget}) for budget in (0.125, 0.25, 0.5)),
    ("task-vector", {}),
)


@dataclass(frozen=True)
class Model:
    """An estimated coalition.

    Attributes:
        values: Behaviour to (N,) values.
        features: What its error is told by; none where it is exact.
        scale: Of that error, to make it relative to the effect of all that did not happen.
    """

    values: Mapping[str, np.ndarray]
    features: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0


@dataclass(frozen=True)
class Measurement:
    """All coalitions of one recording, by replay and by estimates.

    Attributes:
        family: Of the recording.
        recording: Its name.
        optimizer: That trained it.
        stages: How many it has.
        first: The behaviour that errors of models are told by.
        exact: Coalition to behaviour to (N,) values.
        estimates: Estimator with its settings to coalition to its model; those whose twins diverged
            are missing.
    """

    family: str
    recording: str
    optimizer: str
    stages: int
    first: str
    exact: Mapping[int, Mapping[str, np.ndarray]]
    estimates: Mapping[str, Mapping[int, Model]]


def measured(run: Run, family: str, optimizer: str) -> Measurement:
    """Replay all coalitions of a run, and estimate them."""
    examples, module = run.measurable_set("test"), empty_model(run)
    held = list(examples.batches(BATCH_SIZE))

    def answers(*models: Any) -> list[Measured]:
        return measure(run.task, module, models, held, examples.count)

    masks = range(1 << len(run.stages))
    exact: dict[int, Measured] = {}
    for model in coalitions(run, masks, "replay"):
        assert model.trust.trust == "exact", model.trust.reason
        exact[model.mask] = answers(model.weights)[0]
    estimates: dict[str, dict[int, Model]] = {}
    for name, settings in _ESTIMATES:
        own = estimates.setdefault(estimate_name(name, settings), {})
        for model in coalitions(run, masks, name, settings):
            if model.weights is not None:
                found = answers(*models_to_measure(run, model))
                own[model.mask] = _estimated(run, model, found, exact)
    return Measurement(
        family,
        run.path.name,
        optimizer,
        len(run.stages),
        run.task.behaviour_kinds[0].name,
        {mask: one.values for mask, one in exact.items()},
        estimates,
    )


def _estimated(
    run: Run, model: Any, models: list[Measured], exact: Mapping[int, Measured]
) -> Model:
    own = models[0].values
    if model.trust.trust == "exact" or not trained(model.stages, run.stages):
        return Model(own)
    kind, end, final = (
        run.task.behaviour_kinds[0].name,
        exact[recorded_end(model.stages)],
        exact[max(exact)],
    )
    known = np.isfinite(final.values[kind])
    evidence = evidence_of(run, model, [each.values[kind][known] for each in (end, *models)])
    if isinstance(evidence, PairedEvidence) and evidence.twins_share:
        weights = {"twins_share": evidence.twins_share, "twins_anchor": evidence.twins_anchor}
        trust = model.trust.model_copy(update=weights)
        effects = combined(run.task.behaviour_kinds, end, models, trust)
        own = {name: end.values[name] - effect for name, effect in effects.items()}
    scale = lost_by_then(evidence, final.values[kind][known] - end.values[kind][known])
    return Model(own, evidence.features(), scale)


@lru_cache
def typical_without(family: str, estimator: str) -> Function:
    """The typical error of one kind of estimate, from all families but one."""
    table = pd.read_parquet(LEFT_OUT_ONE)
    rows = table[(table["kind"] == estimator) & (table["family"] != family)].reset_index(drop=True)
    errors = fitting.targets(rows)["error"]
    return fitting.Linear.fitted(rows, fitting.FEATURES[estimator], errors, 0.5).function()


def rows(found: Measurement, left_out: bool = True) -> Iterator[dict[str, Any]]:
    """A row per estimated sum and behaviour: what it is, its features, and its true errors.

    Args:
        found: All coalitions of a recording.
        left_out: Whether its family is one of the bench's, of which nothing must be known.
    """
    m = found.stages
    for estimate, models in found.estimates.items():
        estimator = estimate.split()[0]
        kind = known_kind(estimator)
        assert kind is not None
        if len(models) < 1 << m:
            continue
        if left_out:
            kind = kind.model_copy(update={"median": typical_without(found.family, estimator)})
        typical = {
            mask: model.scale * promised(kind, model.features).typical
            for mask, model in models.items()
            if model.features
        }
        behaviours = [name for name in found.exact[0] if name in BEHAVIOURS] or [found.first]
        for behaviour in behaviours:
            v = {mask: model.values[behaviour] for mask, model in models.items()}
            truth = {mask: own[behaviour] for mask, own in found.exact.items()}
            known = np.isfinite(truth[max(truth)])
            for of, what, weights in (*sums(m), *halves(m)):
                told = features(
                    weights, v, {m: e for m, e in typical.items() if m in weights}, known
                )
                if not told or not set(typical) & set(weights):
                    continue
                yield {
                    "family": found.family,
                    "recording": found.recording,
                    "stage": what,
                    "kind": kind_of(estimator, of),
                    "estimator": estimate,
                    "optimizer": found.optimizer,
                    "behaviour": behaviour,
                    "parties": m,
                    **_errors(weights, v, truth, known),
                    **told,
                }


def sums(m: int) -> Iterator[tuple[str, str, dict[int, float]]]:
    """The sums of several models that are shown: their kind, their name and weights."""
    for party in range(m):
        yield SHARES, f"{party}", values.share_weights(party, m)
        yield SUMS, f"{party} alone", values.alone_weights(party, m)
    for later in range(m):
        for earlier in range(later):
            pair, without = f"{earlier} with {later}", values.every(m) & ~(1 << earlier)
            yield SUMS, f"{pair}, all contexts", values.interaction_weights(earlier, later, m)
            yield SUMS, f"{pair}, given all", values.given_all_weights(earlier, later, m)
            other = {without: 1.0, without & ~(1 << later): -1.0}
            yield SUMS, f"{later} without {earlier}", other


def halves(m: int) -> Iterator[tuple[str, str, dict[int, float]]]:
    """Shares of two parties, the first of the stages taken as one and the others."""
    everybody = values.every(m)
    for first in map(values.every, range(1, m)):
        other = everybody & ~first
        weights = {everybody: 0.5, first: 0.5, other: -0.5, 0: -0.5}
        yield SHARES, f"{first:b} of two", weights
        yield SHARES, f"{other:b} of two", {**weights, first: -0.5, other: 0.5}


def _errors(
    weights: Mapping[int, float],
    v: Mapping[int, np.ndarray],
    truth: Mapping[int, np.ndarray],
    known: np.ndarray,
) -> dict[str, float]:
    estimate, true = (values.combined(each, weights)[known] for each in (v, truth))
    figures = fidelity(estimate, true, ranks=False)
    halves = np.array_split(np.arange(len(true)), 2)  # of the bench's sets, the groups
    means = [abs(float((estimate - true)[half].mean())) for half in (*halves, slice(None))]
    return {
        "error": figures["relative_error"],
        "r": figures["r"],
        "wrong_signs": 1 - figures["sign_agreement"],
        "group_error": max(means) / (float(np.sqrt(np.mean(estimate**2))) + 1e-12),
    }


def fit(table: pd.DataFrame) -> None:
    """Fit shares and sums, add them to what the product reads, and print the coverage."""
    stored, kinds, points = calibration(), {}, []
    # One limit is told to people, and sums of estimates must not raise it.
    single = [kind for name, kind in stored.kinds.items() if name in fitting.FEATURES]
    most = max(kind.reliable_below or 0.0 for kind in single)
    for name, own in table.groupby("kind"):
        own = own.reset_index(drop=True)
        fitted = fitting.fit(own, str(name))
        limit = fitted.kind.reliable_below
        limit = None if limit is None else min(limit, most)
        kinds[str(name)] = fitted.kind.model_copy(update={"reliable_below": limit})
        kept = {f"kept_{target}": held for target, held in fitted.kept.items()}
        reliable = fitted.reliable & (fitted.promised <= most)
        points.append(own.assign(promised=fitted.promised, reliable=reliable, **kept))
    everything = Calibration(**{**dict(stored), "kinds": {**stored.kinds, **kinds}})
    FUNCTIONS.write_text(everything.model_dump_json(indent=1) + "\n", "utf-8")
    found = pd.concat(points, ignore_index=True)
    for by in (["kind"], ["kind", "family"]):
        table = {" ".join(map(str, name)): coverage.figures(own) for name, own in found.groupby(by)}
        print(pd.DataFrame(table).T.to_string(), end="\n\n")


def keep(found: Measurement, file: Path) -> None:
    """Write a measurement: its values as arrays, all else as JSON in the header."""
    values: dict[str, np.ndarray] = {}
    models: list[dict[str, Any]] = []

    def add(estimate: str, mask: int, own: Mapping[str, np.ndarray]) -> int:
        number = len(models)
        values.update({f"{number}/{name}": np.ascontiguousarray(v) for name, v in own.items()})
        models.append({"estimate": estimate, "mask": mask, "behaviours": list(own)})
        return number

    for mask, own in found.exact.items():
        add(_EXACT, mask, own)
    for estimate, of_masks in found.estimates.items():
        for mask, model in of_masks.items():
            told = models[add(estimate, mask, model.values)]
            features = {name: float(value) for name, value in model.features.items()}
            told |= {"features": features, "scale": float(model.scale)}
    names = ("family", "recording", "optimizer", "stages", "first")
    told = {**{name: getattr(found, name) for name in names}, "models": models}
    told["estimates"] = list(found.estimates)
    save_file(values, file, {"measurement": json.dumps(told)})


def kept(file: Path) -> Measurement:
    """What :func:`keep` wrote."""
    exact: dict[int, Mapping[str, np.ndarray]] = {}
    with safe_open(file, "np") as stored:
        told = json.loads(stored.metadata()["measurement"])
        estimates: dict[str, dict[int, Model]] = {name: {} for name in told.pop("estimates")}
        for number, one in enumerate(told.pop("models")):
            own = {name: stored.get_tensor(f"{number}/{name}") for name in one["behaviours"]}
            if one["estimate"] == _EXACT:
                exact[one["mask"]] = own
            else:
                model = Model(own, one["features"], one["scale"])
                estimates[one["estimate"]][one["mask"]] = model
    return Measurement(**told, exact=exact, estimates=estimates)


def _cached(cache: Path, numbers: int) -> Iterator[Measurement]:
    for number in range(numbers):
        for family in FAMILIES.values():
            if family.network == "encoder" or number not in family.numbers or number >= LONG:
                continue
            own = recipe(family, number)
            file = cache / "shares" / f"{own.name}.safetensors"
            if not file.exists() and len(own.stages) <= MOST_STAGES:
                run = recorded(own, cache / "runs")
                file.parent.mkdir(parents=True, exist_ok=True)
                draft = file.with_suffix(".draft")
                keep(measured(run, family.name, own.optimizer), draft)
                draft.replace(file)
                shutil.rmtree(run.path)
            if file.exists():
                yield kept(file)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("calibration-runs"))
    parser.add_argument("--numbers", type=int, default=4, help="recordings of every family")
    parser.add_argument("--fit", action="store_true", help="only fit, from the stored table")
    options = parser.parse_args()
    if options.fit:
        table = pd.read_parquet(TABLE)
    else:
        warnings.filterwarnings("ignore")
        torch.set_num_threads(1)
        found = _cached(options.cache, options.numbers)
        table = pd.DataFrame([row for one in found for row in rows(one)])
        numbers = table.select_dtypes("float64").columns
        table = table.astype(dict.fromkeys(numbers, "float32"))
        table.to_parquet(TABLE, compression="zstd", index=False)
    fit(table)


if __name__ == "__main__":
    main()
