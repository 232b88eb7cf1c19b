"""What a gate should take, before it begins; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stagelens.contracts.scorer import SCORE
from stagelens.estimators.durations import Pace, paces
from stagelens.runs.run import Run
from stagelens.trust.comparing import comparable_set

from .asked import Asked
from .blame import counterparts
from .finals import draws_left, shared_stages


@dataclass(frozen=True)
class GateCost:
    """What a gate should take.

    Attributes:
        trainings: Redraws that have yet to be trained, of both recipes.
        seconds: What they take; None where no pace is known.
        exchanges: Stages that are replayed or left out where a slice got worse.
        more: Seconds that these take; None where no pace is known.
    """

    trainings: int
    seconds: float | None
    exchanges: int
    more: float | None


def gate_cost(old: Run, new: Run, asked: Asked, repeats: tuple[bool, bool]) -> GateCost:
    """What a gate should take, but for forward passes.

    Args:
        old: The run that is compared with.
        new: The run that is judged.
        asked: What is asked.
        repeats: Whether further recorded runs of the old, and of the new recipe stand in for
            redraws.

    Raises:
        StageLensError: The runs have no such set in common.
    """
    shared = shared_stages(old, new)
    if shared == len(old.stages) == len(new.stages):
        return GateCost(0, 0.0, 0, 0.0)
    name = new.evaluation_set(asked.set_name).name
    of_old, of_new = paces(old).stages, paces(new).stages
    scores_alone = bool(asked.behaviours) and all(b.startswith(SCORE) for b in asked.behaviours)
    trainings, seconds = 0, [0.0]
    if asked.drops_of == "recipes" and not scores_alone:
        for run, pace, given in zip((old, new), (of_old, of_new), repeats, strict=True):
            own = run.evaluation_set(comparable_set(new, name, run))
            left = 0 if given else draws_left(run, own, asked.draws, shared)
            trainings += left
            if left:
                seconds.append(left * _sum(pace[shared:]))
    pairs = counterparts(old, new)
    own_pace = {each.stage: each for each in of_old}
    looked_at, more = new.stages[shared:] if asked.stages else [], [0.0]
    for stage in looked_at:
        # The old run's stage where there is one, and all later stages of the new run.
        first = [] if isinstance(pairs[stage.name], str) else [own_pace[stage.name]]
        more.append(_sum([*first, *of_new[stage.index + 1 :]]))
    return GateCost(trainings, _known(seconds), len(looked_at), _known(more))


def _sum(stages: Sequence[Pace]) -> float:
    """Seconds of stages; NaN where those of one are not known."""
    return sum(float("nan") if each.seconds is None else each.seconds for each in stages)


def _known(seconds: Sequence[float]) -> float | None:
    total = sum(seconds)
    return None if total != total else total
