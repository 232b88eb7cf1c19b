"""Counterfactuals by an estimator, cached by digest; the last stage is free."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import BaseModel

from stagelens.compute import devices, memory, processes
from stagelens.contracts import ProgressCallback, Refused, RunError, no_progress
from stagelens.runs.files import read_json, write_json
from stagelens.runs.run import Run, Stage
from stagelens.runs.saved_states import load_model, save_model
from stagelens.runs.schema import FileRef, HeldBefore, StateRef
from stagelens.runs.states import Weights, not_finite

from .counterfactual_cache import cache_name, limit, make_room, note_use, share
from .protocol import Counterfactual, Estimator, PartialReplay, Twins
from .registry import make_estimator
from .replay_check import check_given
from .sharing_out import share_out
from .stage_trust import StageTrust
from .subtraction import keeps, without_stage
from .travel import Travel


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
            found[stage.name] = _finite(stage, without) if look else without
        elif changed_nothing(run, stage):
            trust = exact_trust(stage, estimator.name, "The stage changed nothing.")
            found[stage.name] = Counterfactual(stage.name, run.last.end().model, trust)
        elif (cached := _load(run, stage, estimator)) is not None and estimator.accepts(
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
            found |= {s.name: there for s in missing if (there := _load(run, s, estimator))}
            # What was refused, or failed in a helper, is told by the work here.
            missing = [stage for stage in missing if stage.name not in found]
        for computed in _computed(run, estimator, missing, progress) if missing else ():
            stage = run.stage(computed.stage)
            as_it_is = not look and computed.derived_from
            found[stage.name] = computed if as_it_is else _kept(run, stage, estimator, computed)
    yield from (_told_of_samples(run, found[stage.name]) for stage in stages)


def _told_of_samples(run: Run, found: Counterfactual) -> Counterfactual:
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

        def keep(stage: Stage = stage, computed: Counterfactual = computed) -> None:
            _kept(run, stage, estimator, computed)

        processes.by_main(keep)
        found[stage.name] = _finite(stage, computed)
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
            _kept(run, run.stage(computed.stage), estimator, computed)
            for computed in (_computed(run, estimator, mine, progress) if mine else ())
        ]
        progress(1.0, "waiting for the other processes")
        return [each.trust for each in kept if each.weights is None]

    refused = {trust.stage: trust for own in processes.together(work) for trust in own}
    found = {name: Counterfactual(name, None, trust) for name, trust in refused.items()}
    for stage in stages:
        if stage.name not in found:
            cached = _load(run, stage, estimator)
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
        _kept(run, stage, estimator, computed)


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


def diverged(stage: Stage, weights: Weights) -> str | None:
    """A parameter of a stage's model that is NaN or infinite in the given weights, or None."""
    # An assembled stage does not know what it trained: all of its weights are looked at.
    return not_finite(weights, stage.facts.trainable or weights)


def _finite(stage: Stage, found: Counterfactual) -> Counterfactual:
    """The counterfactual, refused where its weights are not finite."""
    if found.weights is None:
        return found
    models: list[Weights] = [found.weights]
    if found.derived_from:  # reading the weights themselves would compute every one of them
        models = list(found.derived_from)
    elif found.twins is not None:
        models += [found.twins.factual, found.twins.counterfactual]
        if (part := found.twins.partial) is not None:
            models += [part.exact, part.cheap]
    for model in models:
        name = diverged(stage, model)
        if name is not None:
            reason = f"Weights of the model without it are NaN or infinite ({name})."
            return _refused(stage, found.trust.estimator, reason)
    return found


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
            yield _refused(stages[0], estimator.name, str(refusal))
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


def _refused(stage: Stage, estimator: str, reason: str) -> Counterfactual:
    trust = StageTrust(stage=stage.name, estimator=estimator, trust="refused", reason=reason)
    return Counterfactual(stage.name, None, trust)


class Cached(BaseModel):
    """What is stored beside cached weights.

    Attributes:
        trust: What is known of the counterfactual.
        files: ``weights``; ``factual`` and ``counterfactual`` where there are twins; ``exact`` and
            ``cheap`` where there is a partial replay; ``repeated`` where a replay is not bit for
            bit.
        sampling: See :class:`~stagelens.estimators.protocol.Twins`.
        travels: The same.
        partial: Stage and error of a :class:`~stagelens.estimators.protocol.PartialReplay`.
        before: What each file leaves to those of the run, as it is the same there.
    """

    trust: StageTrust
    files: dict[str, FileRef]
    sampling: float = 0.0
    travels: tuple[Travel, ...] = ()
    partial: tuple[str, float] | None = None
    before: dict[str, list[HeldBefore]] = {}

    def state(self, name: str) -> StateRef:
        """Where one of the models is read."""
        return StateRef(model=self.files[name], before=self.before.get(name, []))


def _cache(run: Run, stage: Stage, estimator: Estimator) -> str:
    return cache_name(run, stage, estimator.name, estimator.settings)


def _kept(run: Run, stage: Stage, estimator: Estimator, computed: Counterfactual) -> Counterfactual:
    """Write a counterfactual to the cache and return it memory-mapped, which frees its memory.

    It is refused instead where it is not finite.

    Weights that are derived from recorded states are not written: they are derived again.
    """
    computed = _finite(stage, computed)
    if computed.weights is None or computed.derived_from:
        return computed
    prefix = _cache(run, stage, estimator)
    run.files.inside(prefix)  # refuses a link that leads out of the run folder
    models = {"weights": computed.weights}
    known: dict[str, Any] = {}
    if (twins := computed.twins) is not None:
        models |= {"factual": twins.factual, "counterfactual": twins.counterfactual}
        known = {"sampling": twins.sampling, "travels": twins.travels}
        if (part := twins.partial) is not None:
            models |= {"exact": part.exact, "cheap": part.cheap}
            known["partial"] = (part.stage, part.error)
    if computed.repeated is not None:
        models["repeated"] = computed.repeated
    # What a frozen base holds is not written again for every counterfactual.
    written = {
        name: save_model(run.path, f"{prefix}.{name}.safetensors", tensors, run.last.facts.end)
        for name, tensors in models.items()
    }
    # Last: only what has its description counts as cached, so a killed process leaves no half.
    cached = Cached(
        trust=computed.trust,
        files={name: file for name, (file, _) in written.items()},
        before={name: before for name, (_, before) in written.items() if before},
        **known,
    )
    write_json(run.path / f"{prefix}.json", cached)
    share(run, cached.files.values())
    make_room(run, prefix)
    return _counterfactual(stage, cached, _models(run, cached))


def _models(run: Run, cached: Cached) -> dict[str, Weights]:
    return {name: load_model(run.files, cached.state(name)) for name in cached.files}


def _counterfactual(stage: Stage, cached: Cached, models: Mapping[str, Weights]) -> Counterfactual:
    twins = None
    if "factual" in models:
        part = None
        if cached.partial is not None:
            name, error = cached.partial
            part = PartialReplay(name, models["exact"], models["cheap"], error)
        factual, twin = models["factual"], models["counterfactual"]
        twins = Twins(factual, twin, cached.sampling, cached.travels, part)
    return Counterfactual(
        stage.name, models["weights"], cached.trust, twins, models.get("repeated")
    )


def find_cached(run: Run, stage: Stage, estimator: Estimator) -> Cached | None:
    """The cache entry of a stage, without reading its weights; None where there is none."""
    path = run.files.inside(f"{_cache(run, stage, estimator)}.json")
    try:
        return read_json(path, Cached)
    except RunError:  # missing or damaged: computed again
        return None


def _load(run: Run, stage: Stage, estimator: Estimator) -> Counterfactual | None:
    """From the cache; None where it is missing or damaged, and is then computed again."""
    limit()  # a wrong amount is told before anything is computed
    cached = find_cached(run, stage, estimator)
    if cached is None:
        return None
    note_use(run, _cache(run, stage, estimator))
    try:
        return _counterfactual(stage, cached, _models(run, cached))
    except (RunError, KeyError):
        return None
