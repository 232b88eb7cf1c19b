"""The training states of a stage, as they are taken while it is recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from stagelens.runs.gathering import gathered_state
from stagelens.runs.optimizer_ends import end_optimizer
from stagelens.runs.optimizer_facts import EndOptimizer, OptimizerFacts
from stagelens.runs.optimizer_set import AnyOptimizer
from stagelens.runs.shards import is_sharded
from stagelens.runs.states import TrainingState, capture, optimizer_tensors

from .carried_state import told_apart
from .meetings import Meetings


class StageStates:
    """Copies a state; of a sharded model, gathers it from all processes, which come for that.

    Args:
        folder: Of the stage.
        model: Is trained.
        optimizer: Trains it.
        names: ``id(parameter)`` to name.
        meetings: Of the stage.

    Attributes:
        sharded: Whether the model is.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: AnyOptimizer,
        names: Mapping[int, str],
        meetings: Meetings,
    ) -> None:
        self.sharded = is_sharded(model)
        self._folder = folder if meetings.main else None
        self._model, self._optimizer, self._names = model, optimizer, names
        self._meetings = meetings
        self._taken = False

    def take(
        self,
        at: str,
        optimizer: bool,
        model: nn.Module | None = None,
        *,
        copy: bool = False,
    ) -> TrainingState:
        """The state as it is now; an empty one in a process that does not write it.

        Args:
            at: Where in the training that is, for messages.
            optimizer: Whether the optimiser's is wanted; the main process knows.
            model: In place of the one that is trained: an average of it.
            copy: Whether it has to stay as it is; else it is written at once.

        Raises:
            RecordingError: A process does not come to give its parts.
            OSError: It cannot be written.
        """
        if not self.sharded:
            wanted = self._optimizer if optimizer else None
            return capture(model or self._model, wanted, self._names, copy=copy)
        self._taken = True
        optimizer = self._meetings.meet(at, optimizer)
        states = optimizer_tensors(self._optimizer, self._names) if optimizer else {}
        return gathered_state(self._folder, self._model, states)

    def take_end(
        self, at: str, facts: OptimizerFacts | None, keep: bool, model: nn.Module | None = None
    ) -> tuple[TrainingState, EndOptimizer | None]:
        """As :meth:`take`, at the stage's end; and what is known of the optimiser's state.

        Args:
            at: Where in the training that is.
            facts: The optimiser; None if replay could not make it again.
            keep: Whether its state is kept.
            model: In place of the one that is trained.
        """
        if not self.sharded:
            known = told_apart(facts, self._optimizer, self._names)
            return self.take(at, keep and facts is not None, model), known
        whole = self.take(at, facts is not None)
        known = None if facts is None else end_optimizer(whole.optimizer)
        return (whole if keep else TrainingState(whole.model)), known

    @contextmanager
    def due(self, at: str) -> Iterator[None]:
        """Around what takes a state in the main process, or does not after all."""
        self._taken = False
        try:
            yield
        finally:
            if self.sharded and not self._taken:
                self._meetings.call_off(f"no state was taken at {at}")
