"""What a Trainer minimises, read off the Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stagelens.contracts import Objective, RecordingError, ReferenceModel
from stagelens.runs.objective_facts import MODEL
from stagelens.tasks.objectives import BUILT_IN, installed_objectives

from .stage_objective import resolved
from .stage_settings import GivenObjective


@dataclass(frozen=True)
class TrainerObjective:
    """What a Trainer minimises.

    Attributes:
        objective: None for the model's own loss.
        references: Its reference models, by name.
        problem: Why replay could not compute it; None if it can, as far as is known.
    """

    objective: Objective | None = None
    references: Mapping[str, ReferenceModel] = field(default_factory=dict)
    problem: RecordingError | None = None


def objective_of(trainer: Any, given: GivenObjective) -> TrainerObjective:
    """What a Trainer minimises.

    Args:
        trainer: A ``transformers.Trainer``; None where it was not found.
        given: The objective that the user named; None to read it off the Trainer.
    """
    try:
        found = _found(trainer, given)
    except RecordingError as error:
        return TrainerObjective(problem=error)
    if found is None or found.name == MODEL:
        return TrainerObjective()
    if trainer is None:
        return TrainerObjective(
            problem=RecordingError(
                f"the Trainer was not found that trains on the objective {found.name!r}, so its "
                "losses cannot be seen; give the callback to a transformers.Trainer, and call its "
                "train()"
            )
        )
    return TrainerObjective(found, found.reference_models(trainer))


def _found(trainer: Any, given: GivenObjective) -> Objective | None:
    if given is not None and not isinstance(given, str):
        return resolved(given)
    if trainer is not None:
        # Those of other packages first: they know their own Trainers best.
        for kind in sorted(installed_objectives(), key=lambda kind: kind.name in BUILT_IN):
            if given in (None, kind.name) and (own := kind.of_trainer(trainer)) is not None:
                return own
    return None if given is None else resolved(given)
