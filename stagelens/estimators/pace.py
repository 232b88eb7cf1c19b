"""Timing a few recorded steps, run now on this machine: what its stages take to be replayed.

Recorded seconds are those of another program, perhaps on another machine or an idle one. A step of
a stage is the same work wherever the weights are, so some steps from the stage's start tell what
all of them take. Nothing of what they compute is kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean

from stagelens.compute import devices
from stagelens.compute.load import Load
from stagelens.contracts import Progress, ProgressCallback, Task, no_progress
from stagelens.measuring.models import BATCH_SIZE, empty_model, measure
from stagelens.replaying.coarse import CoarseModel
from stagelens.replaying.coarse_plan import coarse_steps
from stagelens.replaying.replay import StageReplay, same_arithmetic
from stagelens.runs.run import Run, Stage
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .coarse_twins import choose_plan
from .durations import TimedStage, keep_stages, stored_timings
from .replay_check import stored_check

_ENOUGH = 0.5
"""Seconds of steps that are timed in each stage, and in each coarse replay of it."""
_FEWEST = 5
"""Short steps that are timed at each place, whatever they take."""
_PLACES = 3
"""Parts of a stage that steps are taken from: later batches may be longer than the first."""


def measure_paces(
    run: Run, examples: EvaluationSet, stages: Sequence[Stage], progress: ProgressCallback
) -> None:
    """Time steps of these stages and forward passes on a set; stored with the run.

    Args:
        run: The run.
        examples: One of its sets.
        stages: Those that would be replayed; of the others, what was measured before is kept.
        progress: Called for each stage.
    """
    before = stored_timings(run)
    timed = {} if before is None else dict(before.stages)
    overall = Progress(progress)
    load, found = Load(), {}
    for number, stage in enumerate(stages):
        overall.piece(number, len(stages))(0.0, f"Timing steps of stage {stage.name}")
        found[stage.name] = pass_seconds(run.task, stage, load)
    example = example_seconds(run, examples, load)
    for stage in stages:
        cheap = timed[stage.name].cheap if stage.name in timed else {}
        seconds = load.factor * found[stage.name]
        timed[stage.name] = TimedStage(
            seconds=seconds, twice=_twice(run, stage), busy=max(load.factor, 1.0), cheap=cheap
        )
    keep_stages(run, load.factor * example, timed)


def measure_coarse(
    run: Run, stages: Sequence[Stage], budget: float, progress: ProgressCallback
) -> None:
    """Time coarse steps of these stages, which were timed before, within a budget; stored."""
    timings = stored_timings(run)
    if timings is None:
        return
    timed, load, found = dict(timings.stages), Load(), {}
    for stage in stages:
        if stage.name in timed and not stage.no_replay:
            progress(0.0, f"Timing coarse steps of stage {stage.name}")
            found[stage.name] = coarse_pass_seconds(run, stage, budget, load)
    for name, (ready, stepping) in found.items():
        pair = (load.factor * ready, load.factor * stepping)
        cheap = {**timed[name].cheap, budget: pair}
        timed[name] = timed[name].model_copy(update={"cheap": cheap})
    keep_stages(run, timings.example, timed)


def scale_timings(run: Run, stages: Sequence[Stage], factor: float) -> None:
    """Correct what was measured of stages by what they then took: ``factor`` times as long."""
    timings = stored_timings(run)
    if timings is None:
        return
    names = {stage.name for stage in stages}
    timed = {
        name: one.model_copy(update={"seconds": factor * one.seconds}) if name in names else one
        for name, one in timings.stages.items()
    }
    keep_stages(run, timings.example, timed)


def _twice(run: Run, stage: Stage) -> bool:
    """Whether a replay here is not, or not expected to be, the recording bit for bit."""
    if stage.facts.boundary.deviation:
        return True
    check = stored_check(run, stage)
    if check is not None:
        return not check.bitwise
    used = devices.replaying(stage.environment.device)
    return stage.environment.arithmetic != devices.arithmetic(used)


def pass_seconds(task: Task, stage: Stage, load: Load) -> float:
    """Processor seconds that one replay of a stage should take, from a few of its steps run now.

    Args:
        task: The run's.
        stage: Batches of all its steps were kept.
        load: What is timed is added to it.
    """
    steps: list[float] = []
    numbers: list[int] = []
    openings: list[float] = []
    with same_arithmetic(stage):
        _timed(StageReplay(task, stage), 0, 2)  # loads what a process loads only once
        with load.noted():
            began = time.process_time()
            replay = StageReplay(task, stage)
            around = time.process_time() - began
            places = min(_PLACES, stage.steps)
            for place in range(places):
                first = place * stage.steps // places
                found = _timed(replay, first, (place + 1) * stage.steps // places - first)
                # The first step of each place opens the file of its part, and warms caches up.
                if len(found) > 1 and found[0] < _ENOUGH:
                    openings.append(found[0] - fmean(found[1:]))
                    numbers += range(first + 1, first + len(found))
                    steps += found[1:]
                else:
                    numbers += range(first, first + len(found))
                    steps += found
            began = time.process_time()
            replay.state()
            around += time.process_time() - began
    # The first opening of all includes what a process does once.
    opening = max(min(openings, default=0.0), 0.0) * sum(map(len, stage.facts.parts_of_each))
    sizes = stage.read_steps().sizes()
    larger = fmean(sizes) / max(fmean(sizes[number] for number in numbers), 1e-9)
    return around + opening + stage.steps * fmean(steps) * (larger or 1.0)


def _timed(replay: StageReplay, first: int, count: int) -> list[float]:
    """Processor seconds of some consecutive steps: of a few where they are short, else of one."""
    times, began = [time.process_time()], time.perf_counter()
    for _ in replay.window(first, count):
        times.append(time.process_time())
        taken = time.perf_counter() - began
        if taken > _ENOUGH or (len(times) > _FEWEST and taken > _ENOUGH / _PLACES):
            break
    return [after - before for before, after in pairwise(times)]


def coarse_pass_seconds(run: Run, stage: Stage, budget: float, load: Load) -> tuple[float, float]:
    """Processor seconds of a coarse replay of a stage: to make its steps ready, and of one model.

    Args:
        run: The run.
        stage: Batches of all its steps were kept.
        budget: Of the coarse replay.
        load: What is timed is added to it.
    """
    plan = choose_plan(run, stage, budget)
    count = max(round(stage.steps / plan.merge), 1)
    ready: list[float] = []
    stepped: list[float] = []
    covered = 0
    CoarseModel(run.task, stage, stage.start())  # loads what a process loads only once
    with same_arithmetic(stage), load.noted():
        began, last = time.perf_counter(), time.process_time()
        model = CoarseModel(run.task, stage, stage.start())
        around = time.process_time() - last
        last = time.process_time()
        owners = partial(stage.objective.row_examples, run.task)
        for step in coarse_steps(stage.read_steps(), plan.merge, plan.thin, owners=owners):
            made = time.process_time()
            model.step(step)
            ready.append(made - last)
            last = time.process_time()
            stepped.append(last - made)
            covered = step.last
            if len(ready) > _FEWEST and time.perf_counter() - began > _ENOUGH:
                break
    # The first step reads the facts of the whole stage, and warms caches up.
    if len(ready) > 1 and stepped[0] < _ENOUGH:
        later = sum(ready[1:]) / max(covered - 1, 1) * stage.steps
        return ready[0] + later, around + count * fmean(stepped[1:])
    return sum(ready) / max(covered, 1) * stage.steps, around + count * fmean(stepped)


def example_seconds(run: Run, examples: EvaluationSet, load: Load) -> float:
    """Processor seconds of a forward pass of the final model per example of a set.

    Args:
        run: The run.
        examples: One of its sets.
        load: What is timed is added to it.
    """
    model, weights = empty_model(run), [run.last.end().model]
    one = partial(measure, run.task, model, weights)
    batches = examples.batches(BATCH_SIZE)
    first = next(batches)
    one([first], len(first), no_progress)  # not timed: caches are cold
    with load.noted():
        began, start, done = time.perf_counter(), time.process_time(), 0
        for batch in (first, *batches):
            one([batch], len(batch), no_progress)
            done += len(batch)
            if time.perf_counter() - began > _ENOUGH / 2:
                break
        return (time.process_time() - start) / done
