"""``replay``: run the later stages again from where the stage started. The ground truth."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from stagelens.compute import devices, processes
from stagelens.contracts import Progress
from stagelens.replaying.replay import (
    AUTOCAST,
    check_replayable,
    measure_deviation,
    replay_later,
    replay_without,
)
from stagelens.runs.files import write_json
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest

from .protocol import Counterfactual
from .stage_trust import StageTrust


class ReplayCheck(BaseModel):
    """How far a stage's replay on one machine is from its recorded end; stored with the run."""

    run_digest: str
    stage: str
    machine: str
    bitwise: bool
    largest: float
    relative: float


class Replay:
    """The model without a stage, by replaying all later stages from the stage's start state.

    The later stages are also replayed as they were recorded, once per run and machine: where this
    gives their recorded ends bit for bit, the counterfactual is exact. Where it does not, they are
    replayed once more from the stage's recorded end: how far that final model is from the recorded
    one, in the behaviours, is the error to expect of the effects.

    Args:
        split_batches: Whether the processes of the job share every batch, where there are several,
            instead of whole counterfactuals. Sums of gradients are then rounded otherwise than in
            the recording, which is measured like any other deviation.
    """

    name = "replay"
    settings: Mapping[str, Any] = {}

    def __init__(self, split_batches: bool = False) -> None:
        self.split = split_batches and processes.count() > 1

    def counterfactuals(
        self, run: Run, stages: Sequence[Stage], progress: Progress
    ) -> Iterator[Counterfactual]:
        """See :class:`~stagelens.estimators.protocol.Estimator`."""
        first = min(stage.index for stage in stages)
        later = run.stages[first + 1 :]
        check_replayable(later)
        work = sum(s.steps for s in later) + sum(
            s.steps for stage in stages for s in run.stages[stage.index + 1 :]
        )
        done = 0
        checks: dict[str, ReplayCheck] = {}
        for stage in later:
            report = _part(progress, done, stage.steps, work, "Checking replay: ")
            checks[stage.name] = check_replay(run, stage, report, self.split)
            done += stage.steps
        for stage in stages:
            after = run.stages[stage.index + 1 :]
            steps = sum(s.steps for s in after)
            began = time.perf_counter()
            report = _part(progress, done, steps, work, f"Replaying without {stage.name}: ")
            replayed = replay_without(run, stage, report, split=self.split)
            own = [checks[s.name] for s in after]
            merging = max((s.facts.boundary.deviation for s in after), default=0.0)
            trust = _trust(stage.name, own, merging, _mixed_precision(after) + self._shared())
            repeated = None
            if trust.trust != "exact":
                report = _part(progress, done, steps, work, f"Repeating with {stage.name}: ")
                again = replay_later(run, stage, stage.end(), report, split=self.split)
                repeated = again.state.model
            done += steps
            trust = trust.model_copy(update={"seconds": time.perf_counter() - began})
            yield Counterfactual(stage.name, replayed.state.model, trust, repeated=repeated)

    def _shared(self) -> str:
        return f" (batches split over {processes.count()} processes)" if self.split else ""


def _part(progress: Progress, before: int, own: int, work: int, prefix: str) -> Progress:
    def report(share: float, text: str) -> None:
        progress((before + share * own) / work, prefix + text)

    return report


def _mixed_precision(stages: Sequence[Stage]) -> str:
    """``" (recorded in bfloat16 mixed precision)"``, where any stage was; else nothing."""
    used = {AUTOCAST[s.facts.precision] for s in stages if s.facts.precision != "float32"}
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in used))
    return f" (recorded in {names} mixed precision)" if used else ""


def _trust(stage: str, checks: Sequence[ReplayCheck], merging: float, mixed: str) -> StageTrust:
    """What is known of a replay.

    Args:
        stage: The stage that is left out.
        checks: Of the later stages.
        merging: How far merging an adapter in between is from the recorded weights, at most.
        mixed: What to say of mixed precision, and of batches that were split.
    """
    bitwise = all(check.bitwise for check in checks)
    if bitwise and not merging:
        return StageTrust(
            stage=stage,
            estimator=Replay.name,
            trust="exact",
            reason=f"Replay repeats the recording bit for bit{mixed}.",
            deviation=0.0,
            expected_error=0.0,
            cost=1.0,
        )
    worst = max(check.relative for check in checks)
    reasons = []
    if not bitwise:
        reasons.append(
            f"on this machine it deviates from the recording by {worst:.1e} of what the later "
            "stages changed"
        )
    if merging:
        reasons.append(
            f"the recording merged an adapter with other rounding, {merging:.1e} of a weight's "
            "norm away from merging it here"
        )
    return StageTrust(
        stage=stage,
        estimator=Replay.name,
        trust="estimated",
        reason=f"Replay; {', and '.join(reasons)}{mixed}.",
        deviation=max(worst, merging),
        cost=2.0,
    )


def _machine(stage: Stage, split: bool) -> str:
    """What decides whether arithmetic is the same: build, threads, processor and device."""
    threads = stage.environment.threads
    used = devices.replaying(stage.environment.device)
    device = torch.cuda.get_device_name(used) if used.type == "cuda" else "cpu"
    capability = torch.backends.cpu.get_cpu_capability()
    build = digest(torch.__config__.show())[:8]
    return (
        f"torch {torch.__version__} ({build}), {threads} threads, {platform.platform()}, "
        f"{platform.processor()}, {capability}, {device}"
        + (f", split over {processes.count()}" if split else "")
    )


def check_together(run: Run, stages: Sequence[Stage], progress: Progress) -> None:
    """:func:`check_replay` of all that leaving out ``stages`` needs, shared out over processes."""
    chains = [run.stages[stage.index + 1 :] for stage in stages]
    needed = {s.index: s for later in chains if all(s.replayable for s in later) for s in later}

    def work() -> None:
        for stage in processes.share_of_work(
            [needed[n] for n in sorted(needed)], lambda s: s.steps
        ):
            check_replay(run, stage, progress)

    processes.together(work)


def check_replay(run: Run, stage: Stage, progress: Progress, split: bool = False) -> ReplayCheck:
    """Replay a stage as it was recorded and say how far it is off; stored and reused."""
    machine = _machine(stage, split)
    key = digest("replay-check", run.digest, stage.name, machine)[:32]
    path = run.files.inside(f"results/checks/{key}.json")
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
        return ReplayCheck.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
