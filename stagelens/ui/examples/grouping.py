"""Groups of a stage's training examples, and the replays without each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stagelens.analyses.without_data.chosen import Chosen
from stagelens.analyses.without_data.sentences import mean_effect
from stagelens.analyses.without_data.stored import WithoutData
from stagelens.ui.opening.workspace import Workspace

from . import left_out
from .contributions import Asked


@dataclass(frozen=True)
class Grouping:
    """The training examples of a stage by one column.

    Attributes:
        workspace: What is open.
        asked: Whose behaviour, and which stage.
        by: What they are grouped by.
        members: Group to the ids of its examples.
        replays: Group to what the replay without it gave, of those that were replayed.
    """

    workspace: Workspace
    asked: Asked
    by: str
    members: Mapping[str, tuple[str, ...]]
    replays: Mapping[str, WithoutData]

    @classmethod
    def of(
        cls, workspace: Workspace, asked: Asked, by: str, members: Mapping[str, tuple[str, ...]]
    ) -> Grouping:
        """With the replays that are stored."""
        chosen = {name: _without(asked.stage, by, name, own) for name, own in members.items()}
        found = {name: left_out.stored(workspace, one, "rest") for name, one in chosen.items()}
        known = {name: one for name, one in found.items() if one is not None}
        return cls(workspace, asked, by, members, known)

    def without(self, name: str) -> Chosen:
        """All examples of a group, as a choice to leave out."""
        return _without(self.asked.stage, self.by, name, self.members[name])

    def effect(self, name: str) -> float | None:
        """A group's effect by replay; NaN where that was refused, None where it was not asked."""
        one = self.replays.get(name)
        if one is None:
            return None
        return mean_effect(one, self.asked.behaviour, frozenset(self.asked.ids))


def _without(stage: str, by: str, name: str, ids: tuple[str, ...]) -> Chosen:
    return Chosen(stage, ids, f"with {by} {name}")
