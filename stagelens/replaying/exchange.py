"""One run's stage replayed inside another run, in place of the stage that it has there."""

from __future__ import annotations

from collections.abc import Sequence

from stagelens.contracts import Progress, ProgressCallback, Refused, no_progress
from stagelens.runs.boundaries import check_crossable
from stagelens.runs.run import Run, Stage
from stagelens.runs.states import TrainingState

from .replay import Replayed, check_replayable, cross_boundary, replay_stage
from .training_loss import Passed


def check_exchangeable(run: Run, stage: Stage, other: Stage) -> list[Stage]:
    """Refuse before any work an exchange that cannot be replayed.

    Args:
        run: Inside which another stage is replayed.
        stage: The run's own, in whose place.
        other: The other run's.

    Returns:
        The stages whose steps are replayed, in order.

    Raises:
        Refused: Says what is in the way.
    """
    if other.facts.build_config != stage.facts.build_config:
        raise Refused(f"stage {stage.name!r} has another architecture in the other run")
    later = run.stages[stage.index + 1 :]
    trained = [*([other] if stage.index or _carries(later) else []), *later]
    check_replayable(trained)
    for each in [*([other] if stage.index else []), *later]:
        check_crossable(each.name, each.facts.boundary)
    if stage.index and (missing := _not_carried(run, stage, other)):
        raise Refused(
            f"stage {other.name!r} of the other run carries an optimiser's state on "
            f"({', '.join(missing[:3])}), which this run does not have at the end of "
            f"{run.stages[stage.index - 1].name!r}"
        )
    return trained


def _carries(later: Sequence[Stage]) -> bool:
    """Whether the first of these stages needs the optimiser's state of the one before."""
    return bool(later) and bool(later[0].facts.boundary.carried)


def _not_carried(run: Run, stage: Stage, other: Stage) -> list[str]:
    """Parameters whose optimiser state the other stage carries on, and the run does not have."""
    boundary = other.facts.boundary
    if not boundary.carried:
        return []
    there = run.stages[stage.index - 1].end().optimizer
    wanted = other.start().optimizer
    return [n for n in boundary.carried if n in wanted and boundary.source(n) not in there]


def replay_exchanged(
    run: Run,
    stage: Stage,
    other_run: Run,
    other: Stage,
    progress: ProgressCallback = no_progress,
) -> Replayed:
    """The end of a run in which another run's recorded stage stands in place of its own.

    The other stage begins where the run's own began, after its own boundary rule: new or carried
    optimiser, what appears at its start at the values that the other run recorded. Its recorded
    steps follow, then the run's own later stages. The first stage is not replayed: it ended where
    the other run recorded it, so what that began with is exchanged with it.

    Args:
        run: The run.
        stage: One of its stages.
        other_run: The other run.
        other: Its stage.
        progress: Called for every step.

    Raises:
        Refused: See :func:`check_exchangeable`; or what is at the boundary does not fit.
    """
    trained = check_exchangeable(run, stage, other)
    total, done, examples = sum(each.steps for each in trained) or 1, 0, 0
    overall, passed = Progress(progress), Passed([other, *run.stages[stage.index + 1 :]])
    state: TrainingState
    if stage.index:
        for each in run.stages[: stage.index] if other.facts.objective is not None else ():
            passed.enter(each, each.start().model).leave(each, each.end().model)
        state = run.stages[stage.index - 1].end()
    else:
        state = other.start() if other in trained else other.end()
    for each in trained:
        if each.index or each is not other:
            try:
                state = cross_boundary(state, each)
            except (KeyError, RuntimeError) as error:  # other names, or other shapes
                raise Refused(
                    f"stage {each.name!r} cannot go on from the model before it: {error}"
                ) from None
        part = overall.part(done / total, (done + each.steps) / total)
        task = other_run.task if each is other else run.task
        replayed = replay_stage(task, each, state, part, passed=passed)
        state, examples = replayed.state, examples + replayed.example_gradients
        passed.leave(each, state.model)
        done += each.steps
    return Replayed(state, examples)
