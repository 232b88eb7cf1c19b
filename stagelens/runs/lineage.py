"""How the stages of a run come one from another: a line, branches, merges.

A run has one base. Every stage starts from the end of one earlier stage, or from the base; a merge
is a stage with several parents that was not trained. A leaf is a stage that none starts from, so
each is one model, and its *path* is that model's history: the stages from the base to it, in
training order.

Through a merge no line leads back to one parent. There, the path goes on from the last stage that
all parents have in their history: all that happened between it and the merge is one stage, that of
merging.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from stagelens.contracts import BASE, RunError

from .schema import RunFile, StageRef

T = TypeVar("T")

NEWEST = "@newest"
"""In place of a leaf's name, the one that was recorded last; no stage can be called that."""


class Lineage:
    """The stages of a run, and what each started from.

    Args:
        path: The run folder, for messages.
        file: Its run.json.

    Raises:
        RunError: A parent is not an earlier stage of the run, or is not finished.
    """

    def __init__(self, path: Path, file: RunFile) -> None:
        self._path, self._name = path, file.name
        self._stages: dict[str, StageRef] = {}
        self._parents: dict[str, tuple[str, ...]] = {}
        self._before: dict[str, str] = {}
        finished = BASE
        for one in file.stages:
            if one.name in self._stages:  # a history would lead in circles
                raise RunError(
                    f"{path / 'run.json'}: stages: two are called {one.name!r}; restore the "
                    "original file"
                )
            named = one.parents or [finished]
            for parent in named:
                earlier = self._stages.get(parent)
                if parent != BASE and (earlier is None or earlier.sha256 is None):
                    raise RunError(
                        f"{path / 'run.json'}: stage {one.name!r} starts from {parent!r}, which is "
                        "no finished stage before it; restore the original file"
                    )
            self._stages[one.name], self._parents[one.name] = one, tuple(named)
            # Of a merge, the last stage that all of its parents have in their history.
            shared = common([self.history(each) for each in named]) if len(named) > 1 else named
            self._before[one.name] = shared[-1] if shared else BASE
            if one.sha256 is not None:
                finished = one.name

    def __contains__(self, name: object) -> bool:
        return name in self._stages

    @property
    def stages(self) -> list[str]:
        """Names of all stages, in the order in which they were recorded."""
        return list(self._stages)

    @property
    def finished(self) -> list[str]:
        """Names of the finished stages, in that order."""
        return [one.name for one in self._stages.values() if one.sha256 is not None]

    @property
    def leaves(self) -> list[str]:
        """The finished stages that no finished one starts from, in the order of recording."""
        sealed = self.finished
        inner = {parent for name in sealed for parent in self._parents[name]}
        return [name for name in sealed if name not in inner]

    @property
    def ends(self) -> list[str]:
        """The leaves and the parents of merges: models that somebody may want to look at."""
        sealed = self.finished
        merged = {p for name in sealed if len(ps := self._parents[name]) > 1 for p in ps}
        return [name for name in sealed if name in {*self.leaves, *merged}]

    def parents(self, name: str) -> tuple[str, ...]:
        """What a stage started from: one, or several of a merge; the base is ``base``."""
        return self._parents[name]

    def history(self, name: str) -> list[str]:
        """Names of the stages from the base to this one, which is the last; none of the base."""
        found = []
        while name != BASE:
            found.append(name)
            name = self._before[name]
        return found[::-1]

    def before(self, name: str) -> str:
        """The stage before one in its history, or the base."""
        return self._before[name]

    def ancestors(self, name: str) -> list[str]:
        """All stages that a stage came from, also through merges, in the order of recording."""
        found = {name} if name != BASE else set()
        for each in reversed(self.stages):
            if each in found:
                found |= {parent for parent in self._parents[each] if parent != BASE}
        return [each for each in self.stages if each in found and each != name]

    def path(self, leaf: str | None) -> list[StageRef]:
        """The stages of a leaf's history, with those that are not finished.

        Args:
            leaf: Any stage, :data:`NEWEST`, or None where there is only one leaf.

        Raises:
            RunError: There is none of that name, or there are several; lists those that exist.
        """
        leaves = self.leaves
        if leaf is None and len(leaves) > 1:
            raise RunError(
                f"run {self._name!r} has several leaves: {_listed(leaves)}; say whose history is "
                f"meant with --leaf NAME (in Python: open_run(path, leaf={leaves[-1]!r}))"
            )
        if leaf in (None, NEWEST):
            leaf = leaves[-1] if leaves else None
        elif leaf not in self._stages or self._stages[leaf].sha256 is None:
            known = self.finished
            raise RunError(
                f"run {self._name!r} has no finished stage {leaf!r} that could be a leaf; it has "
                f"{_listed(known) or 'none'} (leaves: {_listed(leaves) or 'none'})"
            )
        along = [] if leaf is None else self.history(leaf)
        return [one for n, one in self._stages.items() if n in along or one.sha256 is None]


def common(histories: Sequence[Sequence[T]]) -> list[T]:
    """What all histories begin with."""
    together = zip(*histories, strict=False)
    return [each[0] for each in takewhile(lambda each: len(set(each)) == 1, together)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(each) for each in names)
