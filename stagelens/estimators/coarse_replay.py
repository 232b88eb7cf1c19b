"""``coarse-replay``: replay the later stages cheaply twice, and take the difference.

One cheap replay starts where the stage ended (the factual twin), one where it started (the
counterfactual twin). The errors of cheapness are mostly common to both, and the difference keeps
little of them. At every boundary the factual twin starts from the recorded state again, and the
counterfactual twin from that minus the difference so far.

A factual twin serves all stages before it, so leaving out every stage of a run in turn costs 1 + j
cheap replays of the stage that has j stages before it, where replay needs j.

The first of the later stages can be replayed exactly instead. The cheap replay then goes on from
there, and is compared with the exact one up to there, which is evidence of its error in this run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from stagelens.contracts import Progress, ProgressCallback, Refused
from stagelens.runs.optimizer_kinds import absent, unmergeable
from stagelens.runs.run import Run, Stage

from .durations import Pace, coarse_seconds
from .protocol import Counterfactual, Estimator
from .replay import Replay

EXACT = "exact_stages"
"""The setting that says how many of the first later stages are replayed exactly."""


class CoarseReplay(Estimator):
    """Paired cheap replays within a budget.

    Args:
        budget: Gradients to spend, as a share of what replaying without every stage of the run
            costs. With fewer stages each costs more, because fewer share a factual twin; the
            reported cost is what was actually spent.
        exact_stages: How many of the first later stages are replayed exactly, besides what the
            budget is spent on. A stage with no more later stages than that is left out by replay.
        shard: See :class:`~stagelens.estimators.replay.Replay`.
    """

    name = "coarse-replay"
    title = "Coarse replay"
    note = "within --budget"
    preference = 30
    revision = 1
    automatic = True
    proposed = True
    budgets: ClassVar[Mapping[str, float]] = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5}
    default_budget = 0.25
    warns_cheaper = True

    def __init__(
        self, budget: float = default_budget, exact_stages: int = 0, shard: bool = False
    ) -> None:
        if not 0 < budget <= 1:
            raise Refused(
                f"a budget of {budget:g} is not between 0 and 1; it is the share of replay's cost "
                "that may be spent, for instance 0.25"
            )
        if not isinstance(exact_stages, int) or exact_stages < 0:
            raise Refused(
                f"{exact_stages!r} stages cannot be replayed exactly; give 0 or more of the first "
                "later stages, for instance 1"
            )
        # Left out where it is 0, which is how results without it are stored.
        self.settings = {"budget": budget} | ({EXACT: exact_stages} if exact_stages else {})
        self.budget = budget
        self.exact_stages = exact_stages
        self.replay = Replay(shard=shard)

    @property
    def in_step(self) -> bool:
        """Whether the processes of the job share the model."""
        return self.replay.in_step

    @classmethod
    def possible(cls, run: Run) -> bool:
        """Whether batches of every stage but the first are there, and its steps can be merged."""
        # Every n-th step's batches are enough: each coarse step takes the nearest that were kept.
        kept = all(s.steps > 0 and s.facts.keep_batches != "none" for s in run.stages[1:])
        later = kept and not any(s.no_data_set for s in run.stages[1:])
        known = [s.facts.optimizer for s in run.stages[1:] if s.facts.optimizer is not None]
        if any(unmergeable(each) or absent(each) for each in known):
            return False
        return later and any(s.facts.origin == "recorded" for s in run.stages)

    @classmethod
    def seconds(cls, stages: Sequence[Pace], settings: Mapping[str, Any]) -> float | None:
        """What its steps take where some were timed; else the budget's share of replay.

        Beside the share of what steps take besides their gradients. What is replayed exactly is
        added.
        """
        first = int(settings.get(EXACT, 0))
        # Without the others only exact replays are needed, as they have too few later stages.
        left_out = range(max(len(stages) - 1 - first, 0))
        cheap = coarse_seconds(stages, float(settings.get("budget", cls.default_budget)), left_out)
        if cheap is None:
            return None
        exact = sum(min(number, first) * (pace.seconds or 0) for number, pace in enumerate(stages))
        return cheap + exact

    def prepare(self, run: Run, stages: Sequence[Stage], progress: ProgressCallback) -> None:
        """Checks of replay, where any stage is left out by replay."""
        if replayed := self._replayed(run, stages):
            self.replay.prepare(run, replayed, progress)

    def _replayed(self, run: Run, stages: Sequence[Stage]) -> list[Stage]:
        """Those that have so few later stages that all of them are replayed exactly."""
        return [s for s in stages if len(run.stages) - 1 - s.index <= self.exact_stages]

    def check(self, run: Run, stages: Sequence[Stage]) -> None:
        """Refuse before any work where a stage after any of these cannot be replayed coarsely.

        Raises:
            Refused: One cannot; says why, and what to use instead.
        """
        first = min(stage.index for stage in stages)
        later = run.stages[first + 1 :]
        for stage in later:
            if stage.facts.origin == "assembled":
                raise Refused(stage.not_recorded)
            if stage.facts.problem is not None:
                raise Refused(
                    f"stage {stage.name!r} cannot be replayed coarsely, because of what was found "
                    f"while it was recorded: {stage.facts.problem}"
                )
            if stage.steps == 0 or stage.facts.keep_batches == "none":
                raise Refused(
                    f"stage {stage.name!r} cannot be replayed coarsely, because none of its "
                    'batches were kept; record it with keep_batches="all" (or every n-th), or use '
                    "--estimator task-vector"
                )
            if stage.no_data_set:
                raise Refused(stage.no_data_set)
            if (why := absent(stage.optimizer) or unmergeable(stage.optimizer)) is not None:
                raise Refused(
                    f"stage {stage.name!r} cannot be replayed coarsely: {why}. Use --estimator "
                    "replay, which makes the optimiser's own steps, or task-vector"
                )
        from stagelens.replaying.averaging import check_not_averaged  # torch
        from stagelens.replaying.replay import check_replayable

        for stage in stages:
            check_replayable(run.stages[stage.index + 1 : stage.index + 1 + self.exact_stages])
        replayed = self._replayed(run, stages)
        for stage in stages:
            if stage in replayed:
                continue
            for other in run.stages[stage.index + 1 + self.exact_stages :]:
                check_not_averaged(other, "Coarse replay")

    def counterfactuals(
        self, run: Run, stages: Sequence[Stage], progress: ProgressCallback
    ) -> Iterator[Counterfactual]:
        """See :class:`~stagelens.estimators.protocol.Estimator`."""
        from .coarse_twins import paired_replays

        self.check(run, stages)
        replayed = self._replayed(run, stages)
        estimated = [stage for stage in stages if stage not in replayed]
        overall = Progress(progress)
        share = len(replayed) / len(stages)
        if replayed:
            part = overall.part(0.0, share)
            for found in self.replay.counterfactuals(run, replayed, part):
                reason = f"All later stages are replayed. {found.trust.reason}"
                told = {"estimator": self.name, "reason": reason}
                yield replace(found, trust=found.trust.model_copy(update=told))
        if estimated:
            part = overall.part(share, 1.0)
            yield from paired_replays(
                *(run, estimated, self.budget, self.name, part, self.exact_stages),
                share=self.replay.share,
            )
