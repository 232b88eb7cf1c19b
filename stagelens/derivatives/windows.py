"""Leaving training examples out for some steps: its first order, and what that neglects.

A window is a stretch of recorded steps at which some examples are left out (weight 0, the divisor
kept). At its end, d is the difference that this makes to first order, and e the neglected term of
:mod:`.second_order`: the model without these examples is ``final - d - e`` up to third order. All
windows share one pass along the recording, which is read as it was, so that each costs four
gradients per step of its own: two for d, and two for e.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from stagelens.contracts import ProgressCallback, Refused, no_progress
from stagelens.replaying.replay import same_arithmetic
from stagelens.runs.run import Run, Stage
from stagelens.runs.step_records import StepRecord

from .adjoint import COUPLED, has_coupled_examples
from .curvature import Evaluated
from .second_order import PROBES, add, defect, rows, stacked, stage_probes
from .step_map import State, StateVectors, StepMap
from .trajectory import Crossing, DerivativeOptions, LinearStage, active_names, check_differentiable

Places = Mapping[int, Collection[int]]
"""Step to the positions of examples in it, counted from 0 over its micro-batches."""


@dataclass(frozen=True)
class Window:
    """Steps of a stage.

    Attributes:
        begin: The first step at which examples are left out.
        end: The step before which the window ends; None to go on through all later stages, in
            which nothing is left out, to the final model.
    """

    begin: int
    end: int | None


@dataclass(frozen=True)
class WindowEnd:
    """What leaving examples out within a window does to the model where it ends.

    Attributes:
        window: The window.
        own: The stage in which it ends.
        values: The recorded parameters and buffers there, by name.
        first_order: d of each; ``values - d`` is the model without the examples.
        neglected: e of each.
        gradients: What it cost, in gradients of a step.
        seconds: Wall time, its share of what windows have in common included.
    """

    window: Window
    own: LinearStage
    values: Mapping[str, Tensor]
    first_order: Mapping[str, Tensor]
    neglected: Mapping[str, Tensor]
    gradients: float
    seconds: float


@dataclass
class _Open:
    """A window that is being gone through; of its vectors, d is the first and e the second."""

    window: Window
    vectors: StateVectors
    probes: Mapping[int, float]
    gradients: float = 0.0
    seconds: float = 0.0


def follow(
    run: Run,
    stage: Stage,
    places: Places,
    windows: Sequence[Window],
    reached: Callable[[WindowEnd], None],
    progress: ProgressCallback = no_progress,
) -> None:
    """Go through windows of a stage, and tell what leaving examples out does at the end of each.

    Args:
        run: The run.
        stage: The stage whose examples are left out.
        places: Which, see :meth:`stagelens.runs.training_rows.TrainingRows.places`.
        windows: In any order.
        reached: Called at the end of every window, while its stage's model is at hand.
        progress: Called after every step.

    Raises:
        Refused: The stage has no derivatives, its examples have no part of their own, or its loss
            is computed from a reference model that is its start.
        NotSeparable: The loss is no sum over examples.
    """
    options = DerivativeOptions()
    whole = any(window.end is None for window in windows)
    stages = run.stages[stage.index :] if whole else [stage]
    check_differentiable(stages)
    if stage.name in has_coupled_examples(run):
        raise Refused(f"examples of stage {stage.name!r} cannot be told apart: {COUPLED}")
    active = active_names(run, stages)
    total, done = sum(each.steps for each in stages), 0
    opened: list[_Open] = []
    before: LinearStage | None = None
    state: State | None = None
    for current in stages:
        own = LinearStage(run, current, active, options)
        if own.loss.references.leaves:
            raise Refused(
                f"the loss of stage {current.name!r} is computed from a reference model that is "
                "its start, whose second order is not known here; use replay"
            )
        if before is not None and state is not None:
            crossing = Crossing(before, own)
            for each in opened:
                each.vectors = crossing.push(each.vectors, state)
                each.probes = stage_probes(current, 0, current.steps, PROBES)
        state, before = own.start, own
        with same_arithmetic(current):
            for record in current.read_steps():
                if current.name == stage.name:
                    new = [w for w in windows if w.begin == record.step]
                    opened += [_begun(own, window) for window in new]
                left_out = places.get(record.step, ()) if current.name == stage.name else ()
                state = _step(own, record, state, opened, left_out)
                if current.name == stage.name:
                    for each in [e for e in opened if e.window.end == record.step + 1]:
                        opened.remove(each)
                        _tell(reached, each, own, state)
                done += 1
                progress(done / total, f"leaving examples out, stage {current.name}, step {done}")
            own.check_end(state)
    if before is not None and state is not None:
        for each in opened:
            _tell(reached, each, before, state)


def _begun(own: LinearStage, window: Window) -> _Open:
    end = own.stage.steps if window.end is None else window.end
    return _Open(window, own.layout.zeros(2), stage_probes(own.stage, window.begin, end, PROBES))


def _tell(reached: Callable[[WindowEnd], None], each: _Open, own: LinearStage, at: State) -> None:
    vectors = each.vectors.values
    reached(
        WindowEnd(
            window=each.window,
            own=own,
            values={name: at.values[name] for name in vectors},
            first_order={name: tensor[0] for name, tensor in vectors.items()},
            neglected={name: tensor[1] for name, tensor in vectors.items()},
            gradients=each.gradients,
            seconds=each.seconds,
        )
    )


def _step(
    own: LinearStage,
    record: StepRecord,
    state: State,
    opened: Sequence[_Open],
    left_out: Collection[int],
) -> State:
    """Step the recorded state, and the vectors of all open windows with it."""
    began = time.perf_counter()
    if not opened:
        evaluated = own.loss.gradient(state.values, record)
        return StepMap(own.stage, own.loss, state, record, evaluated).after
    both = stacked([each.vectors for each in opened])
    evaluated = own.loss.push(state.values, record, both.values)
    if left_out:
        evaluated = _forced(own, record, state, evaluated, left_out)
    step = StepMap(own.stage, own.loss, state, record, evaluated)
    pushed = step.push(both, evaluated)
    for place, each in enumerate(opened):
        after = rows(pushed, slice(2 * place, 2 * place + 2))
        weight = each.probes.get(record.step)
        if weight is not None:
            found = defect(own, record, step, each.vectors, after, 0, left_out)
            after = add(after, 1, found, -weight)
        each.vectors = after
        each.gradients += 4 + (weight is not None) * (2 if left_out else 1)
    seconds = time.perf_counter() - began
    for each in opened:
        each.seconds += seconds / len(opened)
    return step.after


def _forced(
    own: LinearStage,
    record: StepRecord,
    state: State,
    evaluated: Evaluated,
    left_out: Collection[int],
) -> Evaluated:
    """Derivatives of a step at which examples are left out: dg = H d + their part of g."""
    part = own.loss.part(state.values, record, left_out)
    d_gradient = {}
    for name, tensor in evaluated.d_gradient.items():
        forced = tensor.clone()
        forced[::2] += part[name]  # d of every window; e is not forced
        d_gradient[name] = forced
    return replace(evaluated, d_gradient=d_gradient)
