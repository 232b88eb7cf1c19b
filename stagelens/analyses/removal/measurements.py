"""Edited models on an evaluation set: one row per example, kept in the run folder once measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import Progress
from stagelens.estimators.registry import method_of
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.trust import estimates

from .spec import Edit

if TYPE_CHECKING:
    from stagelens.contracts import ProgressCallback
    from stagelens.measuring.models import Measured

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""Strengths at which every stage alone is measured, for a preview to interpolate between."""

FOLDER = "results/removals"

_COLUMNS = ("example_id", "prediction", "confidence")


class _Facts(BaseModel):
    """What stands in the metadata of a stored measurement."""

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    edit: Edit
    stages: list[StageTrust]


@dataclass(frozen=True)
class Measurement:
    """An edited model on an evaluation set.

    Attributes:
        edit: What was done to the final model; nothing, for the final model itself.
        table: One row per example in the set's order: ``example_id``, ``prediction``,
            ``confidence`` and a column per behaviour.
        trust: Stage to what is known of the counterfactual that the edit was made with.
    """

    edit: Edit
    table: pd.DataFrame
    trust: Mapping[str, StageTrust]


def grid(estimator: str, settings: Mapping[str, Any], stages: Sequence[str]) -> list[Edit]:
    """The edits that a preview is made from: none, and every stage alone at :data:`STRENGTHS`."""
    common = {"estimator": estimator, "settings": dict(settings)}
    alone = [{stage: strength} for stage in stages for strength in STRENGTHS]
    return [Edit.model_validate({**common, "strengths": each}) for each in [{}, *alone]]


def path(run: Run, examples: EvaluationSet, edit: Edit) -> Path:
    """Where a measurement is kept."""
    spec = edit.model_dump() if edit.strengths else {}  # no edit is the same by any estimator
    method = method_of(edit.estimator if edit.strengths else "")
    key = digest(method, run.digest, examples.digest, spec)[:32]
    return run.files.inside(f"{FOLDER}/{key}.parquet")


def load_measurement(run: Run, examples: EvaluationSet, edit: Edit) -> Measurement | None:
    """A measurement from the run folder; None where there is none that can be used."""
    found = fact_tables.read(path(run, examples, edit), _Facts, _COLUMNS)
    if found is None:
        return None
    facts, table = found
    # A file that was copied to this name is not believed.
    if (facts.run_digest, facts.set_digest) != (run.digest, examples.digest):
        return None
    # Of no edit it does not matter by which estimator.
    same = facts.edit == edit or not (facts.edit.strengths or edit.strengths)
    if not same or {trust.stage for trust in facts.stages} != set(edit.strengths):
        return None
    if table["example_id"].tolist() != examples.table([])["example_id"].tolist():
        return None
    return Measurement(edit, table, {trust.stage: trust for trust in facts.stages})


def _store(run: Run, examples: EvaluationSet, measurement: Measurement) -> None:
    facts = _Facts(
        run_digest=run.digest,
        set_digest=examples.digest,
        edit=measurement.edit,
        stages=list(measurement.trust.values()),
    )
    fact_tables.write(path(run, examples, measurement.edit), measurement.table, facts)


def measure_edits(
    run: Run,
    examples: EvaluationSet,
    edits: Sequence[Edit],
    progress: ProgressCallback | None = None,
    keep: bool = True,
) -> list[Measurement]:
    """Measure edited models; what was measured before comes from the run folder.

    Args:
        run: The run.
        examples: One of its evaluation sets.
        edits: Any number of them; one without strengths is the final model.
        progress: Called for counterfactuals (nine tenths of it) and forward passes.
        keep: Whether to write what is measured into the run folder.

    Raises:
        Refused: An estimator cannot give a stage.
        RunError: A stage is not there.
    """
    found = {number: load_measurement(run, examples, edit) for number, edit in enumerate(edits)}
    missing = [edits[number] for number, one in found.items() if one is None]
    fresh = iter(_measured(run, examples, missing, progress, keep) if missing else [])
    return [one if one is not None else next(fresh) for one in found.values()]


def _measured(
    run: Run,
    examples: EvaluationSet,
    edits: Sequence[Edit],
    progress: ProgressCallback | None,
    keep: bool,
) -> Iterator[Measurement]:
    from stagelens.measuring.models import BATCH_SIZE, empty_model, measure

    from .edits import EditedWeights, Material, material

    examples.check_fits(run.task)
    for edit in edits:
        for stage in edit.strengths:
            run.stage(stage)  # one that is not there is an error, by name, before any work
    overall = Progress(progress)
    # Edits by the same estimator and settings share its counterfactuals.
    kinds = list(dict.fromkeys((edit.estimator, edit.settings_key) for edit in edits))
    materials: dict[tuple[str, str], Material] = {}
    for number, kind in enumerate(kinds):
        mine = [edit for edit in edits if (edit.estimator, edit.settings_key) == kind]
        stages = [s.name for s in run.stages if any(s.name in edit.strengths for edit in mine)]
        obtaining = overall.part(0.0, 0.9).piece(number, len(kinds))
        materials[kind] = material(run, kind[0], mine[0].settings, stages, obtaining)
    made = [materials[edit.estimator, edit.settings_key] for edit in edits]
    models = measure(
        run.task,
        empty_model(run),
        [EditedWeights(own, edit) for own, edit in zip(made, edits, strict=True)],
        examples.batches(BATCH_SIZE),
        examples.count,
        overall.part(0.9, 1.0),
    )
    ids = examples.table([])["example_id"].to_numpy()
    for edit, own, model in zip(edits, made, models, strict=True):
        trust = {stage: own.without[stage].trust for stage in edit.strengths}
        one = Measurement(edit, _table(ids, model), trust)
        if keep:
            _store(run, examples, one)
        yield one


def _table(ids: np.ndarray, model: Measured) -> pd.DataFrame:
    columns = {"example_id": ids, "prediction": model.answers, "confidence": model.confidences}
    return pd.DataFrame({**columns, **model.values})


def known_trust(run: Run, examples: EvaluationSet, measurement: Measurement) -> list[StageTrust]:
    """What is known of an edit's counterfactuals: as the effect table says, where there is one.

    That table has an estimator's expected error, and what was verified of it.
    """
    edit = measurement.edit
    better = estimates.known_trust(run, examples.name, edit.estimator, edit.settings)
    return [better.get(stage, trust) for stage, trust in measurement.trust.items()]
