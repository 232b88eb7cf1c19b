"""A stage of a run: its facts, and its states and steps when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stagelens.contracts import BASE, Objective, Refused, RunError

from .boundary_facts import Environment
from .checked_files import CheckedFiles
from .data_rows import StageRows
from .loss_tables import read_history, steps_table
from .objectives import find_stage_objective, missing_objective
from .schema import OptimizerFacts, StageFile, StateRef
from .steps import RecordedSteps, steps_of_all

if TYPE_CHECKING:
    from .states import TrainingState


class Stage:
    """A stage of a run. ``facts`` is its stage.json; states and steps are read when asked for.

    ``previous`` is the finished stage that it started from, None for one that started from the
    base; ``following`` is the one after it in the same history. ``given`` is its objective as the
    user gave it, None to find it by its name; ``rows`` make batches that are kept as rows of a data
    set.
    """

    def __init__(
        self,
        files: CheckedFiles,
        facts: StageFile,
        index: int,
        previous: Stage | None,
        given: Any,
        rows: StageRows | None = None,
    ) -> None:
        self._files = files
        self.facts = facts
        self.index = index
        self.previous = previous
        self.following: Stage | None = None
        self.name = facts.name
        self._given = given
        self.rows = rows or StageRows(facts.name, facts.rows)

    def __repr__(self) -> str:
        return f"Stage({self.name!r}, steps={self.steps})"

    @property
    def root(self) -> Path:
        """The run folder."""
        return self._files.root

    @property
    def steps(self) -> int:
        """How many optimiser steps were recorded."""
        return steps_of_all(self.facts.parts_of_each)

    @property
    def finished(self) -> bool:
        """Whether recording reached the stage's end."""
        return self.facts.status == "complete"

    @property
    def replayable(self) -> bool:
        """Whether the batches of all steps were kept, and are at hand."""
        return self._kept_all and not self.rows.missing

    @property
    def _kept_all(self) -> bool:
        return self.facts.keep_batches == "all" and self.steps > 0

    @property
    def updates(self) -> int:
        """How many optimiser steps the stage had, as recorded or reported by a Trainer; else 0."""
        return self.facts.updates or self.steps

    @property
    def optimizer(self) -> OptimizerFacts:
        """The optimiser as replay rebuilds it.

        Raises:
            Refused: No steps were recorded.
        """
        if self.facts.optimizer is None:
            raise Refused(self.not_recorded)
        return self.facts.optimizer

    @cached_property
    def objective(self) -> Objective:
        """What it minimised: as given to ``open_run``, else found by its registered name.

        Raises:
            Refused: It is not installed, or has to be given again; says how.
        """
        return find_stage_objective(self.name, self.facts.objective, self._given)

    def reference_state(self, name: str) -> TrainingState:
        """A reference model that the run keeps."""
        return self._state(self.facts.reference_states[name])

    @property
    def environment(self) -> Environment:
        """Where the stage was recorded.

        Raises:
            Refused: No steps were recorded.
        """
        if self.facts.environment is None:
            raise Refused(self.not_recorded)
        return self.facts.environment

    @property
    def appeared(self) -> list[str]:
        """What has no value, or fewer rows, before an assembled stage; empty for a recorded one."""
        if self.facts.origin == "recorded":
            return []
        return [*self.facts.boundary.new, *self.facts.boundary.grown]

    @property
    def not_recorded(self) -> str:
        """Why nothing that needs steps can be had of a stage without them, for messages."""
        if self.facts.problem is not None:
            return f"stage {self.name!r} cannot be replayed: {self.facts.problem}"
        if self.facts.merge is not None:
            return f"{self.merged}, or --estimator task-vector"
        return (
            f"no steps were recorded of stage {self.name!r}: this run was assembled from "
            "checkpoints; use --estimator task-vector, or record the stage while it is trained"
        )

    @property
    def merged(self) -> str:
        """That it is no training, for messages about what goes along a line of stages only."""
        parents = [] if self.facts.merge is None else list(self.facts.merge.weights)
        named = " and ".join(repr(each) for each in parents)
        leaves = " or ".join(f"--leaf {each}" for each in parents if each != BASE)
        return (
            f"stage {self.name!r} is a merge of {named}, and no training that could be repeated: "
            f"use {leaves} for the history of one of them, stagelens soup for what each gave to "
            "the merge"
        )

    @property
    def no_replay(self) -> str:
        """Why its steps cannot be run again, and what would help; empty where they can be."""
        if self.facts.problem is not None:
            return f"stage {self.name!r} cannot be replayed: {self.facts.problem}"
        if self.facts.merge is not None:
            return self.merged
        if self.facts.origin == "assembled":
            return (
                f"no steps were recorded of stage {self.name!r}, because this run was assembled "
                "from checkpoints; record stages while they are trained to have them replayed"
            )
        if self._kept_all:
            return self.no_data_set or missing_objective(
                self.name, self.facts.objective, self._given
            )
        return (
            f"stage {self.name!r} cannot be replayed, because its batches were not all kept; "
            'record it with keep_batches="all"'
        )

    @property
    def no_data_set(self) -> str:
        """That its data set has to be given for its batches, and how; else empty."""
        return self.rows.missing if self.facts.keep_batches != "none" else ""

    def table(self) -> pd.DataFrame:
        """One row per step: ``step``, ``loss`` and ``lr`` (of the first parameter group).

        Of an assembled stage, the steps that a Trainer reported, with NaN for what it left out.
        """
        if self.facts.history is not None:
            return read_history(self._files, self.facts.history)
        return steps_table(self._files, self.facts.parts_of_each)

    def read_steps(self) -> RecordedSteps:
        """The recorded steps by number, with their batches where they were kept."""
        return RecordedSteps(self._files, self.facts.parts_of_each, rows=self.rows)

    def start(self) -> TrainingState:
        """The training state after the boundary rule, before the first step."""
        return self._state(self.facts.start)

    def end(self) -> TrainingState:
        """The training state after the last step; of the optimiser's what the run still has.

        Raises:
            RunError: The stage was not finished.
        """
        if self.facts.end is None:
            raise RunError(
                f"stage {self.name!r} was not finished, so it has no end state; resume recording "
                "with Recorder(path, resume=True)"
            )
        state, later = self._state(self.facts.end), self.following
        if self.facts.end.optimizer is None and later is not None:
            from .optimizer_ends import carried_from  # here, because it imports torch

            state.optimizer = carried_from(later.start().optimizer, later.facts.boundary)
        return state

    def within(self) -> Iterator[tuple[int, TrainingState]]:
        """The recorded checkpoints before the stage's end: steps so far, and the state then."""
        for checkpoint in self.facts.checkpoints:
            if checkpoint.step < self.steps:
                yield checkpoint.step, self._state(checkpoint.state)

    def _state(self, reference: StateRef) -> TrainingState:
        from .saved_states import load_state  # here, because it imports torch

        return load_state(self._files, reference)
