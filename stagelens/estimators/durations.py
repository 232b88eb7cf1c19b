"""How long training again should take: from steps timed on this machine, or from the recording.

What a stage takes to be replayed is measured on a few of its steps (see ``pace``) and kept with the
run, per machine; nothing here runs a step or imports torch. Where nothing was measured, the seconds
that training took stand in, which are those of another program on perhaps another machine.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from stagelens.compute import machine
from stagelens.compute.load import Load, slowdown
from stagelens.contracts import RunError
from stagelens.runs.files import read_json, write_json
from stagelens.runs.run import Run
from stagelens.runs.schema import digest

from .reproduction import checks

STARTING = 4.0
"""Seconds for a process to load what it needs."""


_OVERHEAD = 0.005
"""Seconds that a coarse step takes besides its gradient, where none was timed: most of its time on
small networks."""


@dataclass(frozen=True)
class Pace:
    """What one stage takes to be trained again.

    Attributes:
        stage: Its name.
        steps: How many were recorded.
        seconds: Of one replay of all its steps; None where nothing says how long that takes.
        check: Whether it still has to be replayed as recorded, to see if that is bit for bit.
        twice: Whether it is not, so that every replay through it is repeated with the stage.
        cheap: Budget of coarse replay to the seconds that its coarse steps take to be made ready,
            and the seconds of one model that takes them.
    """

    stage: str
    steps: int
    seconds: float | None
    check: bool = True
    twice: bool = False
    cheap: Mapping[float, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Paces:
    """What the stages of a run take, in training order.

    Attributes:
        stages: One per stage.
        example: Seconds of a forward pass per example; None where it was not measured.
        taken: When steps were timed, as ISO 8601 in UTC; None where none were.
        busy: How much longer the machine took for it, because other programs ran; at least 1.
        source: Where it is from, in words.
    """

    stages: list[Pace]
    example: float | None = None
    taken: str | None = None
    busy: float = 1.0
    source: str = "the recorded times"

    def at_present(self, seconds: float, own: int = 0) -> float:
        """What was predicted from these paces, with the machine as busy as it is now.

        Args:
            seconds: The prediction.
            own: Jobs that are known to run.
        """
        return seconds * slowdown(own) / self.busy

    def of_a_job(self, seconds: float, own: int = 0) -> float:
        """The same where a process of its own does it, which has to load what it needs first."""
        return self.at_present(seconds, own) + STARTING * slowdown(own)


class TimedStage(BaseModel):
    """What was measured of one stage; see :class:`Pace`.

    Attributes:
        seconds: Of one replay of all its steps, on the machine as busy as it was.
        twice: Whether every replay through it is repeated with the stage.
        busy: How many seconds went by for one of the processor's, at least 1.
        cheap: See :class:`Pace`.
    """

    model_config = ConfigDict(frozen=True)

    seconds: float
    twice: bool = False
    busy: float = 1.0
    cheap: dict[float, tuple[float, float]] = {}


class Timings(BaseModel):
    """What was measured of a run on one machine; stored with the run.

    Attributes:
        example: Seconds of a forward pass per example; None where none was timed.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    taken: str
    example: float | None
    stages: dict[str, TimedStage]


def _path(run: Run) -> Path:
    key = digest("pace", run.digest, machine.fingerprint())[:32]
    return run.files.inside(f"results/pace/{key}.json")


def stored_timings(run: Run) -> Timings | None:
    """What was last measured on this machine; None where nothing was."""
    try:
        found = read_json(_path(run), Timings)
    except RunError:  # missing or damaged
        return None
    return found if found.run_digest == run.digest else None


def keep_timings(run: Run, timings: Timings) -> None:
    """Store what was measured, for whoever predicts without running a step."""
    write_json(_path(run), timings)


def keep_stages(run: Run, example: float | None, timed: dict[str, TimedStage]) -> None:
    """Store what stages take, as of now."""
    taken = datetime.now(UTC).isoformat(timespec="seconds")
    keep_timings(run, Timings(run_digest=run.digest, taken=taken, example=example, stages=timed))


def note_replay(run: Run, stage: str, load: Load, twice: bool) -> None:
    """Keep what one replay of a stage took here, unless steps of it were timed before.

    Training may have run beside other programs, or done more than replay does: on the chat demo it
    took twice to four times as long.

    Args:
        run: The run.
        stage: That was replayed.
        load: What was counted while it was.
        twice: Whether every replay through it is repeated with the stage.
    """
    known = stored_timings(run)
    timed = {} if known is None else dict(known.stages)
    if stage not in timed:
        timed[stage] = TimedStage(seconds=load.wall, twice=twice, busy=max(load.factor, 1.0))
        keep_stages(run, None if known is None else known.example, timed)


def paces(run: Run) -> Paces:
    """What the stages of a run should take on this machine."""
    timings, checked = stored_timings(run), {check.stage: check.bitwise for check in checks(run)}
    stages = []
    for stage in run.stages:
        timed = None if timings is None else timings.stages.get(stage.name)
        pace = Pace(
            stage.name,
            stage.steps,
            stage.facts.seconds if timed is None else timed.seconds,
            stage.name not in checked,
            not checked.get(stage.name, timed is None or not timed.twice),
            {} if timed is None else timed.cheap,
        )
        stages.append(pace)
    if timings is None:
        return Paces(stages)
    # Weighted, because the longest stage decides what a prediction is.
    total = sum(one.seconds for one in timings.stages.values())
    idle = sum(one.seconds / one.busy for one in timings.stages.values())
    busy = total / idle if idle else 1.0
    if timings.example is None:  # replays were noted; the first stage is hardly ever replayed
        whole = all(stage.name in timings.stages for stage in run.stages[1:])
        source = "replays on this machine" + ("" if whole else " and the recorded times")
        return Paces(stages, None, None, busy, source)
    return Paces(stages, timings.example, timings.taken, busy, "steps timed here")


def without_seconds(stages: Sequence[Pace], index: int) -> float | None:
    """Seconds to replay the later stages once without the stage at ``index``; None if not known."""
    later = stages[index + 1 :]
    if any(pace.seconds is None for pace in later):
        return None
    times = 2 if any(pace.twice for pace in later) else 1
    return times * sum(pace.seconds or 0.0 for pace in later)


def seconds_without_each(stages: Sequence[Pace]) -> float | None:
    """Seconds to replay the later stages once for each stage that is left out.

    None where the seconds of a stage are not known.
    """
    # The first stage is never replayed, so its seconds are not needed.
    each = [without_seconds(stages, index) for index in range(len(stages))]
    return None if None in each else sum(seconds or 0.0 for seconds in each)


def check_seconds(stages: Sequence[Pace], index: int) -> dict[str, float]:
    """Stages after ``index`` that have yet to be replayed as recorded, with the seconds of it."""
    return {pace.stage: pace.seconds or 0.0 for pace in stages[index + 1 :] if pace.check}


def replay_seconds(stages: Sequence[Pace]) -> float | None:
    """How long replaying without every stage should take.

    For each stage but the last, all later ones run again; and each of these runs once more as
    recorded, to see whether replay is bit for bit, unless it did so before. None where a stage's
    seconds are not known.
    """
    return replays_seconds(stages, range(len(stages)))


def replays_seconds(
    stages: Sequence[Pace], without: Sequence[int], processes: int = 1
) -> float | None:
    """:func:`replay_seconds` of some stages only, by their indices.

    Args:
        stages: Of the run.
        without: Indices of the stages to leave out.
        processes: How many share the checks, and then the replays; all but one have yet to start.
    """
    each = [without_seconds(stages, index) for index in without]
    if None in each:
        return None
    checks = check_seconds(stages, min(without, default=len(stages)))
    checked = finished_after(list(checks.values()), [0.0] + [STARTING] * (processes - 1))
    starts = [0.0] + [max(STARTING - checked, 0.0)] * (processes - 1)
    return checked + finished_after([seconds or 0.0 for seconds in each], starts)


def finished_after(seconds: Sequence[float], starts: Sequence[float]) -> float:
    """When all work is done, if processes take the largest piece of what is left in turn.

    Args:
        seconds: What each piece takes.
        starts: When each process can begin.
    """
    free = list(starts)
    heapq.heapify(free)
    end = 0.0
    for each in sorted(seconds, reverse=True):
        done = free[0] + each
        heapq.heapreplace(free, done)
        end = max(end, done)
    return end


def coarse_seconds(
    stages: Sequence[Pace],
    budget: float,
    without: Collection[int] | None = None,
) -> float | None:
    """How long coarse replay should take; None where a stage's seconds are not known.

    Args:
        stages: Of the run.
        budget: Its share of replay's cost.
        without: Indices of the stages to leave out; None for all but the last.
    """
    left_out = range(len(stages) - 1) if without is None else without
    total = 0.0
    for index, pace in enumerate(stages):
        before = sum(each < index for each in left_out)
        if not before:
            continue
        if (timed := pace.cheap.get(budget)) is not None:
            # A factual twin serves all stages before.
            total += timed[0] + (1 + before) * timed[1]
        elif pace.seconds is None:
            return None
        else:
            total += budget * before * (pace.seconds + _OVERHEAD * pace.steps)
    return total
