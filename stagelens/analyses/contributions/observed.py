"""When a behaviour moved while a stage trained, early or late, in words."""

from __future__ import annotations

from itertools import pairwise

import pandas as pd

from stagelens.contracts import Behaviour
from stagelens.wording.numbers import phrase, signed_text, value_text


def seen_words(observed: pd.DataFrame, stage: str, behaviour: Behaviour, count: int) -> str:
    """Between which measured points of a stage the behaviour moved most; empty without any within.

    Args:
        observed: ``stage``, ``step`` (steps done in the stage; 0 before the first) and ``value``,
            in training order, over all stages.
        stage: Which.
        behaviour: What ``value`` is.
        count: How many steps the stage has.
    """
    own = observed[(observed["stage"] == stage) & (observed["step"] > 0)]
    before = observed.loc[: own.index[0]].iloc[:-1] if len(own) else own
    if len(own) < 2 or before.empty:
        return ""
    start = float(before["value"].iloc[-1])
    steps = [0, *own["step"].astype(int)]
    values = [start, *own["value"].astype(float)]
    changes = [later - earlier for earlier, later in pairwise(values)]
    most = max(range(len(changes)), key=lambda place: abs(changes[place]))
    first, last = steps[most], steps[most + 1]
    when = ", early" if 2 * last <= count else ", late" if 2 * first >= count else ""
    return (
        f"Seen while {stage} trained: the {phrase(behaviour)} went from "
        f"{value_text(start, behaviour)} to {value_text(values[-1], behaviour)}; of "
        f"{len(changes)} measured parts it moved most in steps {first + 1:,} to {last:,} of "
        f"{count:,} ({signed_text(changes[most], behaviour)}){when}. What is seen then is not yet "
        "the stage's effect on the final model."
    )
