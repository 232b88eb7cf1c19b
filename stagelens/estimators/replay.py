"""``replay``: run the later stages again from where the stage started. The ground truth."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from stagelens.compute import processes
from stagelens.contracts import Progress, ProgressCallback, Refused
from stagelens.runs.boundary_facts import Boundary
from stagelens.runs.run import Run, Stage

from .held_fixed import held_fixed
from .protocol import Counterfactual, Estimator
from .stage_trust import REPLAY, StageTrust

if TYPE_CHECKING:
    from stagelens.replaying.stage_model import Share

    from .replay_check import ReplayCheck


class Replay(Estimator):
    """The model without a stage, by replaying all later stages from the stage's start state.

    The later stages are also replayed as recorded, once per run and machine: where this gives their
    recorded ends bit for bit, the counterfactual is exact. Where it does not, they are replayed
    once more from the stage's recorded end: how far that final model is from the recorded one, in
    the behaviours, is the error to expect of the effects.

    Args:
        split_batches: Whether the processes of the job, where there are several, share every batch
            instead of whole counterfactuals. Sums of gradients are then rounded differently from
            the recording, which is measured like any other deviation.
        shard: Whether each of these processes holds a part of the model, and they replay each
            counterfactual together.
        ensemble: Whether all counterfactuals are replayed as one ensemble of networks, as far as
            these can be stacked: on a GPU quicker, never exact, and its deviation is measured. None
            for one by one, but content with what an ensemble gave before.
    """

    name = REPLAY
    title = "Replay"
    note = "exact"
    preference = 40
    helped = True

    def __init__(
        self,
        split_batches: bool = False,
        ensemble: bool | None = False,
        shard: bool = False,
    ) -> None:
        if split_batches and shard:
            raise Refused("--split-batches and --shard share work in two ways; give one of them")
        self.share: Share = ""
        if processes.count() > 1:
            self.share = "batches" if split_batches else "model" if shard else ""
        self.ensemble = False if self.share else ensemble
        # An ensemble is one piece of work.
        self.helped = not self.ensemble

    @property
    def in_step(self) -> bool:
        """Whether the processes of the job share every batch, or the model."""
        return bool(self.share)

    def accepts(self, trust: StageTrust) -> bool:
        """One of an ensemble only where these are not ruled out."""
        return self.ensemble is not False or not trust.ensemble

    def prepare(self, run: Run, stages: Sequence[Stage], progress: ProgressCallback) -> None:
        """Replay the later stages as recorded, once each, shared out over processes."""
        from .replay_check import check_together  # torch

        check_together(run, stages, progress)

    def unprepared(self, run: Run, stages: Sequence[Stage]) -> list[Stage]:
        """The later stages that were not replayed as recorded on this machine."""
        from .replay_check import stored_check, to_check

        return [stage for stage in to_check(run, stages) if stored_check(run, stage) is None]

    def prepare_stage(self, run: Run, stage: Stage, progress: ProgressCallback) -> None:
        """Replay one stage as recorded."""
        from .replay_check import check_replay

        check_replay(run, stage, Progress(progress).part(0.0, 1.0, "Checking replay: "))

    def counterfactuals(
        self, run: Run, stages: Sequence[Stage], progress: ProgressCallback
    ) -> Iterator[Counterfactual]:
        """See :class:`~stagelens.estimators.protocol.Estimator`."""
        from stagelens.replaying.replay import check_replayable, replay_later, replay_without

        from .replay_check import check_replay
        from .replay_together import counterfactuals_together, fitting

        if self.ensemble and (together := fitting(run, stages)):
            yield from counterfactuals_together(run, together, progress)
            stages = [stage for stage in stages if stage not in together]
            if not stages:
                return
        first = min(stage.index for stage in stages)
        later = run.stages[first + 1 :]
        check_replayable(later)
        work = sum(s.steps for s in later) + sum(
            s.steps for stage in stages for s in run.stages[stage.index + 1 :]
        )
        done, overall = 0, Progress(progress)
        checks: dict[str, ReplayCheck] = {}
        for stage in later:
            report = overall.part(done / work, (done + stage.steps) / work, "Checking replay: ")
            checks[stage.name] = check_replay(run, stage, report, self.share)
            done += stage.steps
        for stage in stages:
            after = run.stages[stage.index + 1 :]
            steps = sum(s.steps for s in after)
            began = time.perf_counter()
            own_part = (done / work, (done + steps) / work)
            report = overall.part(*own_part, f"Replaying without {stage.name}: ")
            replayed = replay_without(run, stage, report, share=self.share)
            trust, repeats = trust_in_replay(stage.name, after, after, checks, self._shared(after))
            repeated = None
            if repeats:
                report = overall.part(*own_part, f"Repeating with {stage.name}: ")
                again = replay_later(run, stage, stage.end(), report, share=self.share)
                repeated = again.state.model
            done += steps
            trust = trust.model_copy(update={"seconds": time.perf_counter() - began})
            yield Counterfactual(stage.name, replayed.state.model, trust, repeated=repeated)

    def _shared(self, stages: Sequence[Stage]) -> str:
        """A remark on how processes share the work; may be empty."""
        from .replay_check import other_layouts

        count = processes.count()
        how = {
            "": "",
            "batches": f" (batches split over {count} processes)",
            "model": f" (the model shared out over {count} processes)",
        }[self.share]
        return how + other_layouts([s for s in stages if s.facts.parallel], self.share)


def trust_in_replay(
    stage: str,
    trained: Sequence[Stage],
    crossed: Sequence[Stage],
    checks: Mapping[str, ReplayCheck],
    shared: str = "",
) -> tuple[StageTrust, bool]:
    """What is known of a model from a replay, and whether repeating the recording says more.

    What a replay with the recorded stages misses by the same arithmetic, this one misses too.

    Args:
        stage: What the trust is named after.
        trained: The stages that were replayed.
        crossed: The stages whose boundary rules were applied.
        checks: How far each of ``trained`` is from its recording, by name.
        shared: A remark on split batches; may be empty.
    """
    from .replay_check import (
        fused_kernels,
        mixed_precision,
        other_library,
        other_threads,
        unchecked,
    )

    boundary = max((s.facts.boundary for s in crossed), key=_gap, default=None)
    fused = fused_kernels(trained)
    # One device adds gradients in another order than several processes do.
    summed = any(s.facts.parallel and not checks[s.name].as_recorded for s in trained)
    other = other_threads(trained) + other_library(trained)
    remarks = mixed_precision(trained) + fused + other + unchecked(trained) + shared
    trust = _trust(stage, [checks[s.name] for s in trained], boundary, remarks)
    if fused or summed:  # where it gave the recorded bits, it need not do so again
        trust = trust.model_copy(update={"trust": "estimated", "expected_error": None})
    if held := held_fixed(trained):
        # Repeating the recording would not show what is held, so no error is known.
        return _as_held(trust, held), False
    return trust, trust.trust != "exact"


def _as_held(trust: StageTrust, held: Sequence[str]) -> StageTrust:
    """The trust in a replay that keeps what would have been otherwise without the stage."""
    reason = f"{trust.reason.rstrip('.')}; but {', and '.join(held)}."
    return trust.model_copy(update={"trust": "estimated", "reason": reason, "expected_error": None})


def _gap(boundary: Boundary) -> float:
    return boundary.deviation


def _trust(
    stage: str, checks: Sequence[ReplayCheck], boundary: Boundary | None, mixed: str
) -> StageTrust:
    """What is known of a replay.

    Args:
        stage: The stage that is left out.
        checks: Of the later stages.
        boundary: That of the later ones whose operations, done here, give recorded weights least.
        mixed: Remarks on mixed precision, on threads and on split batches; may be empty.
    """
    bitwise = all(check.bitwise for check in checks)
    gap = 0.0 if boundary is None else boundary.deviation
    if bitwise and not gap:
        return StageTrust(
            stage=stage,
            estimator=Replay.name,
            trust="exact",
            reason=f"Replay repeats the recording bit for bit{mixed}.",
            deviation=0.0,
            expected_error=0.0,
            cost=1.0,
        )
    worst = max((check.relative for check in checks), default=0.0)
    reasons = []
    if not bitwise:
        reasons.append(_deviates(max(checks, key=lambda check: check.relative)))
    if boundary is not None and gap:
        reasons.append(f"the recording {_otherwise(boundary).format(gap)}")
    return StageTrust(
        stage=stage,
        estimator=Replay.name,
        trust="estimated",
        reason=f"Replay; {', and '.join(reasons)}{mixed}.",
        deviation=max(worst, gap),
        cost=2.0,  # replayed with the stage and without it
    )


def _otherwise(boundary: Boundary) -> str:
    """How a recorded start differs from what its boundary gives here, with room for how much."""
    if boundary.unpacked:
        return (
            "loaded weights anew that are in 4 bits in the run, {:.1e} of a weight's norm away "
            "from these, which the replay keeps"
        )
    if boundary.merged:
        return "merged an adapter with other rounding, {:.1e} of a weight's norm away from here"
    if boundary.averaged:
        return "drew the added rows of a vocabulary around a mean, {:.1e} of a weight's norm away"
    return "computed an adapter's first values with other rounding, {:.1e} of a norm away from here"


def _deviates(worst: ReplayCheck) -> str:
    """How far a replay is off, and whether that can be laid to the machine."""
    by = f"deviates from the recording by {worst.relative:.1e} of what the stage changed"
    if not worst.as_recorded:
        return f"on this machine it {by}"
    since = "" if worst.misfit is None else f", from step {worst.misfit} on,"
    return (
        f"in stage {worst.stage!r} it {by}{since} on a machine like the one that recorded it, so "
        "the recording is not all that training did there"
    )
