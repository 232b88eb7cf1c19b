"""What a stage that is being recorded has on disk: its facts and its training states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stagelens.runs.saved_states import save_state
from stagelens.runs.schema import Checkpoint, StageFile, StateRef
from stagelens.runs.states import TrainingState

from .run_writer import RunWriter


class StageFiles:
    """The folder of one stage.

    Args:
        run: Its run.
        folder: The stage's folder in the run's.
        facts: The first contents of stage.json, written now.

    Attributes:
        facts: The contents of stage.json, on disk unless writing them failed.
    """

    def __init__(self, run: RunWriter, folder: str, facts: StageFile) -> None:
        self.facts = facts
        self._run, self._folder = run, folder
        self._run.announce(facts, folder)
        self._written = facts

    def announce(self, **update: Any) -> None:
        """Change the facts, and write them if they are not on disk."""
        self.facts = self.facts.model_copy(update=update)
        if self.facts != self._written:
            self._run.announce(self.facts, self._folder)
            self._written = self.facts

    def save(self, name: str, state: TrainingState) -> StateRef:
        """Write a training state; what the stage has not changed is in its start already."""
        return save_state(self._run.path, f"{self._folder}/{name}", state, self.facts.start)

    def checkpoint(
        self, step: int, state: Callable[[], TrainingState], calls: list[Any], checked: list[int]
    ) -> Checkpoint:
        """Write a training state within the stage, and the facts that name it."""
        known = self.facts.checkpoints
        # A regular checkpoint and a best model can come at the same step.
        if known and known[-1].step == step:
            return known[-1]
        saved = self.save(f"checkpoint-{step:06d}", state())
        made = Checkpoint(step=step, state=saved, calls=calls)
        self.announce(checkpoints=[*known, made], checked=checked)
        return made

    def drop_checkpoints(self, best: Checkpoint, due: Callable[[int], bool]) -> None:
        """Delete the others than the best one and those at steps where one is due."""
        known = self.facts.checkpoints
        self.announce(checkpoints=[one for one in known if one == best or due(one.step)])
        # After the facts: a process killed in between must not leave them naming missing files.
        self.tidy("checkpoint-*")

    def tidy(self, pattern: str) -> None:
        """Delete files of the stage that its facts do not name any more."""
        named = {file.path for file in self.facts.files()} | {f"{self._folder}/stage.json"}
        for path in (self._run.path / self._folder).rglob(pattern):
            if path.is_file() and path.relative_to(self._run.path).as_posix() not in named:
                path.unlink()
