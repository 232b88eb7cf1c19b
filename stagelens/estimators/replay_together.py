"""``replay`` of several counterfactuals at once, as one ensemble of small networks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from stagelens.compute import devices
from stagelens.contracts import ProgressCallback
from stagelens.replaying.ensemble import replay_together, stackable
from stagelens.replaying.replay import check_replayable
from stagelens.runs.run import Run, Stage

from .held_fixed import held_fixed
from .protocol import Counterfactual
from .replay_check import mixed_precision, other_threads, unchecked
from .stage_trust import REPLAY, StageTrust

_SMALL = 8_000_000
"""Bytes of a model up to which a step on a GPU is taken to cost its calls, not its arithmetic."""


def on_small_gpu(run: Run, stages: Sequence[Stage]) -> bool:
    """Whether an ensemble should be quicker: several small networks, replayed on a GPU."""
    if len(stages) < 2:
        return False
    later = run.stages[min(stage.index for stage in stages) + 1 :]
    return all(
        stage.replayable
        and devices.replaying(stage.environment.device).type == "cuda"
        and sum(file.bytes for file in stage.facts.start.shards) <= _SMALL
        for stage in later
    )


def fitting(run: Run, stages: Sequence[Stage]) -> list[Stage]:
    """Those of the stages that an ensemble can replay the model without.

    Args:
        run: The run.
        stages: Those to leave out, not the last.

    Raises:
        Refused: A later stage cannot be replayed.
    """
    later = run.stages[min(stage.index for stage in stages) + 1 :]
    check_replayable(later)
    # One later stage that does not fit leaves the stages before it to replay one by one.
    last = max((stage.index for stage in later if not stackable(run.task, stage)), default=0)
    # Of what is held fixed the recorded network would not show the error.
    return [
        stage
        for stage in stages
        if stage.index >= last and not held_fixed(run.stages[stage.index + 1 :])
    ]


def counterfactuals_together(
    run: Run, stages: Sequence[Stage], progress: ProgressCallback
) -> Iterator[Counterfactual]:
    """The models without each of these stages, of those that :func:`fitting` gives.

    The model with all stages is replayed with them: how far it is from the recording is their
    deviation, and what it misses in the behaviours is the error to expect of their effects.
    """
    began = time.perf_counter()
    found = replay_together(run, stages, progress)
    taken = time.perf_counter() - began
    steps = {stage.name: run.steps_after(stage) for stage in stages}
    total = sum(steps.values())
    for stage in stages:
        after = run.stages[stage.index + 1 :]
        merging = max(other.facts.boundary.deviation for other in after)
        deviation = max(merging, *(found.relative[other.name] for other in after))
        trust = StageTrust(
            stage=stage.name,
            estimator=REPLAY,
            trust="estimated",
            reason=f"Replay as one ensemble of {len(stages) + 1} networks, which rounds otherwise "
            f"than one by one; it deviates from the recording by {deviation:.1e} of what the stage "
            f"changed{mixed_precision(after)}{other_threads(after)}{unchecked(after)}.",
            deviation=deviation,
            ensemble=True,
            cost=1 + max(steps.values()) / total,  # all share the replay with all stages
            seconds=taken * steps[stage.name] / total,
        )
        yield Counterfactual(stage.name, found.without[stage.name], trust, repeated=found.factual)
