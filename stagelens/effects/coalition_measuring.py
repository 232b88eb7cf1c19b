"""Coalition models measured on an evaluation set, one after the other, each stored and dropped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import ProgressCallback, Refused, StageLensError, no_progress
from stagelens.estimators import counterfactuals
from stagelens.estimators.coalition_plan import MOST, first_missing, recorded_end, refusal, trained
from stagelens.estimators.coalitions import coalitions, made_for_coalitions
from stagelens.estimators.halves import halved
from stagelens.estimators.parties import Parties, check_parties, parties_of, stage_masks
from stagelens.estimators.protocol import METHOD, Estimator
from stagelens.estimators.replay_check import check_steps
from stagelens.estimators.sharing_out import share_coalitions
from stagelens.measuring.models import (
    BATCH_SIZE,
    SHARD,
    Measured,
    empty_model,
    measure,
    measure_set,
)
from stagelens.runs.cutting import Cut
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.states import Weights

from .coalition_evidence import models_to_measure, valued
from .coalition_results import (
    CoalitionPart,
    CoalitionResult,
    key_of,
    lacking,
    load_coalitions,
    parts_of,
    save_part,
    stored_part,
)
from .results import BehaviourFacts


def measure_coalitions(
    run: Run,
    set_name: str,
    estimator: str,
    masks: Iterable[int] | None = None,
    parties: Parties | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: ProgressCallback = no_progress,
    also: Mapping[str, Any] | None = None,
) -> CoalitionResult:
    """Coalitions on an evaluation set; what was measured before is read from the run folder.

    The final model is always among them. A coalition that is refused has a reason and no values.

    Args:
        run: The run.
        set_name: One of its evaluation sets.
        estimator: ``replay``, ``coarse-replay`` or ``task-vector``.
        masks: Bit i is set where party i happened; None for all of them, up to six parties.
        parties: Stages taken as one; None for every stage by itself.
        settings: Of the estimator; None for its defaults.
        progress: Called for the work.
        also: What a helper needs to know to find the same run, see :func:`do`.

    Returns:
        All coalitions of these parties that were ever measured.

    Raises:
        Refused: Every coalition that takes training is refused, or training diverged.
        StageLensError: There are too many parties for all coalitions.
    """
    made = made_for_coalitions(estimator, settings)
    _ = run.last  # refuses a run without a finished stage, by name
    parties = parties_of(run) if parties is None else check_parties(run, parties)
    examples = run.measurable_set(set_name)
    full = (1 << len(run.stages)) - 1
    wanted = list(stage_masks(run, parties, _all(parties) if masks is None else masks).values())
    left = _lacking(run, examples, made, [full, *wanted])
    if left:
        counterfactuals.check_final(run)
        # Others are compared with these, which are recorded.
        first = _lacking(run, examples, made, [full, *map(recorded_end, left)])
        _measure(run, examples, made, first, no_progress)
        left = [mask for mask in left if mask not in first]
        message = {"set": set_name, **(also or {})}
        hard = [m for m in left if trained(m, run.stages) and not refusal(run, m, made.name)]
        if share_coalitions(run, made, hard, message, partial(do, run), progress):
            # What was refused, or failed in a helper, is told by the work here.
            left = _lacking(run, examples, made, left)
        _measure(run, examples, made, left, progress)
    check_steps(run, run.stages, made)
    found = load_coalitions(run, set_name, made.name, made.settings, parties)
    if found is None:
        raise StageLensError(f"no result could be kept in {run.path}; see if it can be written to")
    _check_some(run, examples, made, wanted)
    return found


def _all(parties: Parties) -> range:
    """Every coalition.

    Raises:
        StageLensError: There are too many.
    """
    if len(parties) > MOST:
        raise StageLensError(
            f"{len(parties)} parties have {1 << len(parties):,} coalitions, and all are computed "
            f"of up to {MOST}; take stages as one, or say which coalitions to compute"
        )
    return range(1 << len(parties))


def _check_some(
    run: Run, examples: EvaluationSet, estimator: Estimator, masks: Sequence[int]
) -> None:
    """Refuse, with the first reason, where nothing but recorded models could be had."""
    there = parts_of(run, key_of(run, examples, estimator.name, estimator.settings))
    hard = [there[mask].trust for mask in masks if mask in there and trained(mask, run.stages)]
    if hard and all(each.trust == "refused" for each in hard):
        raise Refused(hard[0].reason)


def do(run: Run, message: Mapping[str, Any], progress: ProgressCallback) -> None:
    """One piece of work that processes share: some coalitions, or what counterfactuals take.

    A message may say that a stage is taken as two halves: ``"cut"`` is its name and a step.
    """
    cut = Cut(*message["cut"]) if "cut" in message else None
    if cut is not None and cut.stage in [stage.name for stage in run.stages]:  # as a helper has it
        run = halved(run, cut, no_progress)
    if "coalitions" not in message:
        counterfactuals.do(run, message, progress)
        return
    made = made_for_coalitions(message["estimator"], message["settings"])
    examples = run.measurable_set(message["set"])
    left = _lacking(run, examples, made, message["coalitions"])
    _measure(run, examples, made, left, progress)


def _lacking(
    run: Run, examples: EvaluationSet, estimator: Estimator, masks: Iterable[int]
) -> list[int]:
    return lacking(run, key_of(run, examples, estimator.name, estimator.settings), masks)


def _measure(
    run: Run,
    examples: EvaluationSet,
    estimator: Estimator,
    masks: Sequence[int],
    progress: ProgressCallback,
) -> None:
    """Obtain, measure and store coalitions of single stages."""
    if not masks:
        return
    key = key_of(run, examples, estimator.name, estimator.settings)
    ids = examples.table([])["example_id"]
    kinds = [BehaviourFacts.of(kind) for kind in run.task.behaviour_kinds]
    full = (1 << len(run.stages)) - 1
    recorded = {m: _stored(run, examples, estimator, m) for m in {full, *map(recorded_end, masks)}}
    module = empty_model(run)
    columns = ("example_id", "prediction", "confidence", *(kind.name for kind in kinds))
    nothing = pd.DataFrame(columns=list(columns))
    repeated: dict[int, Measured] = {}

    # What one shard may hold is read once for all models.
    held = list(examples.batches(BATCH_SIZE)) if examples.count <= SHARD else None

    def measured(mask: int, *models: Weights) -> list[Measured]:
        if held is not None:
            return measure(run.task, module, models, held, examples.count)
        name = digest(METHOD, "coalition", key.model_dump(), mask, len(models))[:32]
        return measure_set(run, examples, module, models, name)

    for model in coalitions(run, masks, estimator.name, estimator.settings, None, progress):
        trust, table = model.trust, nothing
        if model.weights is not None:
            again = None
            if model.repeated is not None:
                first = first_missing(model.stages)
                if first not in repeated:
                    repeated[first] = measured(-1 - first, model.repeated)[0]
                again = repeated[first]
            models = measured(model.stages, *models_to_measure(run, model))
            ends = recorded[full], recorded[recorded_end(model.stages)]
            values, trust = valued(run, model, models, again, *ends, estimator.settings)
            if trust.trust != "refused":
                table = _table(ids, models[0], values)
        part = CoalitionPart(
            key=key, mask=model.stages, behaviours=kinds, trust=trust, passes=model.passes
        )
        save_part(run, part, table)
        del model  # before the next one is obtained


def _stored(run: Run, examples: EvaluationSet, estimator: Estimator, mask: int) -> Measured | None:
    """A coalition as it was stored; None before that."""
    key = key_of(run, examples, estimator.name, estimator.settings)
    found = stored_part(run, key, mask, examples.table([])["example_id"])
    if found is None or found[0].trust.trust == "refused":
        return None
    part, table = found
    return Measured(
        {each.name: table[each.name].to_numpy() for each in part.behaviours},
        table["prediction"].to_numpy(dtype=object),
        table["confidence"].to_numpy(),
    )


def _table(ids: pd.Series, own: Measured, values: Mapping[str, np.ndarray]) -> pd.DataFrame:
    known = {"example_id": ids, "prediction": own.answers, "confidence": own.confidences}
    return pd.DataFrame({**known, **values})
