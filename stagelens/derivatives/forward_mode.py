"""Forward mode: what stages did to the final model, to first order, in one pass over the replay.

Two readings of "without stage k", both exact derivatives of the real optimiser's steps:

* ``jump``: the finite, exactly known change s_end - s_start of the stage, carried exactly over its
  own boundary, and to first order through the later steps and boundary rules.
* ``scale``: d/dxi at xi = 1 of s_{t+1} = s_t + xi (F_t(s_t) - s_t) within the stage, so the forcing
  s_{t+1} - s_t at each of its steps, carried through the rest of the stage and the later ones. It
  is also the exact answer to "what if the stage had been a little weaker".

All requested stages share one factual pass: a step's gradient is computed once, and its curvature
is applied to every open stage's tangent. Each tangent is computed by itself, so it does not depend
on which others are requested, or in which order.

What first order neglects can be estimated on the way, see :mod:`.second_order`: of a jump from the
defects of the later steps. Of a scale, what it is off where its stage ends is known without any,
since the finite change of the stage is; from there on it is as of a jump.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from stagelens.contracts import Progress, ProgressCallback, no_progress
from stagelens.replaying.replay import same_arithmetic
from stagelens.runs.batches import batch_size
from stagelens.runs.boundaries import carry
from stagelens.runs.run import Run, Stage
from stagelens.runs.step_records import StepRecord

from .second_order import add, defect, row, rows, stacked, stage_probes
from .step_map import State, StateVectors, StepMap
from .trajectory import Crossing, DerivativeOptions, LinearStage, active_names, check_differentiable

Reading = Literal["jump", "scale"]

PRODUCT_COST = 2.0
"""A product C v, counted in gradients, where each of a layer's three matrix products (one forward,
two backward) counts alike. H v goes backward through all three, which costs two for each; J^T H_L J
and the empirical Fisher take two for J^T p, two for J v, and two for J^T; no curvature takes none.
"""


@dataclass
class StageTangent:
    """What a stage did to the final model, to first order: ``final - without``.

    Attributes:
        stage: The stage's name.
        neglected: What to expect each of ``values`` to lack to the finite difference, to second
            order; None where it was not asked for, or is not known.
        values: Derivative of each parameter or floating buffer of the final model, of its shape;
            absent where the stage could not have changed it.
        growth: Norm of the derivative of the parameters over the norm of the stage's own change
            in them, carried over the later boundaries: 1 where later stages keep the change as it
            is; NaN where it overflowed.
        cost: Example-gradients, in replays of the later stages, as if the stage were requested
            alone: the trajectory's gradients once, :data:`PRODUCT_COST` for each product,
            and one for each defect. Stages that are requested together share the first.
        seconds: Part of the wall time; each step's is divided among the stages open at it.
    """

    stage: str
    values: dict[str, Tensor]
    growth: float
    cost: float
    seconds: float
    neglected: dict[str, Tensor] | None = None


class _Lanes:
    """The open tangents, one lane per stage.

    Attributes:
        stages: Of each lane.
        vectors: The tangents.
        errors: What they neglect, in the same lanes; None where this is not followed.
        gradients: Example-gradients spent on each stage by itself.
    """

    def __init__(self, product_cost: float) -> None:
        self.product_cost = product_cost
        self.stages: list[Stage] = []
        self.vectors: StateVectors | None = None
        self.errors: StateVectors | None = None
        self.gradients: dict[str, float] = {}
        self.later_examples: dict[str, int] = {}  # without the stage's own: what a replay costs
        self.seconds: dict[str, float] = {}

    def open(self, stage: Stage, vectors: StateVectors, errors: StateVectors | None) -> None:
        """Open a lane for a stage; without ``errors``, none of any lane are followed."""
        self.stages.append(stage)
        self.later_examples[stage.name] = 0
        self.gradients[stage.name] = self.seconds[stage.name] = 0.0
        if len(self.stages) == 1:
            self.errors = errors
        elif self.errors is not None and errors is not None:
            self.errors = stacked([self.errors, errors])
        if self.vectors is not None:
            vectors = stacked([self.vectors, vectors])
        self.vectors = vectors

    def pay(self, stage: Stage, examples: int, seconds: float, defects: bool) -> None:
        """Note what one step of ``stage`` cost, with or without defects of every lane."""
        products = 1 if self.errors is None else 2
        gradients = 1 + self.product_cost * products
        for own in self.stages:
            later = own.name != stage.name
            # Within its own stage, a tangent has no defects that are not known anyway.
            each = gradients + (defects and later)
            self.gradients[own.name] += examples * (each if later else 1 + self.product_cost)
            self.later_examples[own.name] += examples if later else 0
            self.seconds[own.name] += seconds / len(self.stages)

    def cost(self, stage: Stage) -> float:
        """In replays of the later stages; 0 where there are none."""
        replay = self.later_examples[stage.name]
        return self.gradients[stage.name] / replay if replay else 0.0


def final_tangents(
    run: Run,
    stages: Sequence[Stage],
    reading: Reading,
    options: DerivativeOptions | None = None,
    progress: ProgressCallback = no_progress,
    defects: int = 0,
) -> dict[str, StageTangent]:
    """The derivative of the final parameters and buffers in each of ``stages``.

    Args:
        run: The run.
        stages: Finished stages of it, in any order.
        reading: ``"jump"`` or ``"scale"``.
        options: Dtype and curvature.
        progress: Called after every step.
        defects: Steps of every later stage that tell what first order neglects; 0 for none.

    Returns:
        One entry per stage; ``final - tangent`` is the first-order model without the stage.

    Raises:
        Refused: The run is in half precision, its batches were not kept, or the model has no
            second derivative in torch.
    """
    options = options or DerivativeOptions()
    asked = {stage.name for stage in stages}
    first = min(stage.index for stage in stages)
    covered = run.stages[first:]
    # A jump is read off its stage's recorded ends, so the first stage's steps need not be run.
    stepped = covered if reading == "scale" else covered[1:]
    check_differentiable(stepped, covered[: len(covered) - len(stepped)])
    active = active_names(run, covered)
    total, overall = sum(stage.steps for stage in stepped), Progress(progress)
    lanes, done = _Lanes(0.0 if options.curvature == "none" else PRODUCT_COST), 0
    before: LinearStage | None = None
    reached: State | None = None
    for stage in covered:
        own = LinearStage(run, stage, active, options)
        if before is not None:
            crossing = Crossing(before, own)
            if lanes.vectors is not None:
                # A merge is linearised where the stepped trajectory ended, as the steps are.
                lanes.vectors = crossing.push(lanes.vectors, reached or before.end)
                if lanes.errors is not None:
                    lanes.errors = crossing.push(lanes.errors, reached or before.end)
            if before.stage.name in asked:
                # After the push: a jump comes already carried over its own boundary, exactly.
                jump = crossing.jump(before)
                if reading == "jump":
                    lanes.open(before.stage, jump, own.layout.zeros(1) if defects else None)
                else:
                    _settle(lanes, before.stage, jump)
        if own.loss.references.leaves:
            lanes.errors = None  # how a reference model's start bends the steps is not known
        if reading == "scale" and stage.name in asked:
            zeros = own.layout.zeros(1)
            lanes.open(stage, zeros, own.layout.zeros(1) if defects else None)
        if lanes.vectors is not None:
            forced = stage.name if reading == "scale" else None
            part = overall.part(done / total, (done + stage.steps) / total)
            reached = _run_stage(own, lanes, forced, options, part, defects)
            done += stage.steps
        before = own
    assert before is not None
    if reading == "jump" and before.stage.name in asked:
        lanes.open(before.stage, _own_change(before), before.layout.zeros(1) if defects else None)
    return {stage.name: _result(run, stage, lanes, k) for k, stage in enumerate(lanes.stages)}


def _run_stage(
    own: LinearStage,
    lanes: _Lanes,
    forced: str | None,
    options: DerivativeOptions,
    progress: ProgressCallback,
    defects: int,
) -> State:
    """Step the factual state through a stage, and all open tangents with it."""
    state = own.start
    names = [stage.name for stage in lanes.stages]
    lane = names.index(forced) if forced in names else None
    bent = [k for k in range(len(names)) if k != lane]
    looked_at: Mapping[int, float] = {}
    if lanes.errors is not None and bent:
        looked_at = stage_probes(own.stage, 0, own.stage.steps, defects)
    if lanes.vectors is not None:
        own.loss.references.begin(lanes.vectors.values)
    with same_arithmetic(own.stage):
        for record in own.stage.read_steps():
            began = time.perf_counter()
            assert lanes.vectors is not None
            before, count, weight = lanes.vectors, len(names), looked_at.get(record.step)
            # Errors of stages that are still going on are zero, as long as no other is open.
            both = before if lanes.errors is None or not bent else stacked([before, lanes.errors])
            evaluated = own.loss.push(state.values, record, both.values)
            step = StepMap(own.stage, own.loss, state, record, evaluated, options.plain_sgd)
            pushed = step.push(both, evaluated)
            lanes.vectors = rows(pushed, slice(0, count))
            if lanes.errors is not None and bent:
                lanes.errors = rows(pushed, slice(count, None))
                for k in bent if weight is not None else ():
                    found = defect(own, record, step, before, lanes.vectors, k)
                    lanes.errors = add(lanes.errors, k, found, -(weight or 0.0))
            # d/dxi of s + xi (F(s) - s) at xi = 1 is J ds + (s' - s): the forcing is not pushed.
            if lane is not None:
                _force(lanes.vectors, lane, step.change(own.loss.names))
            state = step.after
            spent = time.perf_counter() - began
            lanes.pay(own.stage, examples_of(record), spent, weight is not None)
            at, steps = record.step + 1, own.stage.steps
            progress(at / steps, f"derivatives of stage {own.stage.name}, step {at} of {steps}")
    own.check_end(state)
    return state


def _settle(lanes: _Lanes, stage: Stage, jump: StateVectors) -> None:
    """What a scale neglects within its own stage: its finite change, less what it found.

    Args:
        lanes: Carried over the boundary after the stage already.
        stage: Whose.
        jump: Its finite change, carried over that boundary.
    """
    if lanes.errors is None or lanes.vectors is None:
        return
    lane = [each.name for each in lanes.stages].index(stage.name)
    found = add(jump, 0, row(lanes.vectors, lane), -1.0)
    lanes.errors = add(lanes.errors, lane, found)


def _force(vectors: StateVectors, lane: int, change: StateVectors) -> None:
    """Add the forcing ``s' - s`` to one lane."""
    for name, tensor in change.values.items():
        vectors.values[name][lane] += tensor[0]
    for name, blocks in change.moments.items():
        for block, tensor in blocks.items():
            vectors.moments[name][block][lane] += tensor[0]


def examples_of(record: StepRecord) -> int:
    """The number of examples in a step's batches."""
    return sum(batch_size(micro.batch) for micro in record.batches or ())


def _own_change(last: LinearStage) -> StateVectors:
    """The last stage's own change, which no later stage carries on."""
    vectors = last.layout.zeros(1)
    end, start = last.end.values, last.start.values
    for name in vectors.values:
        vectors.values[name] = (end[name] - start[name])[None]
    return vectors


def _result(run: Run, stage: Stage, lanes: _Lanes, lane: int) -> StageTangent:
    assert lanes.vectors is not None
    values = {name: t[lane].detach().cpu() for name, t in lanes.vectors.values.items()}
    later = [other.facts.boundary for other in run.stages[stage.index + 1 :]]
    start, end = stage.start().model, stage.end().model
    statistics = ("running_mean", "running_var")
    parameters = [name for name in values if name.rpartition(".")[2] not in statistics]
    changes = []
    for name in parameters:
        before, after = carry(name, later, start), carry(name, later, end)
        if before is not None and after is not None:
            changes.append(after - before)
    change, size = norm(changes), norm([values[name] for name in parameters])
    growth = size / change if change else math.inf if size else 0.0
    # Over all values: the norms above leave out running statistics, which can overflow as well.
    if not all(bool(tensor.isfinite().all()) for tensor in values.values()):
        growth = math.nan
    neglected = None
    if lanes.errors is not None:
        neglected = {n: t[lane].detach().cpu() for n, t in lanes.errors.values.items()}
    cost, seconds = lanes.cost(stage), lanes.seconds[stage.name]
    return StageTangent(stage.name, values, growth, cost, seconds, neglected)


def norm(tensors: Iterable[Tensor]) -> float:
    """2-norm over all tensors together."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))
