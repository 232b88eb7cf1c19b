"""How long training again should take, predicted from the seconds that were recorded.

Training a stage once shows what replaying it costs. Predictions are of wall time without other
load, and are meant to be right within a factor of two. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from stagelens.runs.run import Stage

STARTING = 4.0
"""Seconds until a process has loaded what it needs, and measured the models."""


def seconds_without_each(stages: Sequence[Stage]) -> float | None:
    """Seconds of replaying the later stages once for each stage that is left out.

    None where a stage did not record its seconds.
    """
    if any(stage.facts.seconds is None for stage in stages[1:]):
        return None
    return sum(number * (stage.facts.seconds or 0.0) for number, stage in enumerate(stages))


def replay_seconds(stages: Sequence[Stage]) -> float | None:
    """How long replaying without every stage should take.

    For each stage but the last, all later ones run again; and every later one runs once more as it
    was, to see whether replay is bit for bit. None where a stage did not record its seconds.
    """
    once = seconds_without_each(stages)
    return None if once is None else once + sum(s.facts.seconds or 0.0 for s in stages[1:])
