"""The models in which only some stages happened, by an estimator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stagelens.compute import devices, memory
from stagelens.contracts import Progress, ProgressCallback, Refused, Trust, no_progress
from stagelens.replaying.coalition_tree import replay_coalitions
from stagelens.replaying.replay import replay_later
from stagelens.runs.run import Run, Stage
from stagelens.runs.states import Weights, not_finite

from .coalition_plan import ESTIMATORS, first_missing, passes, refusal, trained
from .counterfactuals import check_final
from .parties import Parties, check_parties, name_of, parties_of, stage_masks
from .protocol import CoalitionModel, Estimator
from .registry import make_estimator
from .replay import trust_in_replay
from .replay_check import check_given, check_replay
from .stage_trust import REPLAY, StageTrust
from .subtraction import appeared_there, subtract_stage
from .task_vector import TaskVector

_READ = "No later stage is trained: the recorded state, with the boundary rules that follow."
_ALL = "The final model."


def coalitions(
    run: Run,
    masks: Sequence[int],
    estimator: str,
    settings: Mapping[str, Any] | None = None,
    parties: Parties | None = None,
    progress: ProgressCallback = no_progress,
) -> Iterator[CoalitionModel]:
    """The model of every coalition, in the order in which they are obtained.

    A stage that did not happen still has its boundary rule applied: a new or carried optimiser, new
    parameters at their initial values, adapters added or merged. A coalition that the estimator
    refuses comes without weights. Drop each model before the next is asked for.

    Args:
        run: The run.
        masks: Bit i is set where party i happened.
        estimator: One of ``replay``, ``coarse-replay`` and ``task-vector``.
        settings: Of the estimator.
        parties: Stages taken as one; None for every stage by itself.
        progress: Called for the work.

    Raises:
        Refused: Training diverged, or the estimator gives no coalitions.
        StageLensError: A mask names a party that is not there, or memory is too small.
    """
    made = made_for_coalitions(estimator, settings)
    check_final(run)
    parties = parties_of(run) if parties is None else check_parties(run, parties)
    own = stage_masks(run, parties, masks)
    mask_of = {stages: mask for mask, stages in own.items()}
    names = parties_of(run)
    given = []
    for stages, mask in mask_of.items():
        if reason := refusal(run, stages, made.name):
            trust = _trust(name_of(names, stages), made.name, "refused", reason)
            yield CoalitionModel(mask, stages, None, trust)
        else:
            given.append(stages)
    _check_memory(run, made, given)
    if not made.free and any(trained(stages, run.stages) for stages in given):
        check_given(run)

    def named(model: CoalitionModel) -> CoalitionModel:
        return replace(_checked(run, model), mask=mask_of[model.stages])

    yield from map(named, _obtained(run, made, given, progress))  # holds none of them


def made_for_coalitions(estimator: str, settings: Mapping[str, Any] | None) -> Estimator:
    """An estimator that gives coalitions.

    Raises:
        Refused: It gives none.
    """
    if estimator not in ESTIMATORS:
        raise Refused(f"{estimator} gives no coalitions of stages; use {', '.join(ESTIMATORS)}")
    return make_estimator(estimator, settings)


def _check_memory(run: Run, estimator: Estimator, masks: Sequence[int]) -> None:
    """Refuse, before any work, what cannot fit into memory.

    Raises:
        StageLensError: It cannot; says how much it takes and what to do.
    """
    later = run.stages[min((first_missing(mask) for mask in masks), default=0) + 1 :]
    if estimator.free or not later or devices.computing().type != "cpu":
        return
    state = max(stage.facts.end_bytes for stage in later)
    # A replay holds a state for every stage on the way, coarse replay one for every prefix.
    held = len(later)
    if estimator.name != REPLAY:
        prefixes = passes(masks)
        held = max((sum(i == stage.index for i, _ in prefixes) for stage in later), default=0)
    advice = "use --estimator task-vector, which takes no more than the model itself"
    memory.check(estimator.memory(later) + held * state, estimator.title, advice)


def _obtained(
    run: Run, estimator: Estimator, masks: Sequence[int], progress: ProgressCallback
) -> Iterator[CoalitionModel]:
    """The coalitions that are not refused beforehand."""
    if estimator.name == REPLAY:
        yield from _replayed(run, masks, progress)
    elif estimator.name == TaskVector.name:
        yield from (_by_task_vector(run, mask) for mask in masks)
    else:
        from .coalition_twins import by_twins

        read = [mask for mask in masks if not trained(mask, run.stages)]
        yield from _replayed(run, read, progress, estimator.name)
        left = [mask for mask in masks if mask not in read]
        yield from by_twins(run, estimator, left, progress)


def _replayed(
    run: Run, masks: Sequence[int], progress: ProgressCallback, estimator: str = REPLAY
) -> Iterator[CoalitionModel]:
    """Coalitions by replay, or those of another estimator for which nothing is trained."""
    stages, names = run.stages, parties_of(run)
    retrained = {s.index: s for mask in masks for s in trained(mask, stages)}
    steps = sum(stages[index].steps for index, _ in passes(masks))
    checking = sum(stage.steps for stage in retrained.values())
    overall = Progress(progress)
    share = checking / ((checking + steps) or 1)
    checks = {}
    done = 0
    for _, stage in sorted(retrained.items()):
        part = (share * done / checking, share * (done + stage.steps) / checking)
        checks[stage.name] = check_replay(run, stage, overall.part(*part, "Checking replay: "))
        done += stage.steps
    repeated: dict[int, Weights] = {}
    for leaf in replay_coalitions(run, masks, overall.part(share, 1.0), steps):
        name = name_of(names, leaf.mask)
        if leaf.weights is None:
            trust = _trust(name, estimator, "refused", leaf.refused)
            yield CoalitionModel(leaf.mask, leaf.mask, None, trust)
            continue
        again = trained(leaf.mask, stages)
        first = first_missing(leaf.mask)
        trust, repeats = trust_in_replay(name, again, stages[first + 1 :], checks)
        trust = trust.model_copy(update={"estimator": estimator, "seconds": leaf.seconds})
        if trust.trust == "exact" and not again:
            reason = _ALL if first == len(stages) else _READ
            trust = trust.model_copy(update={"reason": reason, "cost": 0.0})
        if repeats and first not in repeated:
            # Depth first: coalitions that lack the same first stage follow one another.
            repeated.clear()
            repeated[first] = replay_later(run, stages[first], stages[first].end()).state.model
        trust = _told_of_samples(trust, again)
        own = repeated[first] if repeats else None
        mask, weights, count = leaf.mask, leaf.weights, leaf.passes
        yield CoalitionModel(mask, mask, weights, trust, count, repeated=own)
        del leaf, weights  # before the next one is replayed


def _told_of_samples(trust: StageTrust, again: Sequence[Stage]) -> StageTrust:
    """The trust, which names the stages that were trained again on sampled answers."""
    names = tuple(s.name for s in again if s.facts.objective and s.facts.objective.on_samples)
    return trust.model_copy(update={"on_samples": names})


def _read_off(run: Run, mask: int) -> Weights:
    """The model of a coalition for which nothing is trained: recorded, and then boundary rules."""
    (leaf,) = replay_coalitions(run, [mask])
    if leaf.weights is None:
        raise Refused(leaf.refused)
    return leaf.weights


def without_changes(run: Run, mask: int) -> Weights:
    """A coalition by task vectors: base + the sum of its stages' changes, computed when read.

    Missing stages at the end are left off by the boundary rules alone. The changes of the others
    are subtracted one after the other, as far as later boundaries leave of them.
    """
    last = mask.bit_length() - 1
    tail = run.stages[last + 1 :]
    crossable = not any(s.appeared or s.facts.boundary.problem for s in tail)
    ends = (1 << (last + 1)) - 1 if crossable else (1 << len(run.stages)) - 1
    weights = _read_off(run, ends)
    # From the last on: without the last stage of all the start is exact, whatever it began as.
    for stage in reversed(run.stages):
        if ends >> stage.index & 1 and not mask >> stage.index & 1:
            weights = subtract_stage(weights, stage, run.stages[stage.index + 1 :])
    return weights


def _by_task_vector(run: Run, mask: int) -> CoalitionModel:
    name, stages = name_of(parties_of(run), mask), run.stages
    missing = [stage for stage in stages if not mask >> stage.index & 1]
    try:
        weights = without_changes(run, mask)
    except Refused as refusal_:
        trust = _trust(name, TaskVector.name, "refused", str(refusal_))
        return CoalitionModel(mask, mask, None, trust)
    kept = [
        f" What first appears in the checkpoint of {stage.name} ({appeared_there(stage)}) "
        "keeps what that stage made of it: no earlier value is known."
        for stage in missing
        if stage.appeared
    ]
    if not trained(mask, stages) and not kept:
        reason = _READ if missing else _ALL
        gap = max((s.facts.boundary.deviation for s in missing[1:]), default=0.0)
        word: Trust = "estimated" if gap else "exact"
        trust = _trust(name, TaskVector.name, word, reason)
        return CoalitionModel(mask, mask, weights, trust)
    reason = (
        "Task vectors: the changes of the stages that did not happen subtracted from the final "
        f"weights, whatever later stages did with them.{''.join(kept)}"
    )
    trust = _trust(name, TaskVector.name, "estimated", reason)
    again = trained(mask, stages)
    return CoalitionModel(mask, mask, weights, _told_of_samples(trust, again))


def _trust(stage: str, estimator: str, trust: Trust, reason: str) -> StageTrust:
    known = 0.0 if trust == "exact" else None
    return StageTrust(
        stage=stage,
        estimator=estimator,
        trust=trust,
        reason=reason,
        deviation=known,
        expected_error=known,
    )


def _checked(run: Run, model: CoalitionModel) -> CoalitionModel:
    """The model, refused where its weights are not finite."""
    if model.weights is None:
        return model
    names = [name for stage in run.stages for name in stage.facts.trainable or ()]
    models = [model.weights]
    if model.twins is not None:
        models += [model.twins.factual, model.twins.counterfactual]
    for weights in models:
        if (name := not_finite(weights, dict.fromkeys(names or weights))) is not None:
            reason = f"Weights of its model are NaN or infinite ({name})."
            trust = model.trust.model_copy(update={"trust": "refused", "reason": reason})
            return replace(model, weights=None, trust=trust, twins=None, repeated=None)
    return model
