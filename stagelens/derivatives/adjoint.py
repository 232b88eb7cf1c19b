"""The reverse sweep: what every recorded step contributed to one behaviour, to first order.

For a behaviour y of the final model, lambda_T = grad y is swept backwards through the same steps
and boundary rules that :mod:`stagelens.derivatives.forward_mode` carries tangents through::

    lambda_t = J_t^T lambda_{t+1}
    contribution of step t = lambda_{t+1} . (s_{t+1} - s_t)

A stage's contributions sum to the derivative of y with respect to the stage's strength. Training
states are kept at about sqrt(T) steps of a stage and recomputed between them, so a sweep costs two
gradients per step, plus one gradient and one Hessian product for the transpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from stagelens.contracts import NotSeparable, ProgressCallback, Refused, no_progress
from stagelens.replaying.replay import same_arithmetic
from stagelens.runs.run import Run, Stage
from stagelens.runs.step_records import StepRecord
from stagelens.runs.steps import RecordedSteps

from .batch_norm import coupling
from .curvature import Evaluated
from .step_map import State, StateVectors, StepMap
from .trajectory import Crossing, DerivativeOptions, LinearStage, active_names, check_differentiable

Gradient = Callable[[LinearStage], Mapping[str, Tensor]]
"""From the prepared last stage to grad y in the final parameters and floating buffers."""

GradientAt = Callable[[LinearStage, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""From a prepared stage, and values within it, to grad y at these values."""


@dataclass(frozen=True)
class StepContribution:
    """What one step contributed to the behaviour, to first order.

    Attributes:
        stage: Name of the stage.
        step: Its number within the stage.
        contribution: Change of the behaviour, in its unit; positive where the step raised it.
        examples: (B,) part of every example, over micro-batches in order; None where not requested
            or not defined.
        slopes: (B,) derivative of the behaviour in the weight of every example's loss in this step:
            what it loses if the example weighs 0, to first order. Unlike ``examples``, it follows
            what the example does to Adam's denominators and to the clipping factor, and does not
            sum to the contribution. None where examples is.
        carried: What moments of earlier steps, weight decay and the step count contributed; with
            the examples it sums to the contribution. NaN where examples is None.
        why: Why the stage's examples have no part of their own; None where they have, or where
            that was not requested.
        others: Other steps of the stage to what each example of theirs would have contributed in
            the place of one of this step's; only where requested, see :func:`sweep_within`.
    """

    stage: str
    step: int
    contribution: float
    examples: np.ndarray | None
    carried: float
    slopes: np.ndarray | None = None
    why: str | None = None
    others: Mapping[int, np.ndarray] = field(default_factory=dict)


COUPLED = "BatchNorm in training mode couples the examples of a batch"


def has_coupled_examples(run: Run) -> list[str]:
    """Stages whose examples see each other, through BatchNorm in training mode."""
    coupled = []
    for stage in run.stages:
        model = run.task.build_model(stage.facts.build_config)
        for name, module in model.named_modules():
            module.training = name not in stage.facts.evaluation_mode
        if coupling(model):
            coupled.append(stage.name)
    return coupled


def sweep(
    run: Run,
    gradient: Gradient,
    options: DerivativeOptions | None = None,
    spacing: int | None = None,
    with_examples: bool = False,
    progress: ProgressCallback = no_progress,
    since: str | None = None,
) -> list[StepContribution]:
    """Contributions of all steps, from the last step of the last stage to the first.

    Args:
        run: The run.
        gradient: Gives lambda_T.
        options: Dtype and curvature.
        spacing: Steps between two states that are kept; None for about the square root of a
            stage's steps. It changes memory and time, not results.
        with_examples: Also return every example's part of its step, where examples are independent.
        progress: Called after every step.
        since: The earliest stage to sweep; None for the first.

    Raises:
        Refused: As :func:`stagelens.derivatives.forward_mode.final_tangents`.
        RunError: There is no such stage.
    """
    options = options or DerivativeOptions()
    stages = run.stages if since is None else run.stages[run.stage(since).index :]
    check_differentiable(stages)
    active = active_names(run, stages)
    coupled = set(has_coupled_examples(run)) if with_examples else set()
    total, done = sum(stage.steps for stage in stages), 0
    later: LinearStage | None = None
    vectors: StateVectors | None = None
    found: list[StepContribution] = []
    for stage in reversed(stages):
        own = LinearStage(run, stage, active, options)
        why = COUPLED if stage.name in coupled else None
        steps: list[StepContribution] = []
        with same_arithmetic(stage):
            kept = KeptStates(own, spacing or max(1, math.isqrt(stage.steps)))
            if vectors is None or later is None:
                vectors = own.layout.zeros(1)
                for name, tensor in gradient(own).items():
                    # y also depends on what no stage changes, which has no part in any step.
                    if name in vectors.values:
                        vectors.values[name] = tensor.to(vectors.values[name])[None]
            else:
                vectors = Crossing(own, later).pull(vectors, kept.end)
            for record, step in kept.backwards():
                try:
                    split = with_examples and why is None
                    vectors, (contribution,) = _step_back(own, record, step, vectors, split)
                except NotSeparable as error:
                    why = str(error)
                    vectors, (contribution,) = _step_back(own, record, step, vectors, False)
                steps.append(contribution)
                done += 1
                progress(done / total, f"contributions of stage {stage.name}, step {record.step}")
            # A reference model that is the start depends on what came before it.
            for name, tensor in own.loss.references.cotangents.items():
                vectors.values[name] = vectors.values[name] + tensor
        if why is not None:
            # The examples of all its steps or of none, so that their sums mean the same.
            steps = [
                replace(one, examples=None, slopes=None, carried=math.nan, why=why) for one in steps
            ]
        found += steps
        later = own
    return found


def sweep_within(
    run: Run,
    stage: Stage,
    gradients: Sequence[GradientAt],
    horizon: int,
    others: int = 0,
    options: DerivativeOptions | None = None,
    progress: ProgressCallback = no_progress,
) -> list[list[StepContribution]]:
    """What the steps of a stage contributed to behaviours a few steps later, by short sweeps.

    A behaviour is asked of the model within the stage, not of the final one: after ``horizon``
    steps in all sweeps of that length, each beginning half a horizon earlier than the one before.
    A step is credited by the sweep in which it looks furthest ahead: between half a horizon and a
    whole one, less only where the stage ends. Sweeps of neighbouring steps overlap, so this costs
    about twice a sweep through the stage.

    Args:
        run: The run.
        stage: One of its stages.
        gradients: Per behaviour, gives grad y at the values that a sweep begins from. One sweep
            carries all: each further one costs its products, not the trajectory.
        horizon: How many steps later the behaviour is asked; at least 1. From the stage's number
            of steps on, one sweep from its end.
        others: How many other steps' examples are weighed at every step as well, as if they were
            in its batch: more values of each example, with less noise in their mean.
        options: Dtype and curvature.
        progress: Called after every step.

    Returns:
        Per behaviour, every step of the stage with the contributions of its examples, in training
        order.

    Raises:
        Refused: The stage has no derivatives, or its examples have no part of their own.
    """
    options = options or DerivativeOptions()
    check_differentiable([stage])
    if stage.name in has_coupled_examples(run):
        raise Refused(f"examples of stage {stage.name!r} cannot be told apart: {COUPLED}")
    own = LinearStage(run, stage, active_names(run, [stage]), options)
    sweeps = list(_sweeps(stage.steps, horizon))
    total, done = sum(last - first for first, last, _ in sweeps), 0
    found: list[list[StepContribution]] = [[] for _ in gradients]
    with same_arithmetic(stage):
        kept = KeptStates(own, max(1, math.isqrt(stage.steps)))
        for first, last, credited in sweeps:
            vectors = own.layout.zeros(len(gradients))
            begun = False
            for record, step in kept.backwards(first, last):
                if not begun:
                    for k, gradient in enumerate(gradients):
                        for name, tensor in gradient(own, step.after.values).items():
                            if name in vectors.values:
                                vectors.values[name][k] = tensor
                    begun = True
                split = record.step < credited
                try:
                    more = _others(kept.steps, record.step, others) if split else []
                    extra = _as_if_in(own, step, vectors, more)
                    vectors, contributions = _step_back(own, record, step, vectors, split)
                except NotSeparable as error:
                    raise Refused(
                        f"examples of stage {stage.name!r} cannot be told apart: {error}"
                    ) from None
                for k, steps in enumerate(found if split else ()):
                    others_of = {number: values[k] for number, values in extra.items()}
                    steps.append(replace(contributions[k], others=others_of))
                done += 1
                progress(done / total, f"contributions of stage {stage.name}, step {record.step}")
    return [steps[::-1] for steps in found]


def _others(steps: RecordedSteps, step: int, count: int) -> list[StepRecord]:
    """Batches of other steps, at equal distances, so that all have their turn equally often."""
    total = len(steps)
    count = min(count, total - 1)
    return [steps[(step + 1 + (place * (total - 1)) // count) % total] for place in range(count)]


def _as_if_in(
    own: LinearStage, step: StepMap, vectors: StateVectors, records: Sequence[StepRecord]
) -> dict[int, np.ndarray]:
    """What examples of other steps would have contributed in the place of this step's; (K, B)."""
    if not records:
        return {}
    shares = _columns(step.share(vectors), vectors.count)
    found = {}
    for record in records:
        products = own.loss.example_products(step.before.values, record, shares)
        found[record.step] = step.factor * np.stack([_numbers(each) for each in products])
    return found


def _columns(vectors: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """K vectors by name, (K, *shape) each, as one mapping per vector."""
    return [{name: tensor[k] for name, tensor in vectors.items()} for k in range(count)]


def _numbers(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _sweeps(steps: int, horizon: int) -> Iterator[tuple[int, int, int]]:
    """``(first, last, credited)``: sweep from before ``last`` to ``first``; credit those before."""
    stride = max(1, horizon // 2)
    last = credited = steps
    while credited > 0:
        first = max(0, last - horizon)
        # The sweep that reaches the first step credits all that is left.
        yield first, last, credited
        credited = first
        # Those that follow look at least half a horizon ahead.
        last = min(steps, first + horizon - stride)


def _step_back(
    own: LinearStage, record: StepRecord, step: StepMap, vectors: StateVectors, split: bool
) -> tuple[StateVectors, list[StepContribution]]:
    """``lambda_{t+1} -> lambda_t``, and what the step contributed; one entry per vector."""
    values, count = step.before.values, vectors.count
    # Before the pull: the change is weighed by lambda_{t+1}, not by lambda_t.
    contributions = [float(each) for each in vectors.dot(step.change(own.loss.names))]
    before, gradients, statistics = step.pull(vectors)
    carried = [float("nan")] * count
    directions: list[dict[str, Tensor]] = []
    if split:
        directions = _columns(step.share(vectors), count)
        for k, share in enumerate(directions):
            own_part = sum(float((t.double() * step.gradients[n]).sum()) for n, t in share.items())
            carried[k] = contributions[k] - own_part
        if step.clip is not None or own.layout.rule != "SGD":  # else both are lambda_g
            directions += _columns(gradients, count)
    # The state enters a step twice, directly and through g(theta) and the batch statistics, so
    # lambda_t = (ds'/ds)^T lambda_{t+1} + (dg/ds)^T lambda_g: two parts, added up.
    through, products = own.loss.pull_with_examples(
        values, record, gradients, statistics, directions
    )
    for name, tensor in through.items():
        before.values[name] = before.values[name] + tensor
    parts: list[np.ndarray | None] = [_numbers(each) for each in products] or [None] * count
    found = []
    for k, slopes in enumerate(parts[-count:]):
        part = parts[k]
        # Example gradients are those before clipping; the clip factor is held, not differentiated.
        examples = None if part is None else step.factor * part
        own_step = (own.stage.name, record.step, contributions[k], examples, carried[k], slopes)
        found.append(StepContribution(*own_step))
    return before, found


class KeptStates:
    """A stage's trajectory: some states are kept, the others are recomputed.

    Args:
        own: The stage.
        spacing: Steps between two states that are kept; about the square root of the stage's steps
            keeps the fewest at once.

    Raises:
        Refused: The trajectory does not end where the stage was recorded to end.
    """

    def __init__(self, own: LinearStage, spacing: int) -> None:
        self.own = own
        self.spacing = spacing
        self.steps: RecordedSteps = own.stage.read_steps()
        self.states: list[State] = []
        state = own.start
        for number, record in enumerate(self.steps):
            if number % spacing == 0:
                self.states.append(state)
            state = self._step(record, state).after
        self.end = state
        # Before this stage is swept, because contributions along another trajectory are worthless.
        own.check_end(state)

    def _step(self, record: StepRecord, state: State) -> StepMap:
        return self._map(record, state, self.own.loss.gradient(state.values, record))

    def _map(self, record: StepRecord, state: State, evaluated: Evaluated) -> StepMap:
        return StepMap(self.own.stage, self.own.loss, state, record, evaluated)

    def backwards(
        self, begin: int = 0, end: int | None = None
    ) -> Iterator[tuple[StepRecord, StepMap]]:
        """Every step from ``begin`` to before ``end`` with its map, the last one first."""
        end = len(self.steps) if end is None else end
        for number in range((end - 1) // self.spacing, begin // self.spacing - 1, -1):
            first = number * self.spacing
            records = self.steps[first : min(first + self.spacing, end)]
            state, passed = self.states[number], []
            for record in records:
                evaluated = self.own.loss.gradient(state.values, record)
                # The gradient is kept, the map is not: it holds several tensors per parameter.
                passed.append((record, state, evaluated))
                state = self._map(record, state, evaluated).after
            for record, before, evaluated in reversed(passed[max(begin - first, 0) :]):
                yield record, self._map(record, before, evaluated)
