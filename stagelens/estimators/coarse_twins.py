"""Paired cheap replays: the twins of ``coarse-replay`` carried through the later stages."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from stagelens.compute import processes
from stagelens.contracts import Progress, ProgressCallback
from stagelens.replaying.coarse import CoarseModel, transfer
from stagelens.replaying.coarse_plan import CoarseStep, coarse_steps
from stagelens.replaying.replay import cross_boundary, replay_stage, same_arithmetic
from stagelens.replaying.stage_model import Share
from stagelens.replaying.training_loss import Passed
from stagelens.runs.batches import batch_size
from stagelens.runs.optimizer_kinds import without_formula
from stagelens.runs.run import Run, Stage
from stagelens.runs.shards import own_part
from stagelens.runs.states import TrainingState

from .hardness import hardness
from .protocol import Counterfactual, PartialReplay, Twins
from .stage_trust import StageTrust
from .travel import Travel, relative_error, travelled

_THIN_GENTLE = 1.25
_THIN_HARD = {"SGD": 8.0, "Adam": 3.5, "AdamW": 3.5}
"""How much batches are thinned before steps are merged, in gentle and in hard training; chosen on
the benchmark's seeds 0 to 2."""

_FEWEST_STEPS = 24
"""Merging leaves at least this many steps; a short stage may then exceed its part of the budget."""

_SMALLEST_BATCH = 2
_GROWTH = 30.0
"""Twins whose distance grew by this factor within a stage have diverged."""

_UNSTEADY, _THINNEST = 0.5, 0.22
"""Where SGD trained at least this hard, batches with a larger sampling error say nothing: of 24
such estimates on the benchmark's seeds 0 to 2, at budgets of 1/8 and 1/16, 22 were off by more than
1.2 times the effect, and none by less than 0.7."""


@dataclass(frozen=True)
class Plan:
    """How cheap: ``merge`` steps become one (r), on 1/``thin`` of a batch (q = ``thin``)."""

    merge: float
    thin: float


def paired_replays(
    run: Run,
    stages: Sequence[Stage],
    budget: float,
    estimator: str,
    progress: ProgressCallback,
    exact_stages: int = 0,
    share: Share = "",
    ends: Mapping[str, TrainingState] | None = None,
) -> Iterator[Counterfactual]:
    """The model without each of ``stages``, by cheap replays that share their factual twins.

    Args:
        run: The run.
        stages: The stages to leave out, one at a time; with more than ``exact_stages`` later ones.
        budget: See :class:`~stagelens.estimators.coarse_replay.CoarseReplay`.
        estimator: Its name, for each stage's trust.
        progress: Called for every step.
        exact_stages: How many of the first later stages are replayed exactly as well, for the
            cheap replay to go on from there.
        share: What the processes of the job share: nothing, or the model.
        ends: Stage to where its counterfactual is at the stage's end; by default at its start,
            which is without it.
    """
    later = run.stages[min(stage.index for stage in stages) + 1 :]
    begins = {s.name: s.start() if ends is None else ends[s.name] for s in stages}
    open_stages = {
        s.index: OpenStage(
            *(s, begins[s.name], s.end()),
            passed=Passed(later).leave(s, begins[s.name].model),
            exact_passed=Passed(later).leave(s, begins[s.name].model),
            exact=begins[s.name] if exact_stages else None,
        )
        for s in stages
    }
    total = sum(stage.steps for stage in later)
    done, overall = 0, Progress(progress)
    for stage in later:
        part = overall.part(done / total, (done + stage.steps) / total)
        here = [o for o in open_stages.values() if o.stage.index < stage.index]
        cheap = [o for o in here if o.usable]
        exact = [o for o in here if o.exact is not None]
        for one in here:
            if one.usable or one.exact is not None:
                one.replay_cost += stage.steps * step_size(stage)
        if cheap:
            pass_stage(run, stage, cheap, budget, part.piece(0, 1 + len(exact)), share)
        for number, one in enumerate(exact, 1):
            one.pass_exactly(run, stage, exact_stages, part.piece(number, 1 + len(exact)), share)
        done += stage.steps
    final = run.last.end()
    for one in open_stages.values():
        yield one.counterfactual(estimator, final)


@dataclass
class OpenStage:
    """A stage that is left out, on its way through the later stages.

    ``without`` is the state without it at the latest boundary reached, by cheap replay; only the
    last twins are kept. ``sampling`` is the relative error to expect from thinning; ``travels``
    grows by one for each later stage. ``exact`` is the state by replay as long as that goes on.
    """

    stage: Stage
    without: TrainingState
    factual: TrainingState
    twin: TrainingState | None = None
    refused: str = ""
    spent: float = 0.0
    replay_cost: int = 0
    seconds: float = 0.0
    sampling: float = 0.0
    travels: list[Travel] = field(default_factory=list)
    exact: TrainingState | None = None
    partial: PartialReplay | None = None
    passed: Passed = field(default_factory=Passed)
    exact_passed: Passed = field(default_factory=Passed)

    @property
    def usable(self) -> bool:
        return not self.refused

    def pass_exactly(
        self,
        run: Run,
        stage: Stage,
        exact_stages: int,
        progress: ProgressCallback,
        share: Share,
    ) -> None:
        """Replay one later stage; after the last one that is, the cheap replay goes on from it."""
        assert self.exact is not None
        began = time.perf_counter()
        begin = cross_boundary(self.exact, stage)
        replayed = replay_stage(
            run.task, stage, begin, progress, share=share, passed=self.exact_passed
        )
        self.exact = replayed.state
        self.exact_passed.leave(stage, self.exact.model)
        self.spent += replayed.example_gradients
        self.seconds += time.perf_counter() - began
        if stage.index < self.stage.index + exact_stages:
            return
        if self.usable:
            exact, cheap = self.exact.model, self.without.model
            missed = relative_error(stage, cheap, exact)
            self.partial = PartialReplay(stage.name, exact, cheap, missed)
        # What the cheap replay went through or was refused for up to here is no longer built upon.
        self.without, self.exact, self.refused = self.exact, None, ""
        self.passed = self.exact_passed
        self.sampling, self.travels = 0.0, []

    def counterfactual(self, estimator: str, final: TrainingState) -> Counterfactual:
        trust = StageTrust(
            stage=self.stage.name,
            estimator=estimator,
            trust="refused" if self.refused else "estimated",
            reason=self.refused or "Coarse replay.",
            cost=self.spent / max(self.replay_cost, 1),
            seconds=self.seconds,
        )
        if self.refused or self.twin is None:
            return Counterfactual(self.stage.name, None, trust)
        # Integer buffers, such as counts of batches, have no difference to carry.
        weights = {
            name: self.without.model[name] if tensor.is_floating_point() else tensor
            for name, tensor in final.model.items()
        }
        travels = tuple(self.travels)
        twins = Twins(self.factual.model, self.twin.model, self.sampling, travels, self.partial)
        return Counterfactual(self.stage.name, weights, trust, twins)


def choose_plan(run: Run, stage: Stage, budget: float) -> Plan:
    """Merging and thinning for one stage that together keep within the budget.

    The budget is met for all stages of the run together; short stages may cost a little more.
    Where the weights moved straight, steps are merged and batches stay almost whole; where they
    zigzagged (hard training, or near the edge of stability) merging is unsafe, and batches are
    thinned first.
    """
    # Replay runs a stage once for each stage before it, coarse replay once more: the factual twin.
    work = [later.steps * later.index for later in run.stages[1:]]
    twins = [later.steps * (later.index + 1) for later in run.stages[1:]]
    cheaper = max(1.0, sum(twins) / sum(work) / budget)
    most = _THIN_HARD.get(stage.optimizer.name, min(_THIN_HARD.values()))
    hard = hardness(stage)
    # Both are factors of cost, so hardness interpolates between them geometrically.
    thin = min(cheaper, most**hard * _THIN_GENTLE ** (1 - hard))
    merge = min(cheaper / thin, max(1.0, stage.steps / _FEWEST_STEPS))
    # What a short stage cannot merge is thinned instead, but no more than hard training allows.
    return Plan(merge, min(cheaper / merge, most))


def pass_stage(
    run: Run,
    stage: Stage,
    here: Sequence[OpenStage],
    budget: float,
    progress: ProgressCallback,
    share: Share = "",
) -> None:
    """Carry every open stage's difference through one later stage; back off where it diverges."""
    size, recorded = step_size(stage), stage.end()
    formula = without_formula(stage.optimizer) is None
    plan, left = choose_plan(run, stage, budget), list(here)
    while left:
        if _too_thin(stage, plan):  # at once, or after merging less and thinning more
            for one in left:
                one.refused = (
                    f"Coarse replay: SGD trained stage {stage.name} near the edge of stability, "
                    f"where batches as small as a budget of {budget:g} allows say nothing; raise "
                    "the budget, or use replay"
                )
            return
        began = time.perf_counter()
        factual, twins, spent = _walk(run, stage, left, plan, progress, share)
        # Attempts that diverged were paid for as well.
        for one, twin in zip(left, twins, strict=True):
            one.spent += spent / len(left)
            one.seconds += (time.perf_counter() - began) / len(left)
            if factual is not None and twin is not None:
                one.factual, one.twin = factual, twin
                one.sampling = max(one.sampling, _sampling(stage, plan))
                begin = cross_boundary(one.without, stage).model
                one.travels.append(travelled(stage, begin, factual.model, twin.model))
                one.without = transfer(recorded, factual, twin, formula)
                one.passed.leave(stage, one.without.model)
        left = [one for one, twin in zip(left, twins, strict=True) if twin is None]
        # Half as merged on batches half as large: twice the steps at the same cost.
        gentler = Plan(max(1.0, plan.merge / 2), plan.thin * min(2.0, plan.merge))
        if plan.merge == 1 or size / gentler.thin < _SMALLEST_BATCH:
            break
        plan = gentler
    for one in left:
        one.refused = (
            f"Coarse replay diverged in stage {stage.name}: a budget of {budget:g} is too small "
            "for a stable estimate; raise the budget, or use replay"
        )


def step_size(stage: Stage) -> int:
    """Examples per step, by the first one."""
    first = stage.read_steps()[_kept(stage, 0)]
    return sum(batch_size(micro.batch) for micro in first.batches or ())


def _too_thin(stage: Stage, plan: Plan) -> bool:
    unsteady = stage.optimizer.name == "SGD" and hardness(stage) >= _UNSTEADY
    return unsteady and _sampling(stage, plan) > _THINNEST


def _sampling(stage: Stage, plan: Plan) -> float:
    """Relative error of thinned gradients, averaged over the coarse steps.

    Where only some steps' batches were kept, coarse steps share them and are fewer draws.
    """
    coarse = stage.steps / plan.merge
    keep = stage.facts.keep_batches
    distinct = min(coarse, math.ceil(stage.steps / keep)) if isinstance(keep, int) else coarse
    # B/q of B examples, drawn without replacement, leave q - 1 times the variance of the mean of B.
    return math.sqrt(max(plan.thin * coarse / distinct - 1, 0.0) / coarse)


def _kept(stage: Stage, step: int) -> int:
    """The step nearest to ``step`` whose batches were kept."""
    keep = stage.facts.keep_batches
    if not isinstance(keep, int):
        return step
    # Rounding up can lead past the last step of the stage.
    return min(round(step / keep) * keep, (stage.steps - 1) // keep * keep)


def _walk(
    run: Run,
    stage: Stage,
    here: Sequence[OpenStage],
    plan: Plan,
    progress: ProgressCallback,
    share: Share = "",
) -> tuple[TrainingState | None, list[TrainingState | None], int]:
    """Run the twins through one stage; none of them affects another.

    Returns:
        The factual twin's end state; every counterfactual twin's, None for those that diverged
        (all of them where the factual one did); and how many examples' gradients were computed.
    """
    starts = [stage.start(), *(cross_boundary(one.without, stage) for one in here)]
    nothing: list[TrainingState | None] = [None] * len(here)
    spent = 0
    with same_arithmetic(stage):
        twins = [CoarseModel(run.task, stage, starts[0], share=share)]
        for one, start in zip(here, starts[1:], strict=True):
            passed = one.passed.enter(stage, start.model)
            twins.append(CoarseModel(run.task, stage, start, passed, share))
        before = CoarseModel(
            run.task, stage, starts[0], share=share
        )  # never stepped: measures the way below
        gaps = [_distance(twins[0], twin) for twin in twins[1:]]
        health = _Health()
        finite = [True] * len(here)
        kept = partial(_kept, stage)
        owners = partial(stage.objective.row_examples, run.task)
        for step in coarse_steps(stage.read_steps(), plan.merge, plan.thin, kept, owners):
            for twin in twins:
                twin.step(step)
                spent += step.examples
            health.note(step, twins[0].loss)
            finite = [
                so_far and math.isfinite(twin.loss)
                for so_far, twin in zip(finite, twins[1:], strict=True)
            ]
            progress(
                step.last / stage.steps,
                f"Coarse replay of stage {stage.name}, step {step.last} of {stage.steps}",
            )
            if health.ill or not any(finite):
                return None, nothing, spent
        # A gap that began at nearly nothing may still grow to a part of the way the stage went.
        way = _distance(twins[0], before)
        ends = [
            twin.snapshot()
            if well and _distance(twins[0], twin) <= _GROWTH * max(gap, 0.01 * way)
            else None
            for gap, twin, well in zip(gaps, twins[1:], finite, strict=True)
        ]
        return twins[0].snapshot(), ends, spent


def _distance(a: CoarseModel, b: CoarseModel) -> float:
    with torch.no_grad():
        # One call for all parameters, whose norms then make one number to fetch from the device.
        gaps = torch._foreach_sub(*([own_part(p) for p in m.parameters.values()] for m in (a, b)))
        gap = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gaps)))
        return float(gap if a.shared is None else processes.added(gap.square()).sqrt())


class _Health:
    """Compares the factual twin's loss with the loss recorded for the same steps."""

    def __init__(self) -> None:
        self._own: list[float] = []
        self._recorded: list[float] = []
        self.ill = False

    def note(self, step: CoarseStep, loss: float) -> None:
        if not math.isfinite(loss):
            self.ill = True
            return
        self._own.append(loss)
        self._recorded.append(step.middle.loss)
        # Single losses of thinned batches scatter too widely to judge by.
        recent = min(20, len(self._own))
        if recent < 5:
            return
        own = sum(self._own[-recent:]) / recent
        recorded = sum(self._recorded[-recent:]) / recent
        # The 1 gives room where the recorded loss is near zero, as is any multiple of it.
        self.ill = own > 3 * recorded + 1
