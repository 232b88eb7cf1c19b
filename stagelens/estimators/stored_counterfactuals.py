"""Counterfactuals on disk, one description and its models each; refused where they diverged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from stagelens.contracts import RunError
from stagelens.runs.files import read_json, write_json
from stagelens.runs.run import Run, Stage
from stagelens.runs.saved_states import load_model, save_model
from stagelens.runs.schema import FileRef, HeldBefore, StateRef
from stagelens.runs.states import Weights, not_finite

from .counterfactual_cache import cache_name, limit, make_room, note_use, share
from .protocol import Counterfactual, Estimator, PartialReplay, Twins
from .stage_trust import StageTrust
from .travel import Travel


def diverged(stage: Stage, weights: Weights) -> str | None:
    """A parameter of a stage's model that is NaN or infinite in the given weights, or None."""
    # An assembled stage does not know what it trained: all of its weights are looked at.
    return not_finite(weights, stage.facts.trainable or weights)


def finite(stage: Stage, found: Counterfactual) -> Counterfactual:
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
            return refused(stage, found.trust.estimator, reason)
    return found


def refused(stage: Stage, estimator: str, reason: str) -> Counterfactual:
    """No model, and why."""
    trust = StageTrust(stage=stage.name, estimator=estimator, trust="refused", reason=reason)
    return Counterfactual(stage.name, None, trust)


class Cached(BaseModel):
    """What is stored beside cached weights.

    Attributes:
        trust: What is known of the counterfactual.
        files: ``weights``; ``factual`` and ``counterfactual`` where there are twins; ``exact`` and
            ``cheap`` where there is a partial replay; ``repeated`` where a replay is not bit for
            bit; ``corrected`` where what first order neglects is known.
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


def keep(run: Run, stage: Stage, estimator: Estimator, computed: Counterfactual) -> Counterfactual:
    """Write a counterfactual to the cache and return it memory-mapped, which frees its memory.

    It is refused instead where it is not finite.

    Weights that are derived from recorded states are not written: they are derived again.
    """
    computed = finite(stage, computed)
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
    if computed.corrected is not None:
        models["corrected"] = computed.corrected
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
        *(stage.name, models["weights"], cached.trust, twins, models.get("repeated")),
        corrected=models.get("corrected"),
    )


def find_cached(run: Run, stage: Stage, estimator: Estimator) -> Cached | None:
    """The cache entry of a stage, without reading its weights; None where there is none."""
    path = run.files.inside(f"{_cache(run, stage, estimator)}.json")
    try:
        return read_json(path, Cached)
    except RunError:  # missing or damaged: computed again
        return None


def load(run: Run, stage: Stage, estimator: Estimator) -> Counterfactual | None:
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
