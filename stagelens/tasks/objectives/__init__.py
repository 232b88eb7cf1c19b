"""What stages minimise. Objectives are found by their registered name, as tasks are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from stagelens.contracts import Objective, TaskError, imported

__all__ = [
    "BUILT_IN",
    "find_objective",
    "given_objective",
    "installed_objectives",
    "is_installed",
    "is_installed_class",
    "load_objective",
    "load_objective_class",
]

# As text, so that listing the objectives imports no torch.
BUILT_IN: Mapping[str, str] = {
    "model": "stagelens.tasks.objectives.model:ModelLoss",
    "sft": "stagelens.tasks.objectives.trl.sft:SFT",
    "dpo": "stagelens.tasks.objectives.trl.dpo:DPO",
    "kto": "stagelens.tasks.objectives.trl.kto:KTO",
    "orpo": "stagelens.tasks.objectives.trl.orpo:ORPO",
    "reward": "stagelens.tasks.objectives.trl.reward:Reward",
    "grpo": "stagelens.tasks.objectives.trl.grpo:GRPO",
    "cross-entropy": "stagelens.tasks.objectives.cross_entropy:CrossEntropy",
    "plain-dpo": "stagelens.tasks.objectives.plain_dpo:PlainDPO",
    "own": "stagelens.tasks.objectives.own:OwnLoss",
}
"""The objectives that come with StageLens, by their registered names; those of particular Trainers
before those that any Trainer can have."""


def _imported(target: str) -> Any:
    return imported(
        target,
        lambda why: TaskError(
            f"objective {target!r} cannot be imported ({why}); give it as "
            "package.module:function, with its package on the Python path"
        ),
    )


def load_objective_class(target: str) -> type[Objective]:
    """The objective class at ``package.module:Class``.

    Raises:
        TaskError: It cannot be imported, or is no objective.
    """
    found = _imported(target)
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise TaskError(
            f"{target!r} is not a stagelens.Objective; derive the class from stagelens.Objective"
        )
    return found


def installed_objectives() -> Iterator[type[Objective]]:
    """The classes of all registered objectives, the built-in ones first."""
    targets = [*BUILT_IN.values()]
    targets += [entry.value for entry in _registered() if entry.name not in BUILT_IN]
    yield from map(load_objective_class, dict.fromkeys(targets))


def is_installed(name: str) -> bool:
    """Whether an objective has this registered name; imports none."""
    return name in BUILT_IN or any(entry.name == name for entry in _registered())


def is_installed_class(kind: type, name: str) -> bool:
    """Whether a class is what :func:`find_objective` makes objectives of a name from."""
    target = _target(name)
    with suppress(TaskError):  # what is registered need not be there
        return target is not None and load_objective_class(target) is kind
    return False


def find_objective(name: str, settings: Mapping[str, Any]) -> Objective:
    """Make the installed objective of a registered name.

    Args:
        name: As registered.
        settings: As recorded.

    Raises:
        TaskError: No installed objective has this name, or it does not accept the settings.
    """
    target = _target(name)
    if target is None:
        raise TaskError(f"objective {name!r} is not installed")
    try:
        return load_objective_class(target)(**settings)
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"objective {name!r} does not accept the settings {dict(settings)} ({error})"
        ) from None


def load_objective(target: str) -> Objective | type[Objective] | Callable[..., Any]:
    """What a user names as ``package.module:function``: a function, an objective, or its class.

    Raises:
        TaskError: It cannot be imported, or is none of these.
    """
    found = _imported(target)
    if not callable(found) and not isinstance(found, Objective):
        raise TaskError(f"{target!r} is neither a function nor a stagelens.Objective")
    return found


def given_objective(given: Any, name: str, settings: Mapping[str, Any]) -> Objective:
    """The objective of a stage that was recorded with ``name`` and ``settings``, as given again.

    Args:
        given: An objective, its class, or a function.
        name: As recorded.
        settings: As recorded.

    Raises:
        TaskError: It is another objective than the recorded one.
    """
    if isinstance(given, type) and issubclass(given, Objective):
        try:
            given = given(**settings)
        except (TypeError, ValueError) as error:
            raise TaskError(
                f"{given.__name__} does not accept {dict(settings)} ({error})"
            ) from None
    if callable(given) and not isinstance(given, Objective):
        if name != "own":
            raise TaskError(f"it was recorded with the objective {name!r}, not with a function")
        from .own import OwnLoss

        return OwnLoss(**settings, compute=given)
    if not isinstance(given, Objective):
        raise TaskError(f"{given!r} is neither a function nor a stagelens.Objective")
    if given.name != name:
        raise TaskError(f"it was recorded with the objective {name!r}, not with {given.name!r}")
    return given


def _target(name: str) -> str | None:
    return BUILT_IN.get(name) or next((e.value for e in _registered() if e.name == name), None)


def _registered() -> list[EntryPoint]:
    return list(entry_points(group="stagelens.objectives"))
