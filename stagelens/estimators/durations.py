"""How long training again should take, predicted from the seconds that were recorded.

The time a stage took to train shows what replaying it costs. Predictions are of wall time on an
idle machine, and are meant to be right within a factor of two. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from stagelens.runs.run import Stage

STARTING = 4.0
"""Seconds for a process to load what it needs, and to measure the models."""


def seconds_without_each(stages: Sequence[Stage]) -> float | None:
    """Seconds to replay the later stages once for each stage that is left out.

    None where the seconds of a stage were not recorded.
    """
    # The first stage is never replayed, so its seconds are not needed.
    if any(stage.facts.seconds is None for stage in stages[1:]):
        return None
    return sum(number * (stage.facts.seconds or 0.0) for number, stage in enumerate(stages))


def replay_seconds(stages: Sequence[Stage]) -> float | None:
    """How long replaying without every stage should take.

    For each stage but the last, all later ones run again; and each of these runs once more as
    recorded, to see whether replay is bit for bit. None where a stage's seconds were not recorded.
    """
    once = seconds_without_each(stages)
    return None if once is None else once + sum(s.facts.seconds or 0.0 for s in stages[1:])
