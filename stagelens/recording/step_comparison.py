"""What a training loop did at a step against what the step does when it is run again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stagelens.contracts import RecordingError
from stagelens.replaying.step import AUTOCAST, OF_KERNELS, StepRules
from stagelens.runs.states import TrainingState, difference_of

_TOLERANCE = 1e-4
"""Relative; far above rounding in float32, far below the effect of a forgotten setting."""
_OF_ONE_TENSOR = 1e-2
"""Relative, of one parameter's gradient: its rounding goes with the terms that it sums."""


@dataclass(frozen=True)
class At:
    """Names a step in messages.

    Attributes:
        stage: The stage's name.
        step: Number within the stage, from 1.
        eps: What rounding leaves of a number of the model's coarsest dtype, relative.
        loss: What the stage's loss is called.
        unseen: First of the steps run again before it whose gradients were not compared; 0 if none.
    """

    stage: str
    step: int
    eps: float = 0.0
    loss: str = "task.loss(model, batch)"
    unseen: int = 0

    @property
    def minimised(self) -> str:
        """What the loop should minimise, in words."""
        return "the loss of the task" if self.loss == At.loss else self.loss

    def says(self, what: str) -> str:
        """The beginning of a message about something of the step."""
        if self.step == 1:
            return f"{what} of the first step"
        return f"step {self.step} of stage {self.stage!r}: {what}"

    @property
    def or_before(self) -> str:
        """The end of a message about what gradients of steps before may have caused as well."""
        if not self.unseen:
            return ""
        return (
            f". Or gradients were changed before the optimiser received them, from step "
            f"{self.unseen} on"
        )

    def tolerance(self, rules: StepRules) -> float:
        """Relative. Autocast leaves fewer digits, and a GPU need not round the same every time."""
        # 4: a loss that is a sum of a few roundings.
        least = max(_TOLERANCE, 4 * self.eps, OF_KERNELS if rules.kernels else 0.0)
        if self.step == 1 or rules.precision not in AUTOCAST:
            return least
        return max(least, torch.finfo(AUTOCAST[rules.precision]).eps)


def check_losses(own: Sequence[float], reported: Sequence[float], rules: StepRules, at: At) -> None:
    """Compare the task's losses with those that the loop reported, divided or not.

    Raises:
        RecordingError: They differ.
    """
    for number, (loss, given) in enumerate(zip(own, reported, strict=True)):
        # The training diverged, and so did its replay.
        if loss == given or (math.isnan(loss) and math.isnan(given)):
            continue
        # Loops report the loss either as it is or as they backpropagate it, divided.
        candidates = (loss, loss / rules.accumulation)
        # Absolute below 1, since rounding is large relative to a loss near zero.
        near = at.tolerance(rules) * max(1.0, abs(given))
        if not any(abs(candidate - given) <= near for candidate in candidates):
            where = f" of micro-batch {number + 1}" if len(own) > 1 else ""
            raise RecordingError(
                f"{at.says(f'the loss{where}')} is {given:.6g}, but {at.loss} "
                f"gives {loss:.6g} for the same model and batch. Train on {at.minimised}, or name "
                "what the loop minimises (objective=function); pass the batch that it was computed "
                "from, and call stage.step(batch, loss) right after optimizer.step(); randomness "
                "outside torch's own generator, or drawn before the model is called, cannot be "
                f"replayed{at.or_before}"
            )


@dataclass(frozen=True)
class _Sums:
    """Squared norms of a gradient run again, of the one seen, and of their difference."""

    own: float
    seen: float
    gap: float
    dot: float

    @classmethod
    def of(cls, own: Tensor, seen: Tensor) -> _Sums:
        # float64: half precision overflows when squared, and the squares are compared to 1e-8.
        a, b = own.double(), seen.double()
        squares = (a.square(), b.square(), (a - b).square(), a * b)
        return cls(*torch.stack([s.sum() for s in squares]).tolist())


def check_lengths(own: Mapping[str, float], seen: Mapping[str, float], rules: StepRules) -> None:
    """Compare norms of the gradients that several processes made together, by parameter.

    Raises:
        RecordingError: They differ by more than rounding.
    """
    whole = math.hypot(*seen.values())
    least = max(_TOLERANCE, OF_KERNELS if rules.kernels else 0.0)
    if rules.precision in AUTOCAST:
        least = max(least, torch.finfo(AUTOCAST[rules.precision]).eps)
    for name, length in seen.items():
        found = own.get(name, 0.0)
        # Not ``>``, which NaN would pass; a training that diverged at once did so here too.
        if abs(found - length) <= _OF_ONE_TENSOR * length + least * whole:
            continue
        if math.isfinite(found) or math.isfinite(length):
            raise RecordingError(
                f"the gradient of {name} at the first step has a norm of {length:.6g}, but the "
                f"mean over the {rules.processes} processes of their own has {found:.6g}; let "
                "DistributedDataParallel average gradients, change them nowhere else, and declare "
                "clipping and accumulation (clip_norm=MAX_NORM, accumulation=G)"
            )


def check_gradients(
    own: Mapping[str, Tensor],
    seen: Mapping[str, Tensor],
    rules: StepRules,
    micro_batches: int,
    at: At,
) -> bool:
    """Compare gradients as the optimiser received them; whether they are the same to the last bit.

    Args:
        own: Of the step run again; may have more parameters.
        seen: Of the training loop.
        rules: Of the stage.
        micro_batches: How many the step had.
        at: The step.

    Raises:
        RecordingError: They differ; says by how much, or where most.
    """
    own, seen = ({n: g.to_dense() for n, g in each.items()} for each in (own, seen))
    if all(torch.equal(own[name], gradient) for name, gradient in seen.items()):
        return True  # the usual case, and quicker than sums
    sums = {name: _Sums.of(own[name], gradient) for name, gradient in seen.items()}
    own_square, seen_square, gap_square, dot = (
        sum(getattr(one, key) for one in sums.values()) for key in ("own", "seen", "gap", "dot")
    )
    # Gradients that are not finite cannot be compared; a training that diverges is still recorded.
    if not math.isfinite(gap_square):
        return False
    eps = max(torch.finfo(AUTOCAST.get(rules.precision, g.dtype)).eps for g in seen.values())
    # A small gradient may be what is left of large terms: these round with the whole gradient.
    rounding = (10 * eps) ** 2 * seen_square
    of_one = 10 * OF_KERNELS if rules.kernels else _OF_ONE_TENSOR
    apart = any(one.gap > max(of_one**2 * one.seen, rounding) for one in sums.values())
    if gap_square <= at.tolerance(rules) ** 2 * seen_square and not apart:
        return False
    # Gradients that only differ in length were scaled: by clipping, accumulation or a factor.
    scale = math.sqrt(seen_square / own_square) if own_square else math.inf
    aligned = own_square > 0 and dot > 0.9999 * math.sqrt(own_square * seen_square)
    if aligned and abs(scale - 1) >= 1e-3:  # closer to 1, the factor would say nothing
        raise RecordingError(
            f"{at.says('the gradients')} are {scale:.4g} times those of the recorded settings "
            f"(clip_norm={rules.clip_norm}, accumulation={rules.accumulation}): "
            + _why_scaled(scale, rules, micro_batches, at)
        )
    worst = max(sums, key=lambda name: sums[name].gap)
    share = math.sqrt(sums[worst].gap / sums[worst].own) if sums[worst].own else math.inf
    where = f"largest deviation in {worst}: {share:.2g} of its norm"
    added = (
        "something was added to them or to the loss (a penalty, noise, gradients of an update "
        f"before); put it into {at.minimised}, or into the optimiser's weight_decay"
    )
    if at.step == 1:
        raise RecordingError(
            f"the gradients of the first step are not those of {at.loss}, although "
            f"the loss agrees ({where}): {added}"
        )
    raise RecordingError(
        f"{at.says('the gradient that the optimiser received')} is not that of the recorded batch "
        f"and loss ({where}), although the first step's was: the loop changed within the stage, or "
        f"{added}"
    )


def _why_scaled(scale: float, rules: StepRules, micro_batches: int, at: At) -> str:
    exponent = math.log2(scale) if 0 < scale < math.inf else 0.0
    if abs(exponent) > 6 and abs(exponent - round(exponent)) < 1e-6:
        return (
            "a power of two, as a GradScaler multiplies losses by; train in bfloat16 or float32 "
            "without a scaler, since replay reproduces neither its factors nor its skipped updates"
        )
    if micro_batches < rules.accumulation:
        return (
            f"the step had {micro_batches} of {rules.accumulation} micro-batches; where the loop "
            "divides their losses by another number than the accumulation, pass it, "
            "stage.step(batch, loss, divisor)"
        )
    return (
        "declare clipping with stage(..., clip_norm=MAX_NORM) and gradient accumulation with "
        f"stage(..., accumulation=G), or backpropagate {at.minimised} unscaled"
    )


def check_update(
    before: Mapping[str, Tensor],
    own: TrainingState,
    after: TrainingState,
    at: At,
    beside: bool = False,
) -> None:
    """Compare the states that the optimiser leaves, given the same gradient.

    Args:
        before: Parameters and buffers before the step.
        own: After the step run again.
        after: After the training loop's.
        at: The step.
        beside: Whether another device ran it again. Most of a small update is rounded away, so that
            one number that is rounded otherwise is much of what is left.

    Raises:
        RecordingError: They differ; names where most.
    """
    check = UpdateCheck(at, beside)
    check.add(own, after)
    check.finish(lambda: moved(before, after.model))


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """The squared norm of what a step changed in some tensors."""
    return sum(
        float(difference_of(tensor, before[name].to(tensor.device)).square().sum())
        for name, tensor in after.items()
        if tensor.is_floating_point()
    )


class UpdateCheck:
    """:func:`check_update` of some tensors after others.

    Args:
        at: The step.
        beside: See there.
    """

    def __init__(self, at: At, beside: bool = False) -> None:
        self._at = at
        self._tolerance = max(OF_KERNELS, at.eps**0.5) if beside else _TOLERANCE
        self._gap = 0.0
        self._worst = ("", -1.0)
        self._other_state: list[str] = []

    def add(self, own: TrainingState, after: TrainingState) -> None:
        """Compare some tensors, with what the optimiser keeps of them."""
        for name, tensor in after.model.items():
            # Counters, such as num_batches_tracked, would dominate the norm of the change.
            if not tensor.is_floating_point() or torch.equal(tensor, own.model[name]):
                continue
            difference = float(difference_of(own.model[name], tensor).square().sum())
            self._gap += difference
            self._worst = max(self._worst, (name, difference), key=lambda pair: pair[1])
        for name in own.optimizer.keys() | after.optimizer.keys():
            mine, theirs = own.optimizer.get(name, {}), after.optimizer.get(name, {})
            same = mine.keys() == theirs.keys()
            if not same or not all(_close(mine[k], theirs[k], self._tolerance) for k in mine):
                self._other_state.append(name)

    def finish(self, change: Callable[[], float]) -> None:
        """Judge what was compared by how far the step moved the model.

        Args:
            change: :func:`moved` of all that was compared; asked only where something differs.

        Raises:
            RecordingError: See :func:`check_update`.
        """
        at = self._at
        if math.isfinite(self._gap) and self._gap > self._tolerance**2 * change():
            if at.step == 1:
                raise RecordingError(
                    "the first update is not the optimiser's own (largest difference in "
                    f"{self._worst[0]}): something else changed the model during the step; leave "
                    "parameters to the optimiser"
                )
            raise RecordingError(
                f"{at.says('the update')} is not the optimiser's own (largest difference in "
                f"{self._worst[0]}): something else changed the model, or the optimiser's state, "
                "between the step before and the end of this one; leave both to the optimiser"
                f"{at.or_before}"
            )
        if self._other_state:
            raise RecordingError(
                f"{at.says('the state of the optimiser')} for {min(self._other_state)} is not what "
                "the step before left and this gradient makes of it: it was changed by hand; load "
                "or reset it between stages"
            )


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if torch.equal(a, b.to(a.device)):
        return True
    gap = float((a.double() - b.to(a.device).double()).norm())
    return not math.isfinite(gap) or gap <= tolerance * float(b.double().norm())
