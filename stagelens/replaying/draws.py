"""One more draw of a run's recipe: what training leaves to chance, drawn anew from a number.

A draw trains through the recorded stages with their batches in another order (or drawn with
replacement), with other initial values where a boundary made parameters or the run began with a new
model, and with other random numbers in the forward passes that drew some. All models of a draw are
*paired*: they share every one of these choices, so that their difference is the stage's effect in
that draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagelens.contracts import Progress, ProgressCallback, Refused, Task, no_progress
from stagelens.runs.boundaries import check_crossable
from stagelens.runs.example_content import content_digest
from stagelens.runs.run import Run, Stage
from stagelens.runs.states import TrainingState, Weights
from stagelens.runs.step_records import StepRecord

from .draw_plan import (
    DATA,
    INITIAL,
    ORDER,
    PASSES,
    Draw,
    coalition_passes,
    data_of,
    passes_needed,
    pool_size,
)
from .initial_values import drawn_base, drawn_values
from .replay import StageReplay, check_replayable, cross_boundary, same_arithmetic
from .training_loss import Passed


def check_drawable(run: Run, first: int = 0) -> None:
    """Refuse before any work where a run's recipe cannot be drawn again.

    Args:
        run: The run.
        first: Place of the first stage that is drawn.

    Raises:
        Refused: Names the stage, and what is in the way.
    """
    drawn = run.stages[first:]
    for stage in drawn:
        # Without the advice to use another estimator, because a draw has none.
        if stage.facts.origin == "assembled" or not stage.replayable:
            raise Refused(stage.no_replay)
    check_replayable(drawn)
    for stage in drawn:
        if stage.index:
            check_crossable(stage.name, stage.facts.boundary)
        objective = stage.facts.objective
        if objective is not None and objective.on_samples:
            raise Refused(
                f"stage {stage.name!r} was trained on answers that the model itself had sampled; "
                "another draw of the recipe would sample others, which the recording does not "
                "have. Train the run again with other seeds, and give the runs with --draws"
            )


def times_seen(task: Task, stage: Stage) -> int | None:
    """:func:`passes_over_examples`, as a whole number; at least 1."""
    seen = passes_over_examples(task, stage)
    return None if seen is None else max(round(seen), 1)


def passes_over_examples(task: Task, stage: Stage) -> float | None:
    """How often a stage saw each of its examples on average; None where the task cannot tell them.

    Args:
        task: Recovers the examples of a batch.
        stage: Without kept batches nothing is known.
    """
    rows, different = 0, set[str]()
    for record in stage.read_steps():
        for micro in record.batches or ():
            shown = stage.objective.examples(task, micro.batch)
            if shown is None:
                return None
            rows += len(shown)
            different.update(map(content_digest, shown))
    return rows / len(different) if different else None


def order_of(draw: Draw, stage: Stage, seen: int = 1) -> list[int]:
    """Which recorded step's batches a draw uses at each step of a stage.

    Drawn with replacement, as many batches are drawn as one pass through the stage's examples has,
    and all are used ``seen`` times, each time in another order: examples that a stage saw several
    times stand in several recorded batches, and drawing among all of these would make them vary
    less than other data would.

    Args:
        draw: The draw.
        stage: One of its stages.
        seen: How often the stage saw each example.
    """
    random, steps = draw.random(stage, ORDER), stage.steps
    if not draw.resample:
        return [int(step) for step in random.permutation(steps)]
    # The same data for each draw that has them, whatever else it draws.
    data = Draw(data_of(draw.number)).random(stage, DATA)
    pool = data.integers(0, steps, pool_size(steps, seen))
    passes = [random.permutation(pool) for _ in range(math.ceil(steps / len(pool)))]
    return [int(step) for step in np.concatenate(passes)[:steps]]


@dataclass(frozen=True)
class Drawn:
    """What a draw leaves of one stage's chance.

    Attributes:
        order: See :func:`order_of`.
        initial: Initial values of parameters that appear at the stage's start.
    """

    order: Sequence[int]
    initial: Weights


def _drawn(task: Task, draw: Draw, stage: Stage, seen: int) -> Drawn:
    initial: Weights = {}
    if stage.index:
        initial = drawn_values(task, stage, _initial_seed(draw, stage)).values
    return Drawn(order_of(draw, stage, seen), initial)


class Passes:
    """Other random numbers for the forward passes of a stage, in place of those recorded."""

    def __init__(self, draw: Draw, stage: Stage) -> None:
        self._draw, self._stage = draw, stage

    def __call__(self, place: int, record: StepRecord) -> StepRecord:
        if not any(micro.rng for micro in record.batches or ()):
            return record
        micros = [
            # Where a pass runs on a GPU, its generator is seeded from this state.
            replace(micro, rng={"cpu": self._state(place, number)}) if micro.rng else micro
            for number, micro in enumerate(record.batches or ())
        ]
        return replace(record, batches=micros)

    def _state(self, place: int, micro: int) -> Tensor:
        seed = int(self._draw.random(self._stage, PASSES, place, micro).integers(2**62))
        return torch.Generator().manual_seed(seed).get_state()


def drawn_models(
    run: Run,
    draw: Draw,
    stages: Sequence[Stage],
    seen: dict[str, int] | None = None,
    progress: ProgressCallback = no_progress,
) -> Iterator[tuple[str, bool, Weights]]:
    """Train one draw with all stages, and without each of these, sharing what they share.

    Without a stage, the draw's own state at the stage's start stands in for its end, so what
    appears at that start keeps the values that were drawn for it.

    Args:
        run: The run; see :func:`check_drawable`.
        draw: The draw.
        stages: Those to leave out; with ``draw.given_earlier`` not the last.
        seen: Stage to how often it saw each example; 1 where it is not there.
        progress: Called for every step.

    Yields:
        A stage's name, whether the stage is there, and the final model's weights. The models with
        and without one stage are a pair; the name is ``""`` for one that is the pair of all.
    """
    check_drawable(run)
    course = _Course(
        run, draw, seen or {}, Progress(progress), passes_needed(run, stages, draw.given_earlier)
    )
    if draw.given_earlier:
        for stage in stages:
            for there, state in ((True, stage.end()), (False, stage.start())):
                passed = Passed(run.stages).leave(stage, state.model)
                yield stage.name, there, course.later(stage, state, passed).model
        return
    state, passed = _base(run, draw), Passed(run.stages)
    for stage in run.stages:
        begin = course.begin(state, stage)
        if stage in stages:
            apart = passed.copy().enter(stage, begin.model).leave(stage, begin.model)
            yield stage.name, False, course.later(stage, begin, apart).model
        state = course.run(stage, begin, passed)
    yield "", True, state.model


Train = Callable[[Sequence[int], "Passes", Passed], TrainingState]
"""Trains one stage of a draw: from the order of its batches, the random numbers of its passes, and
where the draw has passed, to the stage's end."""


def drawn_with(
    run: Run,
    draw: Draw,
    stage: Stage,
    train: Train,
    progress: ProgressCallback = no_progress,
) -> Weights:
    """The final model of a draw, one stage of which the caller trains from its recorded start.

    Args:
        run: The run; see :func:`check_drawable`.
        draw: The draw; stages before the one are as recorded.
        stage: The one.
        train: Trains it.
        progress: Called for every step of the later stages.
    """
    check_drawable(run)
    given = replace(draw, given_earlier=True)
    later = run.stages[stage.index + 1 :]
    course = _Course(run, given, {}, Progress(progress), later)
    passed = Passed(run.stages).enter(stage, stage.start().model)
    state = train(order_of(given, stage), Passes(given, stage), passed)
    passed.leave(stage, state.model)
    return course.later(stage, state, passed).model


def drawn_final(
    run: Run, number: int, first: int = 0, progress: ProgressCallback = no_progress
) -> Weights:
    """Train one draw with all stages, on the same data.

    Args:
        run: The run; see :func:`check_drawable`.
        number: Of the draw.
        first: Place of the first stage that is drawn; those before it are as recorded.
        progress: Called for every step.

    Returns:
        The final model's weights; those of ``drawn_models`` where all stages are drawn.
    """
    check_drawable(run, first)
    draw, work = Draw(number, given_earlier=first > 0), run.stages[first:]
    course = _Course(run, draw, {}, Progress(progress), work)
    passed = Passed(run.stages)
    if first:
        before = run.stages[first - 1]
        return course.later(before, before.end(), passed).model
    begin = _base(run, draw)
    end = course.run(run.stages[0], begin, passed)
    return course.later(run.stages[0], end, passed).model


def drawn_coalitions(
    run: Run,
    draw: Draw,
    masks: Sequence[int],
    seen: dict[str, int] | None = None,
    progress: ProgressCallback = no_progress,
) -> Iterator[tuple[int, Weights]]:
    """Train one draw's model of every coalition, sharing what they share; depth first.

    All models of the draw are paired, those of :func:`drawn_models` among them, bit for bit. A
    stage that did not happen still has its boundary rule applied, and what appears at its start
    keeps the values that were drawn for it.

    Args:
        run: The run; see :func:`check_drawable`.
        draw: The draw, of all stages.
        masks: Bit i is set where stage i happened.
        seen: Stage to how often it saw each example; 1 where it is not there.
        progress: Called for every step.

    Yields:
        A coalition, and its model's weights.
    """
    check_drawable(run)
    work = [run.stages[index] for index in coalition_passes(masks)]
    course = _Course(run, draw, seen or {}, Progress(progress), work)
    yield from _coalitions(
        run, course, 0, _base(run, draw), Passed(run.stages), sorted(set(masks), reverse=True)
    )


def _coalitions(
    run: Run,
    course: _Course,
    index: int,
    state: TrainingState,
    passed: Passed,
    masks: Sequence[int],
) -> Iterator[tuple[int, Weights]]:
    """All coalitions that agree on the stages before one, from where these lead."""
    if index == len(run.stages):
        yield masks[0], state.model
        return
    stage = run.stages[index]
    begin = course.begin(state, stage)
    joined = [mask for mask in masks if mask >> index & 1]
    others = [mask for mask in masks if not mask >> index & 1]
    if joined:
        own = passed.copy()
        end = course.run(stage, begin, own)
        yield from _coalitions(run, course, index + 1, end, own, joined)
    if others:
        passed = passed.copy().enter(stage, begin.model).leave(stage, begin.model)
        yield from _coalitions(run, course, index + 1, begin, passed, others)


def _base(run: Run, draw: Draw) -> TrainingState:
    """Where a draw begins: other new weights where the recorded run began with new ones."""
    drawn = drawn_base(run.task, run.stages[0], _initial_seed(draw, run.stages[0]))
    return run.stages[0].start() if drawn is None else TrainingState(drawn)


def _initial_seed(draw: Draw, stage: Stage) -> int:
    return int(draw.random(stage, INITIAL).integers(2**62))


class _Course:
    """Trains stages as a draw has them."""

    def __init__(
        self, run: Run, draw: Draw, seen: dict[str, int], progress: Progress, work: Sequence[Stage]
    ) -> None:
        self._run, self._draw, self._progress = run, draw, progress
        # Also of a stage that never runs: what appears at its start is drawn.
        every = run.stages if not draw.given_earlier else set(work)
        self._drawn = {s.name: _drawn(run.task, draw, s, seen.get(s.name, 1)) for s in every}
        self._done, self._total = 0, sum(stage.steps for stage in work) or 1

    def begin(self, state: TrainingState, stage: Stage) -> TrainingState:
        """The state at a stage's start, from the end of the one before."""
        if not stage.index:
            return state
        begun = cross_boundary(state, stage)
        model = {**begun.model, **self._drawn[stage.name].initial}
        return TrainingState(model, begun.optimizer)

    def run(self, stage: Stage, begin: TrainingState, passed: Passed) -> TrainingState:
        """Train one stage; notes where it begins and ends."""
        drawn = self._drawn[stage.name]
        passed.enter(stage, begin.model)
        with same_arithmetic(stage):
            training = StageReplay(self._run.task, stage, begin, passed)
            for _ in training.run(drawn.order, Passes(self._draw, stage)):
                self._done += 1
                self._progress(self._done / self._total, f"stage {stage.name}")
            end = training.state()
        passed.leave(stage, end.model)
        return end

    def later(self, stage: Stage, state: TrainingState, passed: Passed) -> TrainingState:
        """Train all stages after one, from a state at its end."""
        for other in self._run.stages[stage.index + 1 :]:
            state = self.run(other, self.begin(state, other), passed)
        return state


def not_drawn(run: Run) -> list[str]:
    """What a draw keeps as recorded although a recipe may leave it to chance, in words."""
    kept = []
    # Of the first draw, by its own seeds: a small seed may be the one that the run began with, and
    # the same weights again do not tell new ones from those that a model always begins with.
    draw = Draw(0)
    if drawn_base(run.task, run.stages[0], _initial_seed(draw, run.stages[0])) is None:
        kept.append("the weights that the first stage began from are those recorded")
    for stage in run.stages[1:]:
        held: list[str] = drawn_values(run.task, stage, _initial_seed(draw, stage)).kept
        grown = [n for n in stage.facts.boundary.grown if n not in stage.facts.boundary.averaged]
        if names := [*held, *grown]:
            kept.append(
                f"initial values of {_listed(names)} in stage {stage.name!r} are those recorded, "
                "because how they were drawn cannot be told"
            )
    return kept


def _listed(names: Sequence[Any], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
