"""Counterfactuals by an estimator, cached by digest; the last stage is free."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from stagelens.compute import devices, memory, processes
from stagelens.contracts import ProgressCallback, Refused, RunError, no_progress
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import StateRef

from .protocol import Counterfactual, Estimator
from .registry import make_estimator
from .replay_check import check_given
from .sharing_out import share_out
from .stage_trust import StageTrust
from .stored_counterfactuals import diverged, finite, keep, load, refused
from .subtraction import keeps, without_stage


def counterfactuals(
    run: Run,
    estimator: Estimator,
    stages: Sequence[Stage],
    progress: ProgressCallback = no_progress,
    *,
    look: bool = True,
) -> Iterator[Counterfactual]:
    """The model without each of ``stages``, in their order; from the cache where possible.

    Without the last stage the model is the stage's own start state, and without a stage that
    changed nothing it is the final model: exact and free, whatever the estimator. A stage that the
    estimator refuses, or whose result is not finite, gives a counterfactual without weights.

    Args:
        run: The run.
        estimator: Computes what is not in the cache.
        stages: Finished stages of the run.
        progress: Called for that work.
        look: Whether to look for weights that are not finite in models that are not computed, but
            read off the recording: all of these are read for it. False for a caller that reads
            them all itself, and asks again if it comes upon one.

    Raises:
        Refused: Training diverged, so there is no meaningful final model.
    """
    if look:
        check_final(run)
    found: dict[str, Counterfactual] = {}
    for stage in stages:
        if stage.index == len(run.stages) - 1:
            without = _without_last(run, stage, estimator.name)
            found[stage.name] = finite(stage, without) if look else without
        elif changed_nothing(run, stage):
            trust = exact_trust(stage, estimator.name, "The stage changed nothing.")
            found[stage.name] = Counterfactual(stage.name, run.last.end().model, trust)
        elif (cached := load(run, stage, estimator)) is not None and estimator.accepts(
            cached.trust
        ):
            found[stage.name] = cached
    # The main process decides: on a shared file system the others may see a cached file later.
    names = processes.by_main(lambda: [s.name for s in stages if s.name not in found])
    missing = [run.stage(name) for name in names]
    if missing:
        _check_memory(run, estimator, missing)
        if not estimator.free:
            check_given(run)
    if missing and estimator.in_step:
        found |= _in_step(run, estimator, missing, progress)
    elif missing and processes.count() > 1 and not estimator.free:
        found |= _shared_out(run, estimator, missing, progress)
    elif missing:
        if share_out(run, estimator, missing, partial(do, run), progress):
            found |= {s.name: there for s in missing if (there := load(run, s, estimator))}
            # What was refused, or failed in a helper, is told by the work here.
            missing = [stage for stage in missing if stage.name not in found]
        for computed in _computed(run, estimator, missing, progress) if missing else ():
            stage = run.stage(computed.stage)
            as_it_is = not look and computed.derived_from
            found[stage.name] = computed if as_it_is else keep(run, stage, estimator, computed)
    yield from (told_of_samples(run, found[stage.name]) for stage in stages)


def told_of_samples(run: Run, found: Counterfactual) -> Counterfactual:
    """The counterfactual, whose trust names later stages that were trained on sampled answers."""
    later = run.stages[run.stage(found.stage).index + 1 :]
    names = tuple(s.name for s in later if s.facts.objective and s.facts.objective.on_samples)
    if not names:
        return found
    return replace(found, trust=found.trust.model_copy(update={"on_samples": names}))


def _check_memory(run: Run, estimator: Estimator, stages: Sequence[Stage]) -> None:
    """Refuse, before any work, what cannot fit into memory.

    Raises:
        StageLensError: It cannot; says how much it takes and what to do.
    """
    if devices.computing().type == "cpu":
        later = run.stages[min(stage.index for stage in stages) + 1 :]
        advice = "use --estimator task-vector, which takes no more than the model itself"
        memory.check(estimator.memory(later), estimator.title, advice)


def _in_step(
    run: Run, estimator: Estimator, stages: Sequence[Stage], progress: ProgressCallback
) -> dict[str, Counterfactual]:
    """Every counterfactual by all processes together; the main one writes it to the cache.

    A failure in one process ends it, and with it the others, which wait for its gradients.
    """
    found = {}
    for computed in _computed(run, estimator, stages, progress):
        stage = run.stage(computed.stage)

        def kept(stage: Stage = stage, computed: Counterfactual = computed) -> None:
            keep(run, stage, estimator, computed)

        processes.by_main(kept)
        found[stage.name] = finite(stage, computed)
    return found


def _shared_out(
    run: Run, estimator: Estimator, stages: Sequence[Stage], progress: ProgressCallback
) -> dict[str, Counterfactual]:
    """Whole counterfactuals, each computed by one process and read by all from the cache."""
    estimator.prepare(run, stages, progress)

    def work() -> list[StageTrust]:
        """Returns the trust of refused stages, which leave nothing in the cache."""
        mine = processes.share_of_work(stages, run.steps_after)
        kept = [
            keep(run, run.stage(computed.stage), estimator, computed)
            for computed in (_computed(run, estimator, mine, progress) if mine else ())
        ]
        progress(1.0, "waiting for the other processes")
        return [each.trust for each in kept if each.weights is None]

    refused = {trust.stage: trust for own in processes.together(work) for trust in own}
    found = {name: Counterfactual(name, None, trust) for name, trust in refused.items()}
    for stage in stages:
        if stage.name not in found:
            cached = load(run, stage, estimator)
            if cached is None:
                raise RunError(
                    f"the model without {stage.name!r} was computed by another process but cannot "
                    f"be seen in {run.path}; start the command again"
                )
            found[stage.name] = cached
    return found


def do(run: Run, message: Mapping[str, Any], progress: ProgressCallback) -> None:
    """One piece of work that processes share, as :mod:`.sharing_out` describes it.

    Its result is stored with the run; a refused counterfactual leaves nothing.
    """
    estimator = make_estimator(message["estimator"], message["settings"])
    if "check" in message:
        estimator.prepare_stage(run, run.stage(message["check"]), progress)
        return
    stage = run.stage(message["stage"])
    for computed in _computed(run, estimator, [stage], progress):
        keep(run, stage, estimator, computed)


def check_final(run: Run) -> None:
    """Refuse a run whose training ended with weights that are not finite.

    Raises:
        Refused: It did; names the stage in which training diverged, and says what to do.
    """
    name = diverged(run.last, run.last.end().model)
    if name is None:
        return
    # Back to the last end that is finite: training diverged in the stage after it.
    first = run.last
    for stage in reversed(run.stages[:-1]):
        if diverged(stage, stage.end().model) is None:
            break
        first = stage
    raise Refused(
        f"training diverged in stage {first.name!r}: weights of the final model are NaN or "
        f"infinite ({name}), so its answers are meaningless, and no stage has an effect on them; "
        "train with a lower learning rate, or with clipping, and record the run again"
    )


def changed_nothing(run: Run, stage: Stage) -> bool:
    """Whether a stage ended as it began and left no optimiser state for the next one."""
    start, end = stage.facts.start, stage.facts.end
    following = run.stages[stage.index + 1].facts.boundary
    if end is None or stage.appeared or following.optimizer != "new":
        return False
    return _content(start) == _content(end)  # by digest: no weights are read


def _content(state: StateRef) -> tuple[object, ...]:
    """What distinguishes the parameters and buffers of one state from those of another."""
    fixed = state.fixed.sha256 if state.fixed is not None else None
    return [file.sha256 for file in state.shards], fixed, state.names


def _computed(
    run: Run, estimator: Estimator, stages: Sequence[Stage], progress: ProgressCallback
) -> Iterator[Counterfactual]:
    """All stages together, so that they share work; each by itself where one is refused."""
    given: set[str] = set()
    try:
        for computed in estimator.counterfactuals(run, stages, progress):
            given.add(computed.stage)
            yield computed
    except Refused as refusal:
        if len(stages) == 1:
            yield refused(stages[0], estimator.name, str(refusal))
            return
        # One stage that cannot be given refuses the whole call; the others may still be possible.
        for stage in stages:
            if stage.name not in given:
                yield from _computed(run, estimator, [stage], progress)


def _without_last(run: Run, stage: Stage, estimator: str) -> Counterfactual:
    began = time.perf_counter()
    if stage.appeared:
        reason = f"The last stage's start is the model without it. {keeps(stage)}."
        trust = StageTrust(stage=stage.name, estimator=estimator, trust="estimated", reason=reason)
        weights, sources = without_stage(run, stage)
        return Counterfactual(stage.name, weights, trust, derived_from=sources)
    start = stage.start().model
    seconds = time.perf_counter() - began
    trust = exact_trust(stage, estimator).model_copy(update={"seconds": seconds})
    return Counterfactual(stage.name, start, trust)


def exact_trust(
    stage: Stage,
    estimator: str,
    reason: str = "The last stage's start is the model without it.",
) -> StageTrust:
    """Trust in a counterfactual read off the recording, by default the last stage's."""
    return StageTrust(
        stage=stage.name,
        estimator=estimator,
        trust="exact",
        reason=reason,
        deviation=0.0,
        expected_error=0.0,
    )
