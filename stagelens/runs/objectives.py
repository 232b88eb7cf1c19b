"""A stage's objective, found by name or as the user gives it again. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagelens.contracts import Objective, Refused, RunError, TaskError

from .objective_facts import ObjectiveFacts
from .schema import StageFile


def find_stage_objective(stage: str, facts: ObjectiveFacts | None, given: Any) -> Objective:
    """What a stage minimised.

    Args:
        stage: Its name.
        facts: As recorded; None for the model's own loss.
        given: As the user gave it again; None to find it by its name.

    Raises:
        Refused: It is not installed, or has to be given again; says how.
    """
    from stagelens.tasks.objectives import find_objective, given_objective

    if why := missing_objective(stage, facts, given):
        raise Refused(f"{why}. Stored results can be read without it")
    facts = facts or ObjectiveFacts()
    try:
        if given is not None:
            return given_objective(given, facts.name, facts.settings)
        return find_objective(facts.name, facts.settings)
    except TaskError as error:
        why = f"stage {stage!r} cannot be replayed with its objective: {error}"
        remedy = f"give it: {how_to_give(stage)}. Stored results can be read without it"
        raise Refused(f"{why}; {remedy}") from None


def missing_objective(stage: str, facts: ObjectiveFacts | None, given: Any) -> str:
    """Why a stage's loss cannot be computed here, and what would help; imports no objective.

    Args:
        stage: Its name.
        facts: As :func:`find_stage_objective`.
        given: The same.

    Returns:
        Words without a full stop; empty if nothing is known to be missing.
    """
    from stagelens.tasks.objectives import is_installed

    if facts is None or given is not None:
        return ""
    if facts.own:
        why = f"was trained on a loss of your own, {facts.title}, which is code that no run keeps"
    elif not is_installed(facts.name):
        why = f"was trained on the objective {facts.name!r}, which is not installed here"
    else:
        return ""
    return f"stage {stage!r} {why}; give it: {how_to_give(stage)}"


def told_missing(stage: str, reason: str) -> bool:
    """Whether a refusal says, as :func:`missing_objective` does, that its objective is missing."""
    return f"give it: {how_to_give(stage)}" in reason


def how_to_give(stage: str) -> str:
    """How a stage's objective is given again, in Python and on the command line."""
    return (
        f"open_run(path, objectives={{{stage!r}: function}}) or "
        f"--objective {stage}=package.module:function"
    )


def check_given(run: str, given: Mapping[str, Any], stages: Sequence[StageFile]) -> None:
    """Refuse objectives that are given for a stage which does not exist, or takes none.

    Args:
        run: Name of the run.
        given: Stage to objective, as the user gave it.
        stages: Facts of the run's stages.

    Raises:
        RunError: One is; lists the stages.
    """
    known = {facts.name: facts.objective for facts in stages}
    for name in given:
        if name not in known:
            listed = ", ".join(map(repr, known)) or "none"
            raise RunError(
                f"run {run!r} has no stage {name!r} to give an objective for; it has {listed}"
            )
        if known[name] is None:
            raise RunError(
                f"stage {name!r} of run {run!r} was trained on the model's own loss; give no "
                "objective for it"
            )
