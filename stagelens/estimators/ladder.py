"""Counterfactuals by name of the estimator, cached by digest; the last stage comes for free."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from .. import processes
from ..contracts import Refused, RunError
from ..results import METHOD, StageTrust
from ..runs.files import write_json
from ..runs.run import Run, Stage
from ..runs.schema import FileRef, digest
from ..runs.states import save_tensors
from ..runs.streaming import map_tensors
from ..training.replay import Progress, no_progress
from .coarse_replay import CoarseReplay
from .protocol import Counterfactual, Estimator, Twins, Weights
from .replay import Replay, check_together
from .task_vector import TaskVector, WithoutStage, keeps, subtract_stage
from .unrolled import UnrolledJump, UnrolledScale

ESTIMATORS: Mapping[str, Callable[..., Estimator]] = {
    TaskVector.name: TaskVector,
    UnrolledJump.name: UnrolledJump,
    UnrolledScale.name: UnrolledScale,
    CoarseReplay.name: CoarseReplay,
    Replay.name: Replay,
}
"""Estimators by name, cheapest first."""


def make_estimator(name: str, settings: Mapping[str, Any] | None = None) -> Estimator:
    """An estimator by name.

    Args:
        name: One of :data:`ESTIMATORS`.
        settings: Its own arguments, for instance ``{"budget": 0.25}``; None for the defaults.

    Raises:
        Refused: There is none of that name (lists those that exist), or it does not take a
            setting.
    """
    if name not in ESTIMATORS:
        raise Refused(f"there is no estimator {name!r}; use one of {', '.join(ESTIMATORS)}")
    try:
        return ESTIMATORS[name](**(settings or {}))
    except TypeError:
        given = ", ".join(settings or {})
        raise Refused(f"{name} does not take the setting {given}; leave it away") from None


def default_estimator(run: Run) -> str:
    """``coarse-replay`` where batches of all later stages were kept, else ``task-vector``."""
    later = all(s.steps > 0 and s.facts.keep_batches != "none" for s in run.stages[1:])
    recorded = any(s.facts.origin == "recorded" for s in run.stages)
    return CoarseReplay.name if later and recorded else TaskVector.name


def counterfactuals(
    run: Run,
    estimator: Estimator,
    stages: Sequence[Stage],
    progress: Progress = no_progress,
) -> Iterator[Counterfactual]:
    """The model without each of ``stages``, in their order; from the cache where it is there.

    Without the last stage the model is the stage's own start state: exact and free, whatever the
    estimator. What an estimator refuses comes as a counterfactual without weights.

    Args:
        run: The run.
        estimator: Computes what is not in the cache.
        stages: Finished stages of the run.
        progress: Told of the work that is not in the cache.
    """
    found: dict[str, Counterfactual] = {}
    for stage in stages:
        if stage.index == len(run.stages) - 1:
            found[stage.name] = _without_last(stage, estimator.name)
        elif (cached := _load(run, stage, estimator)) is not None:
            found[stage.name] = cached
    names = processes.by_main(lambda: [s.name for s in stages if s.name not in found])
    missing = [run.stage(name) for name in names]
    if missing and processes.count() > 1 and not isinstance(estimator, TaskVector):
        found |= _shared_out(run, estimator, missing, progress)
    elif missing:
        for computed in _computed(run, estimator, missing, progress):
            found[computed.stage] = _kept(run, run.stage(computed.stage), estimator, computed)
    yield from (found[stage.name] for stage in stages)


def _shared_out(
    run: Run, estimator: Estimator, stages: Sequence[Stage], progress: Progress
) -> dict[str, Counterfactual]:
    """Whole counterfactuals, each computed by one process and read by all from the cache."""
    if isinstance(estimator, Replay):
        check_together(run, stages, progress)

    def work() -> list[StageTrust]:
        """Of the stages that are refused: these have nothing in the cache."""
        mine = processes.own(stages, run.steps_after)
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
                    f"the model without {stage.name!r} was computed by another process and is not "
                    f"seen in {run.path}; start the command again"
                )
            found[stage.name] = cached
    return found


def _computed(
    run: Run, estimator: Estimator, stages: Sequence[Stage], progress: Progress
) -> Iterator[Counterfactual]:
    """All stages together, so that they share work; each alone where one of them is refused."""
    given: set[str] = set()
    try:
        for computed in estimator.counterfactuals(run, stages, progress):
            given.add(computed.stage)
            yield computed
    except Refused as refusal:
        if len(stages) == 1:
            yield _refused(stages[0], estimator.name, str(refusal))
            return
        for stage in stages:
            if stage.name not in given:
                yield from _computed(run, estimator, [stage], progress)


def _without_last(stage: Stage, estimator: str) -> Counterfactual:
    began = time.perf_counter()
    if stage.appeared:
        reason = f"The last stage's start is the model without it. {keeps(stage)}."
        trust = StageTrust(stage=stage.name, estimator=estimator, trust="estimated", reason=reason)
        return Counterfactual(stage.name, subtract_stage(stage.end().model, stage, []), trust)
    weights = stage.start().model
    seconds = time.perf_counter() - began
    trust = exact_trust(stage, estimator).model_copy(update={"seconds": seconds})
    return Counterfactual(stage.name, weights, trust)


def exact_trust(last: Stage, estimator: str) -> StageTrust:
    """What is known of the counterfactual without the last stage, whatever the estimator."""
    return StageTrust(
        stage=last.name,
        estimator=estimator,
        trust="exact",
        reason="The last stage's start is the model without it.",
        deviation=0.0,
        expected_error=0.0,
    )


def _refused(stage: Stage, estimator: str, reason: str) -> Counterfactual:
    trust = StageTrust(stage=stage.name, estimator=estimator, trust="refused", reason=reason)
    return Counterfactual(stage.name, None, trust)


class Cached(BaseModel):
    """What stands beside cached weights.

    Attributes:
        trust: What is known of the counterfactual.
        files: ``weights``; ``factual`` and ``counterfactual`` where there are twins; ``repeated``
            where a replay is not bit for bit.
        sampling: See :class:`~stagelens.estimators.protocol.Twins`.
    """

    trust: StageTrust
    files: dict[str, FileRef]
    sampling: float = 0.0


def _cache(run: Run, stage: Stage, estimator: Estimator) -> str:
    key = digest(METHOD, run.digest, stage.name, estimator.name, dict(estimator.settings))[:32]
    return f"results/counterfactuals/{key}"


def _kept(run: Run, stage: Stage, estimator: Estimator, computed: Counterfactual) -> Counterfactual:
    """Write a counterfactual to the cache; returns it memory-mapped, so that memory is free again.

    A task vector is not written: its weights are read from the states again when they are used.
    """
    if computed.weights is None or isinstance(computed.weights, WithoutStage):
        return computed
    prefix = _cache(run, stage, estimator)
    run.files.inside(prefix)
    models = {"weights": computed.weights}
    sampling = computed.twins.sampling if computed.twins is not None else 0.0
    if computed.twins is not None:
        models |= {
            "factual": computed.twins.factual,
            "counterfactual": computed.twins.counterfactual,
        }
    if computed.repeated is not None:
        models["repeated"] = computed.repeated
    files = {
        name: save_tensors(run.path, f"{prefix}.{name}.safetensors", tensors)
        for name, tensors in models.items()
    }
    write_json(
        run.path / f"{prefix}.json", Cached(trust=computed.trust, files=files, sampling=sampling)
    )
    mapped = {name: map_tensors(run.path / file.path) for name, file in files.items()}
    return _counterfactual(stage, computed.trust, mapped, sampling)


def _counterfactual(
    stage: Stage, trust: StageTrust, models: Mapping[str, Weights], sampling: float
) -> Counterfactual:
    twins = None
    if "factual" in models:
        twins = Twins(models["factual"], models["counterfactual"], sampling)
    return Counterfactual(stage.name, models["weights"], trust, twins, models.get("repeated"))


def find_cached(run: Run, stage: Stage, estimator: Estimator) -> Cached | None:
    """What the cache holds for a stage, with the weights unread; None where it holds nothing."""
    path = run.files.inside(f"{_cache(run, stage, estimator)}.json")
    try:
        return Cached.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _load(run: Run, stage: Stage, estimator: Estimator) -> Counterfactual | None:
    """From the cache; None where it is not there or was damaged, and is then computed anew."""
    cached = find_cached(run, stage, estimator)
    if cached is None:
        return None
    try:
        models = {n: map_tensors(run.files.path(file)) for n, file in cached.files.items()}
        return _counterfactual(stage, cached.trust, models, cached.sampling)
    except (RunError, KeyError):
        return None
