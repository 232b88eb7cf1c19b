"""``unrolled-jump``, ``unrolled-scale``: the paper's first-order estimator, exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from stagelens.contracts import ProgressCallback
from stagelens.derivatives.curvature_kinds import Curvature
from stagelens.runs.run import Run, Stage

from .durations import Pace, seconds_without_each
from .hardness import hardness
from .protocol import Counterfactual, Estimator
from .stage_trust import StageTrust

if TYPE_CHECKING:
    from stagelens.derivatives.forward_mode import Reading, StageTangent
    from stagelens.runs.states import Weights

_TANGENT, _NEGLECTED = 3.0, 2.0
"""Cost of a step with its tangent, in plain steps, and of following what that neglects."""

_LARGEST_GROWTH = 1.75
"""A derivative longer than this many times the stage's own change is refused. Chosen on digits
(seeds 0 to 2) and fashion (0, 1): of 18 longer ones all but one had a relative error above 3 in the
margin, and the longest good one had 1.5. Shorter ones can be wrong too: only a replay can tell."""


_OTHER_CURVATURE = (
    "; second derivatives are not the exact ones, so what is called the neglected second-order "
    "term here also holds what that leaves out to first order"
)


class _Unrolled(Estimator):
    """final - derivative, in the weights and the floating buffers.

    Costs more than a replay: per later step one gradient, shared by the stages that are requested
    together, and one Hessian-vector product per stage, counted as two gradients. So ``cost`` is 3
    for the jump, as if the stage were requested alone. To follow the neglected second-order term
    takes another product, and a gradient at a few steps: 5 and a little.

    Args:
        dtype: ``"float32"`` or ``"float64"``; None is the dtype of the recording.
        curvature: What stands for second derivatives, see :mod:`stagelens.derivatives.products`.
        neglected: Whether to estimate the second-order term that it neglects.
    """

    _reading: Reading
    _sentence: str
    _plain_sgd = False
    revision = 4

    def __init__(
        self,
        dtype: Literal["float32", "float64"] | None = None,
        curvature: Curvature = "exact",
        neglected: bool = True,
    ) -> None:
        self._dtype, self._curvature = dtype, curvature
        self._neglected = neglected
        if curvature != "exact":
            self._sentence += _OTHER_CURVATURE
        # Defaults are left out: spelled out or not, they share one cache key and one table.
        self.settings = {
            key: value
            for key, value in (("dtype", dtype), ("curvature", curvature))
            if value not in (None, "exact")
        }
        if not neglected:
            self.settings["neglected"] = False

    def counterfactuals(
        self, run: Run, stages: Sequence[Stage], progress: ProgressCallback
    ) -> Iterator[Counterfactual]:
        """See :class:`~stagelens.estimators.protocol.Estimator`."""
        from stagelens.derivatives.forward_mode import final_tangents  # torch
        from stagelens.derivatives.second_order import PROBES
        from stagelens.derivatives.trajectory import DerivativeOptions

        options = DerivativeOptions(self._dtype, self._curvature, self._plain_sgd)
        # Before any work: a pass costs more than a replay, and here its result would be refused.
        edge = _edge_of_stability(run)
        earlier = [s for s in stages if s.index < run.last.index and s.index not in edge]
        tangents = {}
        if earlier:
            # Of another optimiser than the recorded one, the neglected term says nothing.
            defects = PROBES if self._neglected and not self._plain_sgd else 0
            tangents = final_tangents(run, earlier, self._reading, options, progress, defects)
        final = run.last.end().model
        for stage in stages:
            if stage.name in tangents:
                yield self._counterfactual(stage, tangents[stage.name], final)
            elif stage.index in edge:
                yield self._refused(stage, edge[stage.index])
            else:
                yield self._without_last(stage)

    def _without_last(self, stage: Stage) -> Counterfactual:
        trust = StageTrust(
            stage=stage.name,
            estimator=self.name,
            trust="exact",
            reason="The last stage's start is the model without it.",
            deviation=0.0,
            expected_error=0.0,
        )
        return Counterfactual(stage.name, stage.start().model, trust)

    def _refused(
        self, stage: Stage, reason: str, tangent: StageTangent | None = None
    ) -> Counterfactual:
        trust = StageTrust(
            stage=stage.name,
            estimator=self.name,
            trust="refused",
            reason=f"{reason}: training amplifies small changes too much for a derivative to "
            "follow; use coarse-replay or replay.",
            cost=tangent.cost if tangent else 0.0,
            seconds=tangent.seconds if tangent else 0.0,
        )
        return Counterfactual(stage.name, None, trust)

    def _counterfactual(
        self, stage: Stage, tangent: StageTangent, final: Weights
    ) -> Counterfactual:
        trust = StageTrust(
            stage=stage.name,
            estimator=self.name,
            trust="estimated",
            reason=f"{self._sentence}.",
            cost=tangent.cost,
            seconds=tangent.seconds,
        )
        if not tangent.growth <= _LARGEST_GROWTH:  # NaN too
            grown = (
                f"{tangent.growth:.3g} times as long as the stage's own change"
                if math.isfinite(tangent.growth)
                else "no finite number"
            )
            return self._refused(stage, f"The first-order change is {grown}", tangent)
        from .subtraction import subtract_tangent  # torch

        weights, corrected = subtract_tangent(final, tangent.values), None
        if (more := tangent.neglected) is not None:
            whole = {name: tensor + more[name] for name, tensor in tangent.values.items()}
            corrected = subtract_tangent(final, whole)
        return Counterfactual(stage.name, weights, trust, corrected=corrected)


_LONG = 50
"""Through fewer steps than this a derivative holds, however large the steps are."""


def _edge_of_stability(run: Run) -> dict[int, str]:
    """Stages, by index, before one that SGD trained near the edge of stability, and the reason.

    On the benchmark's seeds 0 to 2 such derivatives were 1 to 16 times as wrong as the effect is
    large, although most were no longer than the stage's own change.
    """
    found: dict[int, str] = {}
    for later in run.stages[1:]:
        long = later.steps >= _LONG
        if long and later.optimizer.name == "SGD" and hardness(later) >= 1:
            reason = f"Stage {later.name} trained near the edge of stability"
            found = {index: reason for index in range(later.index)}
    return found


class UnrolledJump(_Unrolled):
    """The stage's change, carried to first order through the later steps."""

    name = "unrolled-jump"
    title = "Unrolled, by the jump"
    preference = 10
    _reading = "jump"
    _sentence = "First order: the stage's change carried through the later updates"

    @classmethod
    def seconds(cls, stages: Sequence[Pace], settings: Mapping[str, Any]) -> float | None:
        """Seconds for a tangent along every later stage."""
        once = seconds_without_each(stages)
        each = _TANGENT + (0.0 if settings.get("neglected") is False else _NEGLECTED)
        return None if once is None else each * once


class UnrolledScale(_Unrolled):
    """The derivative in the stage's strength, at full strength, times the whole strength.

    Args:
        dtype: ``"float32"`` or ``"float64"``; None is the dtype of the recording.
        curvature: What stands for second derivatives, see :mod:`stagelens.derivatives.products`.
        neglected: Whether to estimate the second-order term that it neglects.
        as_plain_sgd: Treat the optimiser as plain SGD; shows in benchmarks what ignoring the
            optimiser costs (arXiv 2605.18814), and has no other use.
    """

    name = "unrolled-scale"
    title = "Unrolled, by the scale"
    preference = 20
    _reading = "scale"
    _sentence = "First order: the derivative in the stage's strength"

    @classmethod
    def seconds(cls, stages: Sequence[Pace], settings: Mapping[str, Any]) -> float | None:
        """Seconds for a tangent along the stage itself and every later one."""
        once = seconds_without_each(stages)
        if once is None:
            return None
        own = sum(pace.seconds or 0.0 for pace in stages[:-1])
        more = 0.0 if settings.get("neglected") is False else _NEGLECTED * once
        return _TANGENT * (once + own) + more

    def __init__(
        self,
        dtype: Literal["float32", "float64"] | None = None,
        curvature: Curvature = "exact",
        as_plain_sgd: bool = False,
        neglected: bool = True,
    ) -> None:
        super().__init__(dtype, curvature, neglected)
        self._plain_sgd = as_plain_sgd
        if as_plain_sgd:
            self.settings = {**self.settings, "as_plain_sgd": True}
