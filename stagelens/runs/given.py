"""Code of the user's that a run is opened with: no run folder keeps it, and results depend on it.

Results are keyed by its identity. Whoever opens the run without such code, as pages do, reads what
was stored by the code that was given last. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import FunctionType
from typing import Any

from pydantic import BaseModel, ConfigDict

from stagelens.contracts import Objective, RunError, StageLensError, Task
from stagelens.tasks import is_installed_class, objectives, why_missing

from .checked_files import CheckedFiles
from .code_identity import code_identity, is_own_code
from .files import read_json, read_only, write_json
from .objectives import missing_objective
from .schema import StageFile, TaskRef, digest
from .task_files import differing

_FILE = "results/given.json"
_TASK = "task"


class GivenFile(BaseModel):
    """``results/given.json``: code that the run was opened with.

    Attributes:
        codes: What it stood for to its identities, the newest last.
    """

    model_config = ConfigDict(frozen=True)

    codes: dict[str, list[str]] = {}


class GivenCode:
    """The code that a run was opened with.

    Args:
        files: Of the run.
        reference: Its task, as recorded.
        task: As the user gave it; None if it is found by its name.
        stages: Facts of its stages.
        given: Stage to objective, as the user gave it.

    Attributes:
        own: What code was given for to its identity; of nothing that the run would find itself.
    """

    def __init__(
        self,
        files: CheckedFiles,
        reference: TaskRef,
        task: Task | None,
        stages: Sequence[StageFile],
        given: Mapping[str, Any],
    ) -> None:
        self._files = files
        self._missing = {
            _of_stage(facts.name)
            for facts in stages
            if missing_objective(facts.name, facts.objective, given.get(facts.name))
        }
        found = not reference.own and why_missing(reference.name, reference.config) is None
        if task is None and not found:
            self._missing.add(_TASK)
        own = {_TASK: _task_identity(reference, task)} if task is not None else {}
        for facts in stages:
            if facts.objective is not None and facts.name in given:
                settings = facts.objective.settings
                identity = _objective_identity(given[facts.name], facts.objective.name, settings)
                own[_of_stage(facts.name)] = identity
        self.own = {name: identity for name, identity in own.items() if identity is not None}

    def identity(self) -> dict[str, str]:
        """What results are keyed by beside the recording; empty where nothing is given.

        For what is not given, but would have to be, the code that was given last.
        """
        known = self._stored() if self._missing else {}
        last = {name: codes[-1] for name, codes in known.items() if name in self._missing and codes}
        return {**last, **self.own}

    def remember(self) -> None:
        """Have whoever opens the run without this code read what is stored by it."""
        self._store({name: True for name in self.own})

    def forget(self) -> None:
        """It turned out to be other code than the run was recorded with."""
        self._store({name: False for name in self.own})

    def _stored(self) -> dict[str, list[str]]:
        try:
            return read_json(self._files.inside(_FILE), GivenFile).codes
        except RunError:  # missing or damaged
            return {}

    def _store(self, wanted: Mapping[str, bool]) -> None:
        before = self._stored()
        after = dict(before)
        for name, last in wanted.items():
            others = [each for each in before.get(name, []) if each != self.own[name]]
            after[name] = [*others, self.own[name]] if last else others
        if after != before and not read_only():
            with suppress(OSError, RunError):  # a folder that may only be read
                write_json(self._files.inside(_FILE), GivenFile(codes=after))


def _of_stage(name: str) -> str:
    return f"objective of {name}"


def _task_identity(reference: TaskRef, task: Task) -> str | None:
    """None of a task as the run would make it itself."""
    parts: dict[str, Any] = _own_values(task)
    if not is_installed_class(type(task), reference.name):
        parts["class"] = code_identity(type(task))
    try:
        if differing(reference, task):
            parts["config"] = [task.config, {n: digest(d.hex()) for n, d in task.assets.items()}]
    except StageLensError:  # it does not say
        parts["object"] = code_identity(task)
    return digest(parts)[:32] if parts else None


def _objective_identity(given: Any, name: str, settings: Mapping[str, Any]) -> str | None:
    """None of an objective as the run would make it itself."""
    kind = given if isinstance(given, type) else type(given)
    if not issubclass(kind, Objective):
        return code_identity(given)
    parts: dict[str, Any] = {} if given is kind else _own_values(given)
    if not objectives.is_installed_class(kind, name):
        parts["class"] = code_identity(kind)
    if given is not kind and given.settings != settings:
        parts["settings"] = given.settings
    return digest(parts)[:32] if parts else None


def _own_values(thing: Any) -> dict[str, Any]:
    """Identities of what an object was given: functions, and objects and classes of the user's."""
    return {
        name: code_identity(value)
        for name, value in getattr(thing, "__dict__", {}).items()
        if callable(value) and (is_own_code(value) or _is_given_function(value))
    }


def _is_given_function(value: Any) -> bool:
    """Whether it is a function of another package, such as one that makes a model."""
    inner = value.func if isinstance(value, partial) else value
    return isinstance(inner, FunctionType) and not inner.__module__.startswith("stagelens.")
