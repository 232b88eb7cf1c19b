"""Final model and counterfactuals measured on examples: one tidy table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from stagelens.compute import processes
from stagelens.contracts import (
    BASE,
    Behaviour,
    Progress,
    ProgressCallback,
    Refused,
    RunError,
    no_progress,
)
from stagelens.estimators.counterfactuals import check_final, counterfactuals
from stagelens.estimators.course import unlike_the_bench
from stagelens.estimators.evidence import PairedEvidence
from stagelens.estimators.expected_error import judged, judged_replay
from stagelens.estimators.protocol import METHOD, Counterfactual
from stagelens.estimators.registry import find, make_estimator, method_of
from stagelens.estimators.replay_check import check_again, check_steps
from stagelens.estimators.stage_trust import StageTrust
from stagelens.estimators.stored_counterfactuals import diverged
from stagelens.measuring.models import (
    Measured,
    answers_as_the_final_model,
    empty_model,
    measure_set,
)
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .evidence import evidence_of, is_estimate, models_of
from .refusals import stands
from .results import (
    BOUNDARY_COLUMNS,
    EFFECT_COLUMNS,
    BehaviourFacts,
    Result,
    ResultFacts,
    add_stages,
    joined,
    load_result,
    save_result,
)


@dataclass(frozen=True)
class Without:
    """One stage's effect on N examples, measured.

    Attributes:
        effects: Behaviour name to (N,) effects, final - without.
        model: The counterfactual model's own answers.
        trust: What is known of it once measured.
    """

    effects: Mapping[str, np.ndarray]
    model: Measured
    trust: StageTrust


def _effect(
    run: Run,
    final: Measured,
    models: Sequence[Measured],
    counterfactual: Counterfactual,
    settings: Mapping[str, Any] | None,
) -> Without:
    """The effect by the weights, sharpened by the twins where there are any."""
    kinds = run.task.behaviour_kinds
    own, trust = models[0], counterfactual.trust
    first = kinds[0].name
    known = np.isfinite(final.values[first])  # examples without a label have no value
    if known.any() and not np.isfinite(own.values[first][known]).any():
        reason = "The model without it answers with NaN or infinite numbers."
        refused = trust.model_copy(update={"trust": "refused", "reason": reason})
        return Without({}, own, refused)
    if counterfactual.repeated is not None and known.any():
        values = [each.values[first][known] for each in (final, models[1], own)]
        trust = judged_replay(trust, values[0], values[1], values[0] - values[2], first)
    elif is_estimate(run, counterfactual):
        values = [model.values[first][known] for model in (final, *models)]
        evidence = evidence_of(run, counterfactual, values)
        if isinstance(evidence, PairedEvidence):
            weights = {"share": evidence.twins_share, "anchor": evidence.twins_anchor}
            trust = trust.model_copy(update={f"twins_{n}": w for n, w in weights.items()})
        if known.any():
            unlike = unlike_the_bench(run, run.stage(trust.stage), settings)
            trust = judged(trust, evidence, find(trust.estimator).title, unlike)
    return Without(combined(kinds, final, models, trust), own, trust)


def combined(
    kinds: Sequence[Behaviour], final: Measured, models: Sequence[Measured], trust: StageTrust
) -> dict[str, np.ndarray]:
    """Effects by the counterfactual's weights, sharpened by its twins, within behaviours' ranges.

    Args:
        kinds: The behaviours.
        final: The final model.
        models: The counterfactual, then its factual and counterfactual twin if it has them.
        trust: Says how the twins are weighed; they are not read where their share is 0.

    Returns:
        Behaviour name to (N,) effects, final - without.
    """
    effects = {}
    for kind in kinds:
        value = final.values[kind.name]
        effect = weighed(value, *(model.values[kind.name] for model in models), trust=trust)
        # Clipped as a value of the counterfactual: read-outs added up could be no probability.
        effects[kind.name] = value - np.clip(value - effect, kind.lowest, kind.highest)
    return effects


def weighed(
    final: np.ndarray, own: np.ndarray, *twins: np.ndarray, trust: StageTrust
) -> np.ndarray:
    """Effects from values of the final model and of one without a stage; see :func:`combined`.

    Args:
        final: The final model.
        own: The counterfactual.
        twins: Its factual and counterfactual twin, if it has them.
        trust: Says how the twins are weighed.
    """
    effect, share, anchor = final - own, trust.twins_share, trust.twins_anchor
    if not share:
        return effect
    factual, twin = twins[:2]
    return (1 - share) * effect + share * (anchor * final + (1 - anchor) * factual - twin)


def effect_table(
    run: Run,
    examples: EvaluationSet,
    without: Sequence[Counterfactual],
    estimator: str,
    progress: ProgressCallback = no_progress,
    settings: Mapping[str, Any] | None = None,
) -> tuple[pd.DataFrame, list[StageTrust]]:
    """The effect table, one row per example, stage and behaviour, and the trust of each stage.

    ``effect = final - without``; a refused stage keeps its rows, with NaN. Predictions are those
    of the counterfactual weights.

    Args:
        run: The run; the end of its last stage is the final model.
        examples: The evaluation set.
        without: One counterfactual per stage.
        estimator: Its name, for the table.
        progress: Called for the forward passes.
        settings: Of the estimator.
    """
    models = [models_of(run, counterfactual) for counterfactual in without]
    # Names finished shards: seconds differ from one start to the next, and would hide them.
    known = [each.trust.model_dump(exclude={"seconds"}) for each in without]
    final, *measured = measure_set(
        run,
        examples,
        empty_model(run),
        [run.last.end().model, *(weights for own in models for weights in own)],
        _key(
            run, examples, "effects", method_of(estimator), estimator, dict(settings or {}), known
        ),
        progress,
    )
    left = iter(measured)
    table = examples.table()
    blocks, trusts = [], []
    for counterfactual, own in zip(without, models, strict=True):
        one = None
        trust = counterfactual.trust
        if own:
            measured_here = [next(left) for _ in own]
            one = _effect(run, final, measured_here, counterfactual, settings)
            trust = one.trust
            one = None if trust.trust == "refused" else one
        trusts.append(trust)
        blocks.append(stage_rows(table, examples.name, counterfactual.stage, estimator, final, one))
    return pd.concat(blocks, ignore_index=True), trusts


def stage_rows(
    own: pd.DataFrame,
    set_name: str,
    stage: str,
    estimator: str,
    final: Measured,
    without: Without | None,
) -> pd.DataFrame:
    """The rows of one stage in an effect table, without numbers where it was refused.

    Args:
        own: ``example_id``, ``label`` and metadata, N rows.
        set_name: Name of the evaluation set.
        stage: The stage that is left out.
        estimator: How its counterfactual was obtained.
        final: The final model.
        without: The stage's effects; None where it was refused.
    """
    nothing = np.full(len(own), np.nan)
    # Once for all behaviours: pandas is slow at converting texts.
    answers = pd.Series(final.answers)
    nobody = pd.Series(None, answers.index, dtype=answers.dtype)
    theirs = nobody if without is None else pd.Series(without.model.answers)
    blocks = []
    for behaviour, values in final.values.items():
        effect = nothing if without is None else without.effects[behaviour]
        block = {
            "set": set_name,
            "example_id": own["example_id"],
            "stage": stage,
            "behaviour": behaviour,
            "final": values,
            "without": values - effect,
            "effect": effect,
            "estimator": estimator,
            "prediction": answers,
            "prediction_without": theirs,
            "confidence": final.confidences,
            "confidence_without": nothing if without is None else without.model.confidences,
            "within_noise": pd.array([None] * len(own), dtype="boolean"),
        }
        frame = pd.DataFrame(block, columns=list(EFFECT_COLUMNS))
        blocks.append(frame.join(own.drop(columns="example_id")))
    return pd.concat(blocks, ignore_index=True)


def _key(run: Run, examples: EvaluationSet, *models: Any) -> str:
    """Identifies what is measured, for stored parts of it."""
    return digest(METHOD, run.digest, examples.digest, *models)[:32]


def _facts(run: Run, examples: EvaluationSet, kind: str, **more: Any) -> ResultFacts:
    behaviours = [BehaviourFacts.of(kind) for kind in run.task.behaviour_kinds]
    return ResultFacts.model_validate(
        {
            "kind": kind,
            "run_digest": run.digest,
            "set_name": examples.name,
            "set_digest": examples.digest,
            "behaviours": behaviours,
            **more,
        }
    )


def attribute(
    run: Run,
    set_name: str,
    estimator: str,
    stages: Sequence[str] | None = None,
    progress: ProgressCallback = no_progress,
    settings: Mapping[str, Any] | None = None,
) -> Result:
    """Stage effects on an evaluation set, from the stored table as far as it has them.

    Args:
        run: The run.
        set_name: One of its evaluation sets.
        estimator: How the counterfactuals are obtained.
        stages: Names of stages; None for all. They are stored with those computed before.
        progress: Called for counterfactuals (nine tenths of the way) and forward passes.
        settings: Of the estimator, for instance ``{"budget": 0.25}``; None for its defaults.

    Raises:
        Refused: The estimator refuses every stage.
        RunError: There is no such stage or set.
    """
    made = make_estimator(estimator, settings)
    used = dict(made.settings)
    _ = run.last  # refuses a run without a finished stage, by name
    chosen = [run.stage(name) for name in stages] if stages is not None else run.stages
    names = list(dict.fromkeys(stage.name for stage in chosen))
    stored = load_result(run, set_name, "effects", estimator, used)
    there = {} if stored is None else stored.trust
    there = {n: known for n, known in there.items() if made.accepts(known) and stands(run, known)}
    # The main process decides, or some would wait for others that go on.
    lacking = processes.by_main(lambda: [name for name in names if name not in there])
    if not lacking:
        check_again(run, chosen, made)
        return joined([_seen(stored)], names)
    examples = run.measurable_set(set_name)
    overall = Progress(progress)
    missing = [run.stage(name) for name in lacking]
    without = list(counterfactuals(run, made, missing, overall.part(0.0, 0.9)))
    # After them, as what cannot fit into memory is refused there.
    processes.by_main(lambda: check_steps(run, chosen, made))
    known = [there[name] for name in names if name in there]
    if all(each.trust == "refused" for each in (*known, *(c.trust for c in without))):
        raise Refused(without[0].trust.reason)
    table, trusts = effect_table(run, examples, without, estimator, overall.part(0.9, 1.0), used)
    facts = _facts(run, examples, "effects", estimator=estimator, settings=used, stages=trusts)
    result = Result(facts, table)
    processes.by_main(lambda: add_stages(run, result))
    return joined([result, *([] if stored is None else [stored])], names)


def _seen(stored: Result | None) -> Result:
    """The stored result that the main process has seen."""
    if stored is None:
        raise RunError("not every process sees a stored result; start the command again")
    return stored


def boundaries(run: Run, set_name: str, progress: ProgressCallback = no_progress) -> Result:
    """Behaviour after every boundary (observed, not estimated); stored once computed.

    Every boundary is measured on the model of its own stage. Where its outputs differ in shape from
    the final model's (it has other classes, say), behaviours are not comparable, and the boundary
    is left out. So are one that lacks what an assembled run knows only from a later checkpoint,
    such as a head, and one at which training had diverged.
    """
    stored = load_result(run, set_name, "boundaries")
    if processes.by_main(lambda: stored is not None):
        return _seen(stored)
    examples = run.measurable_set(set_name)
    first = run.stages[0]
    held = [(BASE, first, first.start), *((stage.name, stage, stage.end) for stage in run.stages)]
    whole = [one for n, one in enumerate(held) if not any(s.appeared for s in run.stages[n:])]
    names: list[str] = []
    measured: list[Measured] = []
    for config, group in groupby(whole, key=lambda one: one[1].facts.build_config):
        alike = [(n, s, state().model) for n, s, state in group]
        alike = [one for one in alike if diverged(one[1], one[2]) is None]
        if not alike or not answers_as_the_final_model(run, alike[0][1], examples):
            continue
        own = [name for name, *_ in alike]
        names += own
        measured += measure_set(
            run,
            examples,
            run.task.build_empty(config),
            [model for *_, model in alike],
            _key(run, examples, "boundaries", own),
            progress,
        )
    if not names:  # the final model itself diverged: refused by the stage where that began
        check_final(run)
    ids = examples.table(["example_id"])["example_id"].to_numpy()
    blocks = [
        pd.DataFrame(
            {
                "set": set_name,
                "example_id": ids,
                "boundary": boundary,
                "behaviour": name,
                "value": values,
                "prediction": model.answers,
                "confidence": model.confidences,
            },
            columns=list(BOUNDARY_COLUMNS),
        )
        for boundary, model in zip(names, measured, strict=True)
        for name, values in model.values.items()
    ]
    facts = _facts(run, examples, "boundaries", estimator="")
    result = Result(facts, pd.concat(blocks, ignore_index=True))
    processes.by_main(lambda: save_result(run, result))
    return result
