"""Replaying many coalitions of stages: a tree in which they share what they have in common.

A coalition is a bit mask over the stages of a run: bit i is set where stage i happened. From the
base on, every stage either runs its recorded steps or does not; its boundary rule is applied in
both cases. Where all stages so far happened, the state is the recorded one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stagelens.contracts import Progress, ProgressCallback, Refused, no_progress
from stagelens.runs.run import Run, Stage
from stagelens.runs.states import TrainingState, Weights

from .replay import cross_boundary, replay_stage
from .training_loss import Passed


@dataclass(frozen=True)
class Leaf:
    """A coalition at the end of the run.

    Attributes:
        mask: The coalition.
        weights: Its model; None where it was refused.
        refused: Why it was; empty where it was not.
        passes: Stages that were replayed for it and for no coalition before it.
        seconds: What these took.
    """

    mask: int
    weights: Weights | None
    refused: str = ""
    passes: int = 0
    seconds: float = 0.0


@dataclass
class _Spent:
    """Work that no coalition has accounted for yet."""

    passes: int = 0
    seconds: float = 0.0
    steps: int = 0

    def taken(self) -> tuple[int, float]:
        """The passes and seconds since the last coalition."""
        taken = self.passes, self.seconds
        self.passes, self.seconds = 0, 0.0
        return taken


def replay_coalitions(
    run: Run, masks: Sequence[int], progress: ProgressCallback = no_progress, steps: int = 0
) -> Iterator[Leaf]:
    """The final model of every coalition, depth first: one training state per stage is held.

    Args:
        run: The run.
        masks: Coalitions of its stages, in any order; each is given once.
        progress: Called for every step.
        steps: How many there are in all, for ``progress``.
    """
    walk = _Walk(run, Progress(progress), max(steps, 1))
    yield from walk.on(0, None, Passed(), sorted(set(masks), reverse=True))


class _Walk:
    """The depth-first walk.

    Args:
        run: The run.
        progress: Called for every step.
        steps: How many there are in all.
    """

    def __init__(self, run: Run, progress: Progress, steps: int) -> None:
        self._run, self._progress, self._steps = run, progress, steps
        self._spent = _Spent()

    def on(
        self, index: int, state: TrainingState | None, passed: Passed, masks: Sequence[int]
    ) -> Iterator[Leaf]:
        """All coalitions that agree on the stages before one.

        Args:
            index: Of the stage that comes next.
            state: Where the stages before it lead; None where it is the recorded state.
            passed: The boundaries on the way.
            masks: The coalitions.
        """
        if index == len(self._run.stages):
            end = self._run.last.end() if state is None else state
            yield Leaf(masks[0], end.model, "", *self._spent.taken())
            return
        stage = self._run.stages[index]
        joined = [mask for mask in masks if mask >> index & 1]
        others = [mask for mask in masks if not mask >> index & 1]
        if state is None:
            if joined:
                yield from self.on(index + 1, None, passed, joined)
            begin, passed = stage.start(), Passed(self._run.stages[index:])
        else:
            try:
                begin = cross_boundary(state, stage)
            except Refused as refusal:
                yield from (Leaf(mask, None, str(refusal)) for mask in masks)
                return
            if joined:
                yield from self._trained(stage, begin, passed.branch(), joined)
        if others:
            passed.enter(stage, begin.model).leave(stage, begin.model)
            yield from self.on(index + 1, begin, passed, others)

    def _trained(
        self, stage: Stage, begin: TrainingState, passed: Passed, masks: Sequence[int]
    ) -> Iterator[Leaf]:
        """The coalitions in which a stage happened, from where it begins."""
        began, spent = time.perf_counter(), self._spent
        share = (spent.steps / self._steps, (spent.steps + stage.steps) / self._steps)
        report = self._progress.part(*share, "Replaying coalitions: ")
        spent.steps += stage.steps
        try:
            end = replay_stage(self._run.task, stage, begin, report, passed=passed).state
        except Refused as refusal:
            yield from (Leaf(mask, None, str(refusal)) for mask in masks)
            return
        finally:
            spent.passes += 1
            spent.seconds += time.perf_counter() - began
        passed.leave(stage, end.model)
        yield from self.on(stage.index + 1, end, passed, masks)
