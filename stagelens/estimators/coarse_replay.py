"""``coarse-replay``: replay the later stages cheaply twice, and take the difference.

One cheap replay starts where the stage ended (the factual twin), one where it started (the
counterfactual twin). The errors of cheapness are mostly common to both, and the difference keeps
little of them. At every boundary the factual twin starts from the recorded state again, and the
counterfactual twin from that minus the difference so far.

A factual twin serves all stages before it, so leaving out every stage of a run in turn costs 1 + j
cheap replays of the stage that has j stages before it, where replay needs j.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from stagelens.contracts import ProgressCallback, Refused
from stagelens.runs.run import Run, Stage

from .durations import Pace, coarse_seconds
from .protocol import Counterfactual, Estimator


class CoarseReplay(Estimator):
    """Paired cheap replays within a budget.

    Args:
        budget: Gradients to spend, as a share of what replaying without every stage of the run
            costs. With fewer stages each costs more, because fewer share a factual twin; the
            reported cost is what was actually spent.
    """

    name = "coarse-replay"
    title = "Coarse replay"
    note = "within --budget"
    preference = 30
    automatic = True
    proposed = True
    budgets: ClassVar[Mapping[str, float]] = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5}
    default_budget = 0.25
    warns_cheaper = True

    def __init__(self, budget: float = default_budget) -> None:
        if not 0 < budget <= 1:
            raise Refused(
                f"a budget of {budget:g} is not between 0 and 1; it is the share of replay's cost "
                "that may be spent, for instance 0.25"
            )
        self.settings = {"budget": budget}
        self.budget = budget

    @classmethod
    def possible(cls, run: Run) -> bool:
        """Whether batches of every stage but the first were kept."""
        # Every n-th step's batches are enough: each coarse step takes the nearest that were kept.
        later = all(s.steps > 0 and s.facts.keep_batches != "none" for s in run.stages[1:])
        return later and any(s.facts.origin == "recorded" for s in run.stages)

    @classmethod
    def seconds(cls, stages: Sequence[Pace], settings: Mapping[str, Any]) -> float | None:
        """What its steps take where some were timed; else the budget's share of replay.

        Beside the share of what steps take besides their gradients.
        """
        return coarse_seconds(stages, float(settings.get("budget", cls.default_budget)))

    def counterfactuals(
        self, run: Run, stages: Sequence[Stage], progress: ProgressCallback
    ) -> Iterator[Counterfactual]:
        """See :class:`~stagelens.estimators.protocol.Estimator`."""
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
        from .coarse_twins import paired_replays  # torch

        yield from paired_replays(run, stages, self.budget, self.name, progress)
