"""Coalitions by coarse replay: twins carried for every coalition, beside one factual twin.

Stage by stage, all coalitions that agree on the stages before share a cheap replay, and the factual
twin serves all of them. They are carried side by side, as the factual twin is not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from stagelens.contracts import Progress, ProgressCallback, Refused
from stagelens.replaying.averaging import check_not_averaged
from stagelens.replaying.replay import cross_boundary
from stagelens.replaying.training_loss import Passed
from stagelens.runs.run import Run, Stage

from .coalition_plan import NO_EXACT_STAGES, first_missing, passes
from .coarse_replay import EXACT
from .coarse_twins import OpenStage, pass_stage, step_size
from .parties import name_of, parties_of
from .protocol import CoalitionModel, Estimator, Twins
from .stage_trust import StageTrust


def by_twins(
    run: Run, estimator: Estimator, masks: Sequence[int], progress: ProgressCallback
) -> Iterator[CoalitionModel]:
    """Coalitions of which at least one stage has to be trained.

    Args:
        run: The run.
        estimator: ``coarse-replay`` with its settings.
        masks: The coalitions.
        progress: Called for every step.

    Raises:
        Refused: The settings ask for stages to be replayed exactly.
    """
    if estimator.settings.get(EXACT):
        raise Refused(NO_EXACT_STAGES)
    budget = float(estimator.settings["budget"])
    stages = run.stages
    later = stages[min((first_missing(mask) for mask in masks), default=len(stages)) + 1 :]
    total, done, overall = sum(stage.steps for stage in later) or 1, 0, Progress(progress)
    open_ones: dict[int, OpenStage] = {}
    took: dict[tuple[int, int], float] = {}
    for stage in stages:
        # What is open is the coalition of the stages before; of the recorded one, nothing is.
        below = (1 << stage.index) - 1
        wanted = {mask & (below | 1 << stage.index) for mask in masks}
        began = dict(open_ones)
        open_ones = {}
        trained: dict[int, OpenStage] = {}
        for prefix in sorted(wanted):
            before = prefix & below
            if prefix == below | 1 << stage.index:
                continue
            if before == below:
                open_ones[prefix] = _begun(stages, stage)
            elif prefix >> stage.index & 1:
                open_ones[prefix] = one = _branched(began[before])
                if one.usable and (why := _averaged(stage)):
                    one.refused = why
                if one.usable:
                    one.replay_cost += stage.steps * step_size(stage)
                    trained[before] = one
            else:
                open_ones[prefix] = _without(began[before], stage)
        if trained:
            part = overall.part(done / total, min(1.0, (done + stage.steps) / total))
            pass_stage(run, stage, list(trained.values()), budget, part)
            took |= {(stage.index, before): one.seconds for before, one in trained.items()}
        done += stage.steps if stage in later else 0
    for mask in masks:
        # A pass counts for the first coalition that it was made for.
        new = [took.pop(each) for each in passes([mask]) if each in took]
        yield _model(run, estimator.name, mask, open_ones.pop(mask), new)


def _averaged(stage: Stage) -> str:
    try:
        check_not_averaged(stage, "Coarse replay")
    except Refused as refusal:
        return str(refusal)
    return ""


def _begun(stages: Sequence[Stage], stage: Stage) -> OpenStage:
    """The first stage of a coalition that did not happen."""
    start = stage.start()
    passed = Passed(stages[stage.index :]).enter(stage, start.model).leave(stage, start.model)
    return OpenStage(stage, start, stage.end(), passed=passed)


def _branched(one: OpenStage) -> OpenStage:
    """The same so far, for another way on from here."""
    return replace(one, travels=list(one.travels), passed=one.passed.branch(), seconds=0.0)


def _without(one: OpenStage, stage: Stage) -> OpenStage:
    """On to the end of a stage that did not happen, in no step; the twins too, if there are any."""
    other = _branched(one)
    if not other.usable:
        return other
    try:
        other.without = cross_boundary(other.without, stage)
        if other.twin is not None:
            other.factual = cross_boundary(other.factual, stage)
            other.twin = cross_boundary(other.twin, stage)
    except Refused as refusal:
        other.refused = str(refusal)
        return other
    other.passed.enter(stage, other.without.model).leave(stage, other.without.model)
    return other


def _model(
    run: Run, estimator: str, mask: int, one: OpenStage, seconds: Sequence[float]
) -> CoalitionModel:
    trust = StageTrust(
        stage=name_of(parties_of(run), mask),
        estimator=estimator,
        trust="refused" if one.refused else "estimated",
        reason=one.refused or "Coarse replay.",
        cost=one.spent / max(one.replay_cost, 1),
        seconds=sum(seconds),
    )
    if one.refused:
        return CoalitionModel(mask, mask, None, trust)
    # Integer buffers, such as counts of batches, have no difference to carry.
    weights = {
        name: one.without.model[name] if tensor.is_floating_point() else tensor
        for name, tensor in run.last.end().model.items()
    }
    twins = None
    if one.twin is not None:
        travels = tuple(one.travels)
        twins = Twins(one.factual.model, one.twin.model, one.sampling, travels)
    return CoalitionModel(mask, mask, weights, trust, len(seconds), twins)
