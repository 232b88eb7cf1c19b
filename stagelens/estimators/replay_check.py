"""How far a stage's replay on this machine is from its recording; measured once and stored."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel

from stagelens.compute import devices, processes
from stagelens.contracts import ProgressCallback, RunError
from stagelens.replaying.replay import AUTOCAST, measure_deviation
from stagelens.runs.files import read_json, write_json
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest


class ReplayCheck(BaseModel):
    """How far a stage's replay on one machine is from its recorded end; stored with the run."""

    run_digest: str
    stage: str
    machine: str
    bitwise: bool
    largest: float
    relative: float


def mixed_precision(stages: Sequence[Stage]) -> str:
    """``" (recorded in bfloat16 mixed precision)"`` where any stage was; else an empty string."""
    used = {AUTOCAST[s.facts.precision] for s in stages if s.facts.precision != "float32"}
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in used))
    return f" (recorded in {names} mixed precision)" if used else ""


def _machine(stage: Stage, split: bool) -> str:
    """Everything that arithmetic depends on: build, threads, processor and device."""
    threads = stage.environment.threads
    used = devices.replaying(stage.environment.device)
    device = torch.cuda.get_device_name(used) if used.type == "cuda" else "cpu"
    capability = torch.backends.cpu.get_cpu_capability()
    # Builds of one torch version differ in the libraries that multiply matrices.
    build = digest(torch.__config__.show())[:8]
    return (
        f"torch {torch.__version__} ({build}), {threads} threads, {platform.platform()}, "
        f"{platform.processor()}, {capability}, {device}"
        + (f", split over {processes.count()}" if split else "")
    )


def check_together(run: Run, stages: Sequence[Stage], progress: ProgressCallback) -> None:
    """:func:`check_replay` of every stage after any of ``stages``, shared out over processes."""
    chains = [run.stages[stage.index + 1 :] for stage in stages]
    # What cannot be replayed is refused later, stage by stage, and must not end the others here.
    needed = {s.index: s for later in chains if all(s.replayable for s in later) for s in later}

    def work() -> None:
        # Sorted, because sharing relies on every process having the same list.
        for stage in processes.share_of_work(
            [needed[n] for n in sorted(needed)], lambda s: s.steps
        ):
            check_replay(run, stage, progress)

    processes.together(work)


def check_replay(
    run: Run, stage: Stage, progress: ProgressCallback, split: bool = False
) -> ReplayCheck:
    """Replay a stage as recorded and measure how far it is off; stored and reused."""
    machine = _machine(stage, split)
    key = digest("replay-check", run.digest, stage.name, machine)[:32]
    path = run.files.inside(f"results/checks/{key}.json")
    # With split batches all processes must replay or none, whichever of them sees the file.
    stored = processes.by_main(lambda: _stored_check(path)) if split else _stored_check(path)
    if stored is not None:
        return stored
    deviation = measure_deviation(run.task, stage, progress, split)
    check = ReplayCheck(
        run_digest=run.digest,
        stage=stage.name,
        machine=machine,
        bitwise=deviation.bitwise,
        largest=deviation.largest,
        relative=deviation.relative,
    )
    write_json(path, check)
    return check


def _stored_check(path: Path) -> ReplayCheck | None:
    try:
        return read_json(path, ReplayCheck)
    except RunError:  # missing or damaged: measured again
        return None
