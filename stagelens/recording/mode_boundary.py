"""Boundaries at which the optimiser before was switched to its other weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from stagelens.replaying.modes import called
from stagelens.runs.optimizer_kinds import mode_of
from stagelens.runs.optimizer_values import GROUP
from stagelens.runs.run import Stage
from stagelens.runs.schema import Boundary
from stagelens.runs.states import TrainingState

from .boundary import Unexplained, find_boundary

_MOST_CALLS = 3
"""Evaluating after a stage, once or twice, and going on."""


def find_switched(
    last: Stage, before: TrainingState, start: TrainingState, **given: Any
) -> Boundary:
    """:func:`find_boundary`, where the last stage's optimiser may have been called in between.

    Args:
        last: The stage before.
        before: Its end.
        start: The state that the new stage starts from.
        given: Passed on.

    Raises:
        Unexplained: A value changed that nothing explains.
    """
    try:
        return find_boundary(before, start, ended=last.facts.end_optimizer, **given)
    except Unexplained as error:
        for calls in _calls(last, before):
            try:
                found = find_boundary(called(last, before, calls), start, **given)
            except Unexplained:
                continue
            return found.model_copy(update={"calls": calls})
        raise error


def _calls(last: Stage, before: TrainingState) -> Iterator[list[Literal["train", "eval"]]]:
    known = last.facts.optimizer
    mode = "" if known is None else mode_of(known)
    for state in before.optimizer.values() if mode else ():
        trains = state.get(f"{GROUP}{mode}:bool")
        if trains is not None:
            names: list[Literal["train", "eval"]] = ["eval", "train"] * 2
            first = 0 if bool(trains) else 1
            yield from (names[first : first + count] for count in range(1, _MOST_CALLS + 1))
            return
