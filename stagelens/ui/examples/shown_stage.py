"""Which stage is looked at where nobody has chosen one, and why that one."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from stagelens.contracts import Behaviour
from stagelens.wording.numbers import phrase


def shown_stage(gains: pd.Series, stages: Sequence[str]) -> tuple[str, str]:
    """The stage most to blame, or where none is to blame, the one with the largest effect.

    Args:
        gains: Mean effects by stage on the credit scale, where positive is credit; may be empty.
        stages: All stages in training order.

    Returns:
        The stage, and what it is, for a sentence.
    """
    if gains.empty:
        return stages[0], "the first stage"
    if gains.min() < 0:
        return str(gains.idxmin()), "the stage most to blame"
    return str(gains.idxmax()), "the stage with the largest effect"


def shown_words(stage: str, why: str, behaviour: Behaviour, of: str) -> str:
    """Says which stage is shown, and where to choose another one.

    Args:
        stage: From :func:`shown_stage`.
        why: From there too.
        behaviour: Whose effects were looked at.
        of: Of which examples, such as ``on average``.
    """
    return f"Shown is {stage}, {why} for the {phrase(behaviour)} {of}; choose another one above."
