"""Optimisers by registered name: built-in ones, those that packages register, and the user's own.

A run folder holds a name, never code. The name leads to a class through the table of built-in
rules, :func:`register_optimizer`, or the entry-point group ``stagelens.optimizers`` of an installed
package. Packages are imported when an optimiser of theirs is used, not before.
"""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from .errors import Refused, StageLensError
from .importing import imported
from .optimizers import SUPPORTED_OPTIMIZERS, OptimizerRule

_own: dict[str, tuple[type | None, OptimizerRule]] = {}
"""Name to the class and the rule that were registered in this process."""

GIVEN = "STAGELENS_OPTIMIZERS"
"""What the user gave for this process and those that it starts, as ``name=package.module:Class``,
separated by commas."""

_INSTALL = {"lion_pytorch": "lion-pytorch"}
"""Package to the name that it is installed by, where that is another."""


def register_optimizer(name: str, target: type | str, **rule: Any) -> None:
    """Make an optimiser of your own known, for recording and for replay.

    Register it before the stage is recorded, and again, under the same name, before the run is
    replayed (on the command line: ``--optimizer name=package.module:Class``). A package does it for
    its users with an entry point ``name = "package.module:Class"`` in the group
    ``stagelens.optimizers``.

    Args:
        name: Is written into the run.
        target: The class, or ``package.module:Class``.
        rule: Fields of :class:`~stagelens.contracts.OptimizerRule`, where the class keeps more than
            its parameter groups and per-parameter state.

    Raises:
        StageLensError: The name is a built-in one, or the target cannot be imported.

    Example:
        >>> register_optimizer("own-sgd", "torch.optim:SGD")
        >>> optimizer_class("own-sgd").__name__
        'SGD'
    """
    if name in SUPPORTED_OPTIMIZERS:
        raise StageLensError(f"{name} is a built-in optimiser; register yours by another name")
    where = target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
    found = _load(where) if isinstance(target, str) else target
    _own[name] = (found, OptimizerRule(where, **rule))


def optimizer_rule(name: str) -> OptimizerRule | None:
    """The rule of a registered name; None if nothing here has it."""
    if name in SUPPORTED_OPTIMIZERS:
        return SUPPORTED_OPTIMIZERS[name]
    _take_given()
    if name in _own:
        return _own[name][1]
    entries = [entry for entry in _entries() if entry.name == name]
    return OptimizerRule(entries[0].value) if entries else None


def optimizer_name(optimizer: object) -> str | None:
    """The registered name of an optimiser's class; None if it is not registered.

    Only the class itself counts: a subclass may update otherwise.
    """
    kind = type(optimizer)
    _take_given()
    for name, (own, _) in _own.items():
        if kind is own:
            return name
    package = kind.__module__.partition(".")[0]
    for name, rule in SUPPORTED_OPTIMIZERS.items():
        # By name first: only the package that the class comes from is looked into.
        if rule.package == package and _is(kind, rule.target):
            return name
    # An installed package may name a class of another one.
    return next((entry.name for entry in _entries() if _is(kind, entry.value)), None)


def _is(kind: type, target: str) -> bool:
    return target.partition(":")[2] == kind.__name__ and _load(target) is kind


def optimizer_class(name: str) -> type:
    """The class of a registered name.

    Raises:
        Refused: It is not registered here, or its package is not installed.
    """
    if (why := why_absent(name)) is not None:
        raise Refused(why)
    if name in _own:
        return _own[name][0] or _load(_own[name][1].target)
    rule = optimizer_rule(name)
    assert rule is not None  # why_absent looked
    return _load(rule.target)


def why_absent(name: str) -> str | None:
    """Why an optimiser cannot be made here, and what to do; None if it can. Imports nothing."""
    rule = optimizer_rule(name)
    if rule is None:
        return (
            f"{_unregistered(name)}; install the package that registers it, "
            "or give it: stagelens.register_optimizer(name, Class) or "
            f"--optimizer {name}=package.module:Class"
        )
    if name not in _own and find_spec(rule.package) is None:
        package = _INSTALL.get(rule.package, rule.package)
        return (
            f"{_lacking(name)} {rule.package}, which is not installed here: pip install {package}"
        )
    return None


def told_absent(name: str, reason: str) -> bool:
    """Whether a text says, as :func:`why_absent` does, that an optimiser is not here."""
    return _unregistered(name) in reason or _lacking(name) in reason


def _unregistered(name: str) -> str:
    return f"the optimiser {name} is not registered here"


def _lacking(name: str) -> str:
    return f"the optimiser {name} needs the package"


def _take_given() -> None:
    for one in filter(None, os.environ.get(GIVEN, "").split(",")):
        name, _, target = one.partition("=")
        if not target:
            raise StageLensError(f"--optimizer {one}: give it as NAME=package.module:Class")
        if name not in _own:
            found = _load(target)
            # Its module may have registered it, with what else it says about the class.
            if name not in _own:
                register_optimizer(name, found)


def _entries() -> list[EntryPoint]:
    return list(entry_points(group="stagelens.optimizers"))


def _load(target: str) -> type:
    found = imported(
        target,
        lambda why: StageLensError(
            f"optimiser {target!r} cannot be imported ({why}); give it as package.module:Class, "
            "with its package on the Python path"
        ),
    )
    if not isinstance(found, type):
        raise StageLensError(f"{target!r} is not a class")
    return found
