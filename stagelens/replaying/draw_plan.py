"""What a draw of a recipe is made from, and which stages it runs. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stagelens.runs.run import Run, Stage

ORDER, INITIAL, PASSES, DATA = range(4)
"""Streams of random numbers of a draw, so that none depends on how many another took."""


@dataclass(frozen=True)
class Draw:
    """What a draw is made from.

    Attributes:
        number: Seeds all its choices; the same number gives the same draw.
        resample: Whether batches are drawn with replacement, which stands for other data of the
            same kind, and some draws have those of another (:func:`data_of`); otherwise every
            recorded batch is used, in another order.
        given_earlier: Whether a stage's effect is drawn with the earlier stages, and the stage
            itself, as recorded: only what comes after it is drawn.
    """

    number: int
    resample: bool = False
    given_earlier: bool = False

    def random(self, stage: Stage, stream: int, *more: int) -> np.random.Generator:
        """Random numbers for one purpose in one stage, the same whichever stage is left out."""
        return np.random.default_rng([self.number, stage.index, stream, *more])


def data_of(number: int) -> int:
    """The number of the data that a draw has, where batches are drawn with replacement.

    Draws on the same data differ by chance alone, which tells it from what other data would change.
    The first five have their own, since these are known least; the next three repeat the first
    three, and from then on every other draw repeats those of the earliest that no other has.
    """
    if number < 5:
        return number
    return number - 5 if number < 8 else number // 2 + 1 if number % 2 == 0 else (number - 3) // 2


def pool_size(steps: int, seen: int) -> int:
    """How many batches are drawn with replacement: those of one pass through the examples."""
    return math.ceil(steps / seen)


def coalition_passes(masks: Iterable[int]) -> list[int]:
    """Stages that one draw runs for its models of some coalitions, each as often as it is run.

    Nothing of a draw is recorded, so all ``2 ** M`` coalitions of M stages take ``2 ** M - 1``.

    Args:
        masks: Bit i is set where stage i happened.

    Returns:
        Indices, in order.
    """
    found = {
        (index, mask & ((1 << index) - 1))
        for mask in masks
        for index in range(mask.bit_length())
        if mask >> index & 1
    }
    return sorted(index for index, _ in found)


def passes_needed(run: Run, stages: Sequence[Stage], given_earlier: bool = False) -> list[Stage]:
    """The stages that one draw runs, each as often as it is run.

    Args:
        run: The run.
        stages: Those to leave out.
        given_earlier: See :class:`Draw`.
    """
    after = [other for stage in stages for other in run.stages[stage.index + 1 :]]
    return [*after, *after] if given_earlier else [*run.stages, *after]
