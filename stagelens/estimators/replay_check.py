"""How far a stage's replay on this machine is from its recording; measured once and stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from weakref import WeakKeyDictionary

from stagelens.compute import devices, processes
from stagelens.compute.load import Load
from stagelens.contracts import ProgressCallback, Refused, RunError
from stagelens.replaying.replay import threads_here
from stagelens.replaying.reproduction import (
    Sampled,
    first_loss,
    measure_deviation,
    sample_steps,
)
from stagelens.replaying.stage_model import Share
from stagelens.replaying.step import AUTOCAST
from stagelens.runs.files import read_json, write_json
from stagelens.runs.objectives import how_to_give
from stagelens.runs.run import Run, Stage

from .durations import note_replay
from .protocol import Estimator
from .reproduction import (
    STEPS,
    ReplayCheck,
    StepCheck,
    check_path,
    keep_step_check,
    problems,
    step_check,
)


def mixed_precision(stages: Sequence[Stage]) -> str:
    """``" (recorded in bfloat16 mixed precision)"`` where any stage was; else an empty string."""
    used = {AUTOCAST[s.facts.precision] for s in stages if s.facts.precision != "float32"}
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in used))
    return f" (recorded in {names} mixed precision)" if used else ""


def fused_kernels(stages: Sequence[Stage]) -> str:
    """That passes were computed by other code than replay's, by name; else an empty string."""
    names = sorted({name for stage in stages for name in stage.facts.kernels})
    return f" (recorded with {', '.join(names)}, whose last bits replay does not have)" * bool(
        names
    )


def other_threads(stages: Sequence[Stage]) -> str:
    """That stages are replayed with another number of threads than recorded; else empty."""
    for stage in stages:
        here, recorded = threads_here(stage), stage.environment.threads
        if here != recorded:
            whose = f"stage {stage.name!r} was recorded with"
            return f" (with {here} of the {recorded} threads that {whose})"
    return ""


def other_library(stages: Sequence[Stage]) -> str:
    """That losses are computed by another version of TRL than recorded; else empty."""
    for stage in stages:
        recorded, here = _trl(stage)
        if recorded != here:
            return f" (stage {stage.name!r} was trained with TRL {recorded}, here is {here})"
    return ""


def other_layouts(stages: Sequence[Stage], share: Share) -> str:
    """That stages are not replayed by as many processes, or otherwise than trained; else empty."""
    for stage in stages:
        parallel, here = stage.facts.parallel, processes.count() if share else 1
        then, kind = (1, "") if parallel is None else (parallel.count, parallel.kind)
        if here != then or (then > 1 and (kind == "fsdp2") != (share == "model")):
            how = ", with the model shared out," if kind == "fsdp2" else ""
            whom = f"{then} processes" if then > 1 else "one process"
            return f" (stage {stage.name!r} was trained by {whom}{how} and is replayed by {here})"
    return ""


def unchecked(stages: Sequence[Stage]) -> str:
    """That nothing of a stage was checked while it was recorded; else empty."""
    for stage in stages:
        if stage.facts.unchecked is not None:
            return f" (no step of stage {stage.name!r} was checked while it was recorded)"
    return ""


def _trl(stage: Stage) -> tuple[str, str]:
    """The version of TRL that a stage's loss was computed by, and the one here; "" for none."""
    facts = stage.facts.objective
    recorded = str(facts.settings.get("trl", "")) if facts is not None else ""
    try:
        return recorded, version("trl") if recorded else ""
    except PackageNotFoundError:
        return recorded, ""


def _machine(stage: Stage, share: Share) -> str:
    """Everything that arithmetic depends on: build, threads, processor, device and libraries."""
    used = devices.replaying(stage.environment.device)
    how = {"": "", "batches": ", split over {}", "model": ", shared out over {}"}[share]
    shared = how.format(processes.count())
    trl = f", TRL {here}" if (here := _trl(stage)[1]) else ""
    return f"{devices.arithmetic(used)}, {threads_here(stage)} threads{shared}{trl}"


def to_check(run: Run, stages: Sequence[Stage]) -> list[Stage]:
    """Every stage after any of ``stages``, in training order."""
    chains = [run.stages[stage.index + 1 :] for stage in stages]
    # What cannot be replayed is refused later, stage by stage, and must not end the others here.
    needed = {s.index: s for later in chains if all(s.replayable for s in later) for s in later}
    # Sorted, because sharing relies on every process having the same list.
    return [needed[number] for number in sorted(needed)]


def check_together(run: Run, stages: Sequence[Stage], progress: ProgressCallback) -> None:
    """:func:`check_replay` of every stage after any of ``stages``, shared out over processes."""

    def work() -> None:
        for stage in processes.share_of_work(to_check(run, stages), lambda s: s.steps):
            check_replay(run, stage, progress)

    processes.together(work)


def stored_check(run: Run, stage: Stage) -> ReplayCheck | None:
    """What :func:`check_replay` found on such a machine; None where it has still to look."""
    return _stored_check(check_path(run, "replay-check", stage.name, _machine(stage, "")))


def check_replay(
    run: Run, stage: Stage, progress: ProgressCallback, share: Share = ""
) -> ReplayCheck:
    """Replay a stage as recorded and measure how far it is off; stored and reused.

    What is stored is not reused where it was measured with another loss of the user's than the one
    that is given now, as its first step shows.
    """
    machine = _machine(stage, share)
    path = check_path(run, "replay-check", stage.name, machine)

    def reusable() -> ReplayCheck | None:
        stored = _stored_check(path)
        return stored if stored is not None and _same_loss(run, stage, stored) else None

    # Where they share the work all processes must replay or none, whichever sees the file.
    stored = processes.by_main(reusable) if share else reusable()
    if stored is not None:
        return stored
    used = devices.replaying(stage.environment.device)
    load = Load()
    with load.noted():
        deviation = measure_deviation(run.task, stage, progress, share)
    check = ReplayCheck(
        run_digest=run.digest,
        stage=stage.name,
        machine=machine,
        as_recorded=stage.environment.arithmetic == devices.arithmetic(used)
        and not other_threads([stage])
        and not stage.facts.kernels
        and not other_library([stage])
        and not other_layouts([stage], share),
        bitwise=deviation.bitwise,
        largest=deviation.largest,
        relative=deviation.relative,
        misfit=deviation.misfit,
    )
    write_json(path, check)
    if not share:  # a replay that others share in is no measure of one
        note_replay(run, stage.name, load, not check.bitwise)
    return check


def _same_loss(run: Run, stage: Stage, stored: ReplayCheck) -> bool:
    """Whether a stage's first loss is the recorded one now if, and only if, it was then.

    Asked of code of the user's only: a run folder does not keep it, so that it may be another now.
    """
    objective = stage.facts.objective
    built_in = type(run.task).__module__.startswith("stagelens.")
    given = objective.own if objective is not None else not built_in
    if not given:
        return True
    found = _first_look(run, stage)
    if found is None:
        return False
    return not found.steps or (found.misfit is None) == (stored.misfit != 0)


_looks: WeakKeyDictionary[Run, dict[str, Sampled | None]] = WeakKeyDictionary()


def _first_look(run: Run, stage: Stage) -> Sampled | None:
    """What a stage's first loss is now, computed once of an opened run; None where it cannot be."""
    known = _looks.setdefault(run, {})
    if stage.name not in known:
        try:
            known[stage.name] = first_loss(run, stage)
        except Exception:  # the user's code may raise anything: replay says what
            known[stage.name] = None
    return known[stage.name]


def _stored_check(path: Path) -> ReplayCheck | None:
    try:
        return read_json(path, ReplayCheck)
    except RunError:  # missing or damaged: measured again
        return None


def check_steps(run: Run, stages: Sequence[Stage], estimator: Estimator) -> None:
    """Run first recorded steps again where that was not done yet, for ``problems`` to tell.

    Of every later stage that the estimator's models are trained by; for one that trains nothing,
    only the loss of the last stage's first step, which needs no memory for gradients. What cannot
    be run again is left to the estimator, which says why.

    Args:
        run: The run.
        stages: Those to be left out.
        estimator: How.
    """
    first = min((stage.index for stage in stages), default=0) + 1
    if estimator.free and run.files.is_copy:  # batches are not fetched for that alone
        return
    for stage in (() if estimator.free else run.stages[first:]) or run.stages[-1:]:
        wanted = min(1 if estimator.free else 2, stage.steps)
        known = step_check(run, stage)
        if not wanted or (known is not None and not known.problem and known.steps >= wanted):
            continue
        try:
            if known is not None and known.problem:
                # As long a look as found it: the first steps alone may well fit.
                found = sample_steps(run.task, stage, STEPS, everywhere=True)
            elif wanted > 1:
                found = sample_steps(run.task, stage, wanted)
            else:
                found = first_loss(run, stage)
        except Exception:  # the task's own code may raise anything, and memory may run out
            continue
        keep_step_check(run, StepCheck(run_digest=run.digest, stage=stage.name, **asdict(found)))


def check_given(run: Run) -> None:
    """Look at losses of the user's own before anything is computed by them, or stored.

    Raises:
        Refused: One that was given gives another loss at the stage's first step than was recorded.
    """
    for stage in run.stages:
        objective = stage.facts.objective
        if objective is None or not objective.own or stage.no_replay:
            continue
        found = _first_look(run, stage)
        if found is not None and found.misfit is not None:
            run.given.forget()  # nobody is to read what it may have stored before
            raise Refused(
                f"stage {stage.name!r} was trained on another loss than the function given for it: "
                f"at step {found.misfit} that gives {found.found:.4g} where {found.recorded:.4g} "
                f"was recorded; give {objective.title} as it was then: "
                f"{how_to_give(stage.name)}"
            )


def check_again(run: Run, stages: Sequence[Stage], estimator: Estimator) -> None:
    """Repeat checks that found a problem: the run may have been opened with another task then."""
    if problems(run):
        processes.by_main(lambda: check_steps(run, stages, estimator))
