"""What coalitions take: which stages have to be trained, how often, and who shares the work.

A coalition is a bit mask over the stages of a run, as in :mod:`stagelens.replaying.coalition_tree`.
Stage j is trained once for every different set of earlier stages that a wanted coalition has, and
the recorded one of these is known: all ``2 ** M`` coalitions take ``2 ** M - 1 - M`` passes through
a stage, where leaving out one stage at a time takes ``M (M - 1) / 2``. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagelens.runs.optimizer_kinds import absent, unmergeable
from stagelens.runs.run import Run, Stage

from .durations import Pace, check_seconds, finished_after, paces
from .registry import find
from .stage_trust import REPLAY
from .task_vector import TaskVector

MOST = 6
"""Up to this many parties all coalitions are computed; beyond it, those of sampled orders."""

_COARSE = "coarse-replay"
ESTIMATORS = (REPLAY, _COARSE, TaskVector.name)
"""Those that give coalitions."""

NO_EXACT_STAGES = (
    "coalitions by coarse replay have no exact stages (--exact-stages); raise the budget, or use "
    "replay, which trains what coalitions have in common only once"
)


def first_missing(mask: int) -> int:
    """The index of the first stage that did not happen; that after the last where all did."""
    return (~mask & (mask + 1)).bit_length() - 1


def recorded_end(mask: int) -> int:
    """The recorded coalition that ends with the same stage: everybody up to there."""
    return (1 << mask.bit_length()) - 1


def trained(mask: int, stages: Sequence[Stage]) -> list[Stage]:
    """The stages of a coalition that have to be trained again: those after one that is missing."""
    first = first_missing(mask)
    return [stage for stage in stages[first + 1 :] if mask >> stage.index & 1]


def passes(masks: Iterable[int]) -> set[tuple[int, int]]:
    """The stages to be trained for some coalitions, each with the coalition that it starts from.

    Returns:
        Index of a stage, and the mask of the stages before it that happened.
    """
    found = set()
    for mask in masks:
        for index in range(first_missing(mask) + 1, mask.bit_length()):
            if mask >> index & 1:
                found.add((index, mask & ((1 << index) - 1)))
    return found


def refusal(run: Run, mask: int, estimator: str) -> str:
    """Why a coalition's model cannot be had; empty where it can, as far as is known beforehand."""
    first = first_missing(mask)
    merges = [stage for stage in run.stages if stage.facts.merge is not None]
    if merges and trained(mask, run.stages):
        return f"{merges[0].merged}; shares and switches go along a line of stages"
    if estimator == TaskVector.name:
        return ""
    for stage in run.stages[first + 1 :]:
        if (problem := stage.facts.boundary.problem) is not None:
            return (
                f"what stage {stage.name!r} would have started from without an earlier stage is "
                f"not known: {problem}"
            )
    # A checkpoint says nothing of what first appears in a later one.
    if own := [stage for stage in run.stages[first:] if stage.appeared]:
        return own[0].not_recorded
    for stage in trained(mask, run.stages):
        if why := _untrainable(stage, estimator):
            return why
    return ""


def _untrainable(stage: Stage, estimator: str) -> str:
    """Why a stage cannot be trained again by an estimator; empty where it can."""
    if estimator == REPLAY or stage.facts.problem is not None:
        if why := stage.no_replay:
            return why
        gone = absent(stage.optimizer)
        return "" if gone is None else f"stage {stage.name!r} cannot be replayed here: {gone}"
    if stage.steps == 0 or stage.facts.keep_batches == "none":
        return (
            f"stage {stage.name!r} cannot be replayed coarsely, because none of its batches were "
            'kept; record it with keep_batches="all" (or every n-th), or use --estimator '
            "task-vector"
        )
    if stage.no_data_set:
        return stage.no_data_set
    why_not = absent(stage.optimizer) or unmergeable(stage.optimizer)
    if why_not is not None:
        return (
            f"stage {stage.name!r} cannot be replayed coarsely: {why_not}. Use --estimator replay, "
            "which makes the optimiser's own steps, or task-vector"
        )
    return ""


@dataclass(frozen=True)
class Cost:
    """What coalitions take.

    Attributes:
        coalitions: How many models are wanted.
        recorded: How many of them are read off the recording.
        passes: How often a stage is trained.
        steps: Updates in these passes; of a coarse replay, as many as it stands for.
        replays: The steps, in trainings of the whole run.
        seconds: Expected on this machine, with the checks of replay and without measuring; None
            where nothing says how long a stage takes.
        processes: How many share the work.
    """

    coalitions: int
    recorded: int
    passes: int
    steps: int
    replays: float
    seconds: float | None
    processes: int = 1


def cost(
    run: Run,
    masks: Iterable[int],
    estimator: str,
    settings: Mapping[str, Any] | None = None,
    processes: int = 1,
) -> Cost:
    """What coalitions of single stages take that are not refused.

    Args:
        run: The run.
        masks: The coalitions.
        estimator: How they are obtained.
        settings: Of the estimator.
        processes: How many share the work.
    """
    wanted = [mask for mask in masks if not refusal(run, mask, estimator)]
    stages = run.stages
    recorded = [mask for mask in wanted if not trained(mask, stages)]
    needed = set() if estimator == TaskVector.name else passes(wanted)
    steps = sum(stages[index].steps for index, _ in needed)
    whole = sum(stage.steps for stage in stages)
    known = paces(run).stages
    if not needed:
        seconds: float | None = 0.0
    elif estimator == _COARSE:
        budget = float({**find(_COARSE).default_settings(), **(settings or {})}["budget"])
        seconds = _coarse_seconds(known, needed, budget)
    else:
        seconds = _replay_seconds(known, wanted, processes)
    replays = steps / whole if whole else 0.0
    return Cost(len(wanted), len(recorded), len(needed), steps, replays, seconds, processes)


def _coarse_seconds(
    known: Sequence[Pace], needed: Iterable[tuple[int, int]], budget: float
) -> float | None:
    """Seconds of coarse passes: each stage's factual twin serves all that go through it."""
    total = 0.0
    for index, pace in enumerate(known):
        count = sum(own == index for own, _ in needed)
        if not count:
            continue
        if (timed := pace.cheap.get(budget)) is not None:
            total += timed[0] + (1 + count) * timed[1]
        elif pace.seconds is None:
            return None
        else:
            total += budget * (1 + count) * pace.seconds
    return total


def _replay_seconds(known: Sequence[Pace], masks: Sequence[int], processes: int) -> float | None:
    """Seconds of replays and their checks, shared out over processes."""
    needed = passes(masks)
    if any(known[index].seconds is None for index, _ in needed):
        return None
    first = min((first_missing(mask) for mask in masks), default=len(known))
    checks = list(check_seconds(known, first).values())
    each = [pass_seconds(known, part) for part in pieces(masks, known, processes)]
    starts = [0.0] * processes
    return finished_after(checks, starts) + finished_after(each, starts)


def pass_seconds(known: Sequence[Pace], masks: Iterable[int]) -> float:
    """Seconds of the passes of some coalitions by one process.

    Where replays are not bit for bit, the recorded stages are repeated after each first one that is
    missing. A stage whose seconds are not known counts by its steps.
    """
    masks = list(masks)
    total = sum(_seconds(known[index]) for index, _ in passes(masks))
    for first in {first_missing(mask) for mask in masks}:
        if any(pace.twice for pace in known[first + 1 :]):
            total += sum(_seconds(pace) for pace in known[first + 1 :])
    return total


def _seconds(pace: Pace) -> float:
    return 1e-3 * pace.steps if pace.seconds is None else pace.seconds


def pieces(masks: Sequence[int], known: Sequence[Pace], count: int) -> list[list[int]]:
    """Coalitions in groups for ``count`` processes, so that all are done as soon as can be.

    A group shares its passes. Splitting one in two may repeat the passes that its coalitions have
    in common.

    Args:
        masks: Coalitions of single stages.
        known: What each stage takes.
        count: How many processes there are.
    """
    groups = [list(masks)]
    best, soonest = groups, _finished(groups, known, count)
    # A few groups for each process are enough to even out the work.
    while count > 1 and len(groups) < 4 * count:
        largest = max(groups, key=lambda group: pass_seconds(known, group))
        parts = _split(largest)
        if len(parts) < 2:
            break
        groups = [*(group for group in groups if group is not largest), *parts]
        if (end := _finished(groups, known, count)) < 0.98 * soonest:
            best, soonest = groups, end
    return best


def _finished(groups: Sequence[Sequence[int]], known: Sequence[Pace], count: int) -> float:
    return finished_after([pass_seconds(known, group) for group in groups], [0.0] * count)


def _split(masks: Sequence[int]) -> list[list[int]]:
    """A group by the first stage that only some of its coalitions have."""
    differing = 0
    for mask in masks:
        differing |= mask ^ masks[0]
    bit = differing & -differing
    parts = [[m for m in masks if m & bit], [m for m in masks if not m & bit]]
    return [part for part in parts if part]
