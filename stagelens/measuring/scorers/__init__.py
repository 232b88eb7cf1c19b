"""Scorers, found by their registered name. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

from stagelens.contracts import TaskError, imported
from stagelens.contracts.scorer import Scorer

GROUP = "stagelens.scorers"
"""Entry points of scorers of one's own: a :class:`Scorer`, or a function of settings that returns
one."""

_RULES = "stagelens.measuring.scorers.rules"

BUILT_IN: Mapping[str, str] = {
    "exact": f"{_RULES}:exact",
    "contains": f"{_RULES}:contains",
    "regex": f"{_RULES}:regex",
    "numeric": f"{_RULES}:numeric",
    "refusal": f"{_RULES}:refusal",
    "classifier": "stagelens.measuring.scorers.classifier:classifier",
}
"""The scorers that come with StageLens; what scores choices by likelihood is no scorer of answers,
see :mod:`stagelens.measuring.choices`."""

_FOR_ALL = {"as": "label", "reference": "reference"}
"""Settings that every scorer takes, to what they set."""


def names() -> list[str]:
    """The registered names, the built-in ones first."""
    own = sorted({entry.name for entry in entry_points(group=GROUP)} - BUILT_IN.keys())
    return [*BUILT_IN, *own]


def find_scorer(name: str, settings: Mapping[str, Any] | None = None) -> Scorer:
    """The scorer of a registered name.

    Args:
        name: As registered; only installed packages can register one.
        settings: Keyword arguments of the function that makes it; None for its defaults. Any
            scorer takes two more: ``as``, what tables call it, and ``reference``, the column of
            the set that answers are held against.

    Raises:
        TaskError: There is none of this name, it does not take the settings, or it is no scorer.
    """
    known = {entry.name: entry.value for entry in entry_points(group=GROUP)} | dict(BUILT_IN)
    if name not in known:
        raise TaskError(
            f"there is no scorer {name!r}; choose one of {', '.join(names())}, or install the "
            f"package that registers it (entry-point group {GROUP})"
        )
    settings = dict(settings or {})
    shown = {field: settings.pop(key) for key, field in _FOR_ALL.items() if key in settings}
    for key, field in _FOR_ALL.items():
        if not isinstance(shown.get(field, "-"), str) or not shown.get(field, "-"):
            raise TaskError(f"scorer {name!r}: {key!r} is {shown[field]!r}; give a name")
    found = imported(
        known[name],
        lambda why: TaskError(
            f"scorer {name!r} cannot be imported ({why}); repair the package that registers it"
        ),
    )
    if not isinstance(found, Scorer) and callable(found):
        try:
            found = found(**settings)
        except TypeError as error:
            raise TaskError(f"scorer {name!r} does not take these settings ({error})") from None
    elif settings:
        raise TaskError(f"scorer {name!r} takes no settings; leave {', '.join(settings)} out")
    if not isinstance(found, Scorer):
        raise TaskError(
            f"{known[name]} is not a stagelens.Scorer; register one, or a function that returns one"
        )
    if found.name != name:
        raise TaskError(f"scorer {name!r} calls itself {found.name!r}; give both the same name")
    return replace(found, **shown) if shown else found
