"""Counterfactuals and coalitions shared out over helpers, where that is sooner done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stagelens.compute import cores, helpers, memory
from stagelens.compute.helpers import Helpers, Item
from stagelens.contracts import Progress, ProgressCallback
from stagelens.runs.run import Run, Stage

from .coalition_plan import first_missing, pass_seconds, pieces
from .durations import STARTING, finished_after, paces
from .protocol import Estimator

_BASE = 500_000_000
"""Bytes that a process takes for its libraries."""
_SAVED = 2.0
"""Seconds that have to be saved for helpers to be started."""


def best_count(seconds: Sequence[float], most: int, running: int) -> int:
    """How many processes to use: the fewest that are about as soon done as any number is.

    Args:
        seconds: What each piece of the work takes.
        most: Largest number.
        running: How many of them have started already.
    """
    ends = {
        count: finished_after(seconds, [0.0 if n < running else STARTING for n in range(count)])
        for count in range(1, most + 1)
    }
    return _fewest(ends, running)


def _fewest(ends: Mapping[int, float], running: int) -> int:
    """The smallest number of processes that is about as soon done as any, and worth its start."""
    soonest = min(ends.values())
    best = next(count for count, end in ends.items() if end <= 1.05 * soonest)
    return best if best <= running or ends[1] - ends[best] >= _SAVED else 1


def _threads(stages: Sequence[Stage]) -> int:
    """The most threads that any of these stages was recorded with."""
    return max(stage.environment.threads for stage in stages)


def _most(run: Run, estimator: Estimator, stages: Sequence[Stage]) -> int:
    """How many processes the cores and the memory of this machine take, each as recorded."""
    later = run.stages[min(stage.index for stage in stages) + 1 :]
    return room(later, estimator.memory(later))


def room(later: Sequence[Stage], needed: int) -> int:
    """How many processes of so many bytes the cores and the memory take, each as recorded."""
    by_cores = cores.usable() // _threads(later)
    by_memory = 1 + (memory.available() - needed) // (needed + _BASE)
    return max(1, min(by_cores, by_memory))


def _seconds(run: Run, stages: Sequence[Stage]) -> float:
    """What running these stages once takes, as far as it was timed or recorded."""
    timed = {pace.stage: pace.seconds for pace in paces(run).stages}
    # Of a stage whose seconds are not known, too few: nothing is started for its sake.
    return sum(timed[stage.name] or 1e-3 * stage.steps for stage in stages)


def _pieces(
    run: Run, estimator: Estimator, stages: Sequence[Stage], checks: Sequence[Stage]
) -> tuple[list[Item], list[Item]]:
    """What is to be prepared, and the counterfactuals, by the seconds that each takes."""
    how = {"estimator": estimator.name, "settings": dict(estimator.settings)}
    first = [Item({"check": s.name, **how}, _seconds(run, [s])) for s in checks]
    later = [(s, run.stages[s.index + 1 :]) for s in stages]
    return first, [Item({"stage": s.name, **how}, _seconds(run, trained)) for s, trained in later]


def processes_for(run: Run, estimator: Estimator, stages: Sequence[Stage]) -> int:
    """How many processes would share these counterfactuals: 1 where no helper is worth its start.

    Args:
        run: The run.
        estimator: Computes the counterfactuals.
        stages: Those to leave out; the last stage is not among them.
    """
    allowed = helpers.of(run.path)
    if allowed is None:
        return 1
    checks = estimator.unprepared(run, stages) if estimator.helped else []
    return _count(run, estimator, stages, checks, allowed.asked, 1 + len(allowed.started))


def processes_of_a_command(run: Run, estimator: Estimator, stages: Sequence[Stage]) -> int:
    """:func:`processes_for` of a command that has yet to be started; does not import torch."""
    unchecked = {pace.stage for pace in paces(run).stages if pace.check}
    later = run.stages[min((stage.index for stage in stages), default=0) + 1 :]
    checks = [stage for stage in later if stage.name in unchecked]
    return _count(run, estimator, stages, checks, helpers.asked(), 1)


def _count(
    run: Run,
    estimator: Estimator,
    stages: Sequence[Stage],
    checks: Sequence[Stage],
    asked: int | None,
    running: int,
) -> int:
    if asked == 1 or not estimator.helped or not stages:
        return 1
    later = run.stages[min(stage.index for stage in stages) + 1 :]
    # On a GPU, processes would take turns.
    if any(s.facts.environment is None or s.environment.device != "cpu" for s in later):
        return 1
    first, then = _pieces(run, estimator, stages, checks)
    widest = max(len(first), len(then))
    count = asked or best_count(
        [item.cost for item in (*first, *then)],
        max(running, min(_most(run, estimator, stages), widest)),
        running,
    )
    return min(count, widest)


def share_out(
    run: Run,
    estimator: Estimator,
    stages: Sequence[Stage],
    own: Callable[[Mapping[str, Any], ProgressCallback], None],
    progress: ProgressCallback,
) -> bool:
    """Have helpers do a part of the work, if there may be any and all is done sooner with them.

    Args:
        run: The run.
        estimator: Computes the counterfactuals.
        stages: Those to leave out; the last stage is not among them.
        own: Does one piece of the work in this process; takes a message as helpers do.
        progress: Called for the work of all.

    Returns:
        Whether that was so. Then every counterfactual that could be computed is in the cache.
    """
    allowed = helpers.of(run.path)
    count = processes_for(run, estimator, stages)
    if allowed is None or count == 1:
        return False
    first, then = _pieces(run, estimator, stages, estimator.unprepared(run, stages))
    later = run.stages[min(stage.index for stage in stages) + 1 :]
    _shared(allowed, count, _threads(later), (first, then), own, progress)
    return True


def _shared(
    allowed: Helpers,
    count: int,
    threads: int,
    rounds: tuple[Sequence[Item], Sequence[Item]],
    own: Callable[[Mapping[str, Any], ProgressCallback], None],
    progress: ProgressCallback,
) -> None:
    """Do two rounds of work by so many processes, the second once the first is done."""
    first, then = rounds
    allowed.start(count - 1, threads)
    overall = Progress(progress)
    share = sum(item.cost for item in first) / (sum(i.cost for i in (*first, *then)) or 1.0)
    for items, part in ((first, overall.part(0.0, share)), (then, overall.part(share, 1.0))):
        allowed.share(items, lambda item, report: own(item.message, report), part)


def share_coalitions(
    run: Run,
    estimator: Estimator,
    masks: Sequence[int],
    message: Mapping[str, Any],
    own: Callable[[Mapping[str, Any], ProgressCallback], None],
    progress: ProgressCallback,
) -> bool:
    """:func:`share_out` of coalitions, in groups that share what they have in common.

    Args:
        run: The run.
        estimator: Computes them.
        masks: Coalitions of single stages.
        message: What a helper needs to know beside them.
        own: Does one piece of the work in this process; takes a message as helpers do.
        progress: Called for the work of all.

    Returns:
        Whether it was shared. Then every coalition that could be computed is stored.
    """
    allowed = helpers.of(run.path)
    if allowed is None or allowed.asked == 1 or not estimator.helped or not masks:
        return False
    first = min(first_missing(mask) for mask in masks)
    later = run.stages[first + 1 :]
    # On a GPU, processes would take turns.
    if any(s.facts.environment is None or s.environment.device != "cpu" for s in later):
        return False
    running = 1 + len(allowed.started)
    most = max(running, allowed.asked or _most(run, estimator, run.stages[first:]))
    known = paces(run).stages
    # The work of one process is the same for all of these, but for passes that they repeat.
    groups = {count: pieces(masks, known, count) for count in range(1, most + 1)}
    ends = {
        count: finished_after(
            [pass_seconds(known, group) for group in own_groups],
            [0.0 if n < running else STARTING for n in range(count)],
        )
        for count, own_groups in groups.items()
    }
    count = allowed.asked or _fewest(ends, running)
    if count == 1 or len(groups[count]) == 1:
        return False
    unchecked = estimator.unprepared(run, [run.stages[first]])
    how = {"estimator": estimator.name, "settings": dict(estimator.settings)}
    checks = [Item({"check": s.name, **how, **message}, _seconds(run, [s])) for s in unchecked]
    items = [
        Item({"coalitions": group, **how, **message}, pass_seconds(known, group))
        for group in groups[count]
    ]
    _shared(allowed, count, _threads(later), (checks, items), own, progress)
    return True


def count_for_pieces(run: Run, stages: Sequence[Stage], items: Sequence[Item]) -> int:
    """How many processes share pieces of work that each run some of these stages; see below."""
    allowed = helpers.of(run.path)
    asked = helpers.asked() if allowed is None else allowed.asked
    running = 1 if allowed is None else 1 + len(allowed.started)
    return _pieces_count(run, stages, items, asked, running)


def _pieces_count(
    run: Run, stages: Sequence[Stage], items: Sequence[Item], asked: int | None, running: int
) -> int:
    if asked == 1 or len(items) < 2:
        return 1
    if any(s.facts.environment is None or s.environment.device != "cpu" for s in stages):
        return 1
    most = max(running, min(room(stages, Estimator.memory(stages)), len(items)))
    count = asked or best_count([item.cost for item in items], most, running)
    return min(count, len(items))


def share_pieces(
    run: Run,
    stages: Sequence[Stage],
    items: Sequence[Item],
    own: Callable[[Mapping[str, Any], ProgressCallback], None],
    progress: ProgressCallback,
) -> None:
    """Do pieces of work that each run some of these stages, with helpers where that is sooner.

    What failed in a helper is not told here: whoever asks finds no result, and does it again.

    Args:
        run: The run.
        stages: The stages that the pieces run.
        items: The pieces, by the seconds that each takes.
        own: Does one of them in this process; takes a message as helpers do.
        progress: Called for the work of all.
    """
    allowed = helpers.of(run.path)
    count = count_for_pieces(run, stages, items)
    if allowed is None or count == 1:
        overall = Progress(progress)
        for number, item in enumerate(items):
            own(item.message, overall.piece(number, len(items)))
        return
    allowed.start(count - 1, _threads(stages))
    allowed.share(items, lambda item, report: own(item.message, report), progress)
