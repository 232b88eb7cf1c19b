"""The available estimators. A new one is a file of its own and a line here.

Nothing here imports torch: pages and the command line list the estimators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from stagelens.contracts import Refused
from stagelens.runs.run import Run

from .coarse_replay import EXACT, CoarseReplay
from .durations import STARTING, Pace, replay_seconds
from .protocol import METHOD, Estimator
from .replay import Replay
from .stage_trust import REPLAY
from .task_vector import TaskVector
from .unrolled import UnrolledJump, UnrolledScale

_REGISTERED: dict[str, type[Estimator]] = {}


def register(estimator: type[Estimator]) -> None:
    """Add an estimator; everything that lists, times or verifies estimators then knows it.

    Raises:
        ValueError: Another one has its name.
    """
    if _REGISTERED.setdefault(estimator.name, estimator) is not estimator:
        raise ValueError(f"there is an estimator {estimator.name!r} already")


for _estimator in (TaskVector, UnrolledJump, UnrolledScale, CoarseReplay, Replay):
    register(_estimator)


def estimators() -> dict[str, type[Estimator]]:
    """All estimators by name, the one with the best numbers first."""
    ranked = sorted(_REGISTERED.values(), key=lambda each: -each.preference)
    return {each.name: each for each in ranked}


def find(name: str) -> type[Estimator]:
    """An estimator's class by its name.

    Raises:
        Refused: There is none of that name; lists the existing ones.
    """
    if name not in _REGISTERED:
        known = ", ".join(reversed(estimators()))
        raise Refused(f"there is no estimator {name!r}; use one of {known}")
    return _REGISTERED[name]


def method_of(estimator: str) -> int:
    """Part of the key of everything that is stored of an estimator; its name may be empty."""
    kind = _REGISTERED.get(estimator)
    return METHOD + (kind.revision if kind is not None else 0)


def make_estimator(name: str, settings: Mapping[str, Any] | None = None) -> Estimator:
    """An estimator by name.

    Args:
        name: One of :func:`estimators`.
        settings: Its own arguments, for instance ``{"budget": 0.25}``; None for the defaults.

    Raises:
        Refused: There is none of that name (lists the existing ones), or it does not take a
            setting.
    """
    kind = find(name)
    try:
        return kind(**(settings or {}))
    except TypeError:  # the constructor's arguments are the settings that it takes
        given = ", ".join(settings or {})
        raise Refused(f"{name} does not take the setting {given}; omit it") from None


def default_estimator(run: Run) -> str:
    """The best estimator that may be chosen by default and that the recording allows."""
    return next(n for n, kind in estimators().items() if kind.automatic and kind.possible(run))


def replay_if_possible(run: Run) -> str:
    """Replay where the recording allows it, whatever that takes; else the default estimator."""
    return REPLAY if find(REPLAY).possible(run) else default_estimator(run)


def free_estimator() -> type[Estimator]:
    """The best estimator whose numbers cost nothing."""
    return next(kind for kind in estimators().values() if kind.free)


def verifiable() -> list[str]:
    """Names of estimators to compare with replay: proposed ones first, each cheapest first."""
    others = [kind for kind in estimators().values() if kind.name != REPLAY]
    others.sort(key=lambda kind: (not kind.proposed, kind.preference))
    return [kind.name for kind in others]


def proposed() -> list[str]:
    """Names of the estimators that a verification includes by default."""
    return [name for name in verifiable() if find(name).proposed]


def help_text() -> str:
    """All names with their notes, cheapest first, for help texts."""
    kinds = reversed(estimators().values())
    return ", ".join(f"{k.name} ({k.note})" if k.note else k.name for k in kinds)


def budget_text(budget: float) -> str:
    """A budget as a fraction where it is a simple one: ``1/4``."""
    near = Fraction(budget).limit_denominator(64)
    return f"{near}" if abs(float(near) - budget) < 1e-9 else f"{budget:g}"


def estimate_name(estimator: str, settings: Mapping[str, Any]) -> str:
    """The name of an estimator with its settings.

    For instance ``coarse-replay 1/4``, ``coarse-replay 1/4 after 1 exact stage`` or ``replay``.
    """
    words = [estimator]
    for key, value in sorted(settings.items()):
        if key == "budget":
            words.append(budget_text(value))
        elif key == EXACT:
            words.append(f"after {value} exact stage{'s' if value > 1 else ''}")
        else:
            words.append(f"{key}={value}")
    return " ".join(words)


def options(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """What gives these settings on the command line: ``("--budget", "0.25")``."""
    words: list[str] = []
    for key in ("budget", EXACT):
        if settings.get(key) is not None:
            words += [f"--{key.replace('_', '-')}", f"{settings[key]:g}"]
    return tuple(words)


def estimate_seconds(
    stages: Sequence[Pace], estimator: str, settings: Mapping[str, Any]
) -> float | None:
    """Expected seconds of an estimator for the counterfactuals of all stages.

    For replay without its check; see :func:`~stagelens.estimators.durations.replay_seconds`. None
    where nothing says how long a stage takes.

    Args:
        stages: What each stage of the run takes, in training order.
        estimator: Its name.
        settings: Its settings.
    """
    return find(estimator).seconds(stages, settings)


def saves_time(stages: Sequence[Pace], estimator: str, settings: Mapping[str, Any]) -> bool:
    """Whether an estimate should take less than half of the time that replay takes."""
    # Both start a process, so a saving that its start eats up does not count.
    replay, own = replay_seconds(stages), estimate_seconds(stages, estimator, settings)
    return replay is None or own is None or STARTING + own < 0.5 * (STARTING + replay)
