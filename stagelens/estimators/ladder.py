"""Counterfactuals by name of the estimator, cached by digest; the last stage comes for free."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from ..contracts import Refused, RunError
from ..results import StageTrust
from ..runs.files import sha256_of, write_json
from ..runs.run import Run, Stage
from ..runs.schema import digest
from ..runs.states import load_tensors, save_tensors
from ..training.replay import Progress, no_progress
from .protocol import Counterfactual, Estimator
from .replay import Replay
from .task_vector import TaskVector

ESTIMATORS: Mapping[str, type[Estimator]] = {
    TaskVector.name: TaskVector,
    Replay.name: Replay,
}
"""Estimators by name, cheapest first."""


def make_estimator(name: str) -> Estimator:
    """An estimator by name.

    Raises:
        Refused: There is none of that name; lists those that exist.
    """
    if name not in ESTIMATORS:
        raise Refused(f"there is no estimator {name!r}; use one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]()


def default_estimator(run: Run) -> str:
    """``replay`` where the steps that it needs are recorded, else ``task-vector``."""
    replayable = all(stage.replayable for stage in run.stages[1:])
    return Replay.name if replayable else TaskVector.name


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
    missing = [stage for stage in stages if stage.name not in found]
    if missing:
        try:
            for computed in estimator.counterfactuals(run, missing, progress):
                _save(run, run.stage(computed.stage), estimator, computed)
                found[computed.stage] = computed
        except Refused as refusal:
            for stage in missing:
                found.setdefault(stage.name, _refused(stage, estimator.name, str(refusal)))
    yield from (found[stage.name] for stage in stages)


def _without_last(stage: Stage, estimator: str) -> Counterfactual:
    began = time.perf_counter()
    weights = stage.start().model
    trust = StageTrust(
        stage=stage.name,
        estimator=estimator,
        trust="exact",
        reason="Exact: the last stage's start is the model without it.",
        deviation=0.0,
        expected_error=0.0,
        seconds=time.perf_counter() - began,
    )
    return Counterfactual(stage.name, weights, trust)


def _refused(stage: Stage, estimator: str, reason: str) -> Counterfactual:
    trust = StageTrust(stage=stage.name, estimator=estimator, trust="refused", reason=reason)
    return Counterfactual(stage.name, None, trust)


class _CachedTrust(StageTrust):
    sha256: str


def _paths(run: Run, stage: Stage, estimator: Estimator) -> tuple[Path, str]:
    key = digest(run.digest, stage.name, estimator.name, dict(estimator.settings))[:32]
    return run.path / "results" / "counterfactuals" / f"{key}.json", key


def _save(run: Run, stage: Stage, estimator: Estimator, computed: Counterfactual) -> None:
    if computed.weights is None or computed.twins is not None:
        return
    path, key = _paths(run, stage, estimator)
    relative = f"results/counterfactuals/{key}.safetensors"
    reference = save_tensors(run.path, relative, computed.weights)
    write_json(path, _CachedTrust(**computed.trust.model_dump(), sha256=reference.sha256))


def _load(run: Run, stage: Stage, estimator: Estimator) -> Counterfactual | None:
    """From the cache; None where it is not there or was damaged, and is then computed anew."""
    path, key = _paths(run, stage, estimator)
    weights = path.with_name(f"{key}.safetensors")
    try:
        cached = _CachedTrust.model_validate_json(path.read_bytes())
        if sha256_of(weights) != cached.sha256:
            return None
        tensors = load_tensors(weights)
    except (OSError, ValidationError, RunError):
        return None
    trust = StageTrust(**cached.model_dump(exclude={"sha256"}))
    return Counterfactual(stage.name, tensors, trust)
