"""What a stage that is being recorded minimises, and the models that its loss refers to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from stagelens.contracts import Objective, RecordingError, ReferenceModel, TaskError
from stagelens.replaying.embedding_noise import noise_of
from stagelens.replaying.training_loss import Source, TrainingLoss
from stagelens.runs.objective_facts import MODEL, ObjectiveFacts, ReferenceFacts
from stagelens.runs.run import Stage
from stagelens.runs.saved_states import save_state
from stagelens.runs.schema import StateRef
from stagelens.runs.states import (
    TrainingState,
    Weights,
    capture,
    model_tensors,
    same_tensor,
)
from stagelens.tasks.objectives import find_objective
from stagelens.tasks.objectives.own import OwnLoss

from .run_writer import RunWriter
from .stage_settings import GivenObjective, StageSettings
from .stage_start import StageStart

_ATTENTION = "attention"
"""In a ``build_config`` of models of transformers."""


def resolved(given: GivenObjective) -> Objective:
    """The objective that is meant.

    Raises:
        RecordingError: It is not installed, or is none.
    """
    if given is None:
        return find_objective(MODEL, {})
    if isinstance(given, Objective):
        return given
    if isinstance(given, str):
        try:
            return find_objective(given, {})
        except TaskError as error:
            raise RecordingError(
                f"objective={given!r}: {error}; pass its registered name, an Objective, or a "
                "function loss(model, batch)"
            ) from None
    if isinstance(given, type) or not callable(given):
        raise RecordingError(
            f"objective={given!r} is no objective; pass its registered name, an Objective, or a "
            "function loss(model, batch)"
        )
    return OwnLoss.of(given)


@dataclass(frozen=True)
class StageObjective:
    """A stage's objective as it is written, and as its steps are checked with.

    Attributes:
        facts: What stage.json says of it.
        loss: On the model that steps are checked with; None where it cannot be computed.
    """

    facts: dict[str, Any]
    loss: TrainingLoss | None


def read_objective(
    run: RunWriter,
    folder: str,
    model: nn.Module,
    start: StageStart,
    settings: StageSettings,
    tell: Callable[[Exception], None],
) -> StageObjective:
    """Find out what a stage minimises, and write the models it refers to that the run lacks.

    Args:
        run: Its run.
        folder: Its folder in the run's.
        model: Is trained.
        start: The stage's start; its built model is the one that steps are checked with.
        settings: As declared.
        tell: Called where replay could not compute the loss: objective and reference models do not
            fit each other, or the model.
    """
    try:
        return _read(run, folder, model, start, settings)
    except Exception as error:
        tell(error)
        return StageObjective({}, None)


def _read(
    run: RunWriter,
    folder: str,
    model: nn.Module,
    start: StageStart,
    settings: StageSettings,
) -> StageObjective:
    objective, references = resolved(settings.objective), settings.references
    if unknown := [name for name in references if name not in objective.references]:
        takes = ", ".join(objective.references) or "none"
        raise RecordingError(
            f"objective {objective.name!r} takes no reference model {unknown[0]!r} (it takes: "
            f"{takes}); leave it out"
        )
    own = {id(parameter) for parameter in model.parameters()}
    found: dict[str, ReferenceFacts] = {}
    states: dict[str, StateRef] = {}
    kept: dict[str, Weights] = {}
    for name in objective.references:
        one = references.get(name, ReferenceModel())
        one = one if isinstance(one, ReferenceModel) else ReferenceModel(one)
        if one.model is not None and any(id(p) in own for p in one.model.parameters()):
            raise RecordingError(
                f"the reference model {name!r} shares parameters with the model that is trained, "
                "and would move with it; pass a copy, or ReferenceModel(adapter_off=True) for the "
                "model with its adapter off"
            )
        found[name] = _found(run, start, one)
        if found[name].kind == "kept" and one.model is not None:
            kept[name] = model_tensors(one.model)
            state = TrainingState(capture(one.model, None, {}).model)
            states[name] = save_state(run.path, f"{folder}/{name}", state)

    def source(name: str, facts: ReferenceFacts) -> Source:
        if facts.kind == "kept":
            return Source(kept[name], facts.build_config)
        stage = run.before
        while stage is not None and stage.name != facts.stage:
            stage = stage.previous
        if stage is None:
            weights, config = start.state.model, start.build_config
        else:
            state = stage.end() if facts.kind == "end" else stage.start()
            weights, config = state.model, stage.facts.build_config
        return Source(weights, config if facts.build_config is None else facts.build_config)

    recorded = ObjectiveFacts(
        name=objective.name,
        settings=objective.settings,
        references=found,
        on_samples=objective.on_samples,
        # accelerate keeps a model's own forward there when it puts autocast into the model.
        autocast="passes" if hasattr(model, "_original_forward") else "loss",
    )
    facts = None if objective.name == MODEL else recorded
    loss = TrainingLoss(run.task, objective, facts, start.built, source)
    said = {
        "objective": facts,
        "reference_states": states,
        "embedding_noise": noise_of(model),
        "kernels": list(settings.kernels),
    }
    return StageObjective(said, loss)


def _found(run: RunWriter, start: StageStart, given: ReferenceModel) -> ReferenceFacts:
    """The state of the run that a reference model holds."""
    if given.adapter_off:
        return ReferenceFacts(kind="adapter off")
    found = ReferenceFacts(sync_every=given.sync_every, sync_mixing=given.sync_mixing)
    if given.model is None:
        return found
    config = run.task.stage_config(given.model)
    if _holds(given.model, start.state.model):
        return found.model_copy(
            update={"build_config": _built_otherwise(config, start.build_config)}
        )
    stage: Stage | None = run.before
    while stage is not None:
        own = {"build_config": _built_otherwise(config, stage.facts.build_config)}
        if _holds(given.model, stage.end().model):
            return found.model_copy(update={"kind": "end", "stage": stage.name, **own})
        if _holds(given.model, stage.start().model):
            return found.model_copy(update={"stage": stage.name, **own})
        stage = stage.previous
    return found.model_copy(update={"kind": "kept", "build_config": config})


def _built_otherwise(
    own: Mapping[str, Any] | None, stage: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """How a model with a stage's weights is built, where its attention is not the stage's."""
    own, stage = own or {}, stage or {}
    if own.get(_ATTENTION) == stage.get(_ATTENTION):
        return None
    rest = {key: value for key, value in stage.items() if key != _ATTENTION}
    return rest | ({_ATTENTION: own[_ATTENTION]} if _ATTENTION in own else {})


def _holds(model: nn.Module, weights: Weights) -> bool:
    """Whether a model has exactly these parameters and buffers."""
    own = model_tensors(model)
    return own.keys() == weights.keys() and all(
        same_tensor(tensor.cpu(), weights[name]) for name, tensor in own.items()
    )
