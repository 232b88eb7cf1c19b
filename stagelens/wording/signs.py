"""The one sign rule: credit is up, to the right and positive; blame is down and negative.

Tables, tiles, comparisons and marks in charts show effects on this *credit scale*, whichever
direction of a behaviour is better: without *shortcut* the loss would be 7.87 lower, so its effect
is blame, −7.87. The values of a behaviour itself stand in sentences and on axes named after it.
Nothing but this file and ``charts.style.color_of`` decides which sign or colour an effect has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from stagelens.contracts import Behaviour

from .numbers import amount_text, signed_text

CREDIT_OR_BLAME = "credit (+) or blame (−)"
"""Head of a column of effects on the credit scale, beside columns of the values themselves."""

_Effects = TypeVar("_Effects", float, np.ndarray, pd.Series)

POSITIVE_IS = "Positive: better because of the stage (credit); negative: worse (blame)."
"""What the signs of numbers mean, for the text beside them."""


def gain(effect: _Effects, behaviour: Behaviour) -> _Effects:
    """Effects (``final - without``) on the credit scale: positive where they make it better."""
    return behaviour.sign * effect


def because(row: Mapping[str, Any], behaviour: Behaviour) -> str:
    """An effect in words, without marks: ``62 points higher because of dpo (worse)``.

    Args:
        row: With ``stage`` and ``effect``.
        behaviour: What was measured.
    """
    effect = float(row["effect"])
    way, verdict = ("higher" if effect > 0 else "lower"), side(effect, behaviour)
    verdict = {"credit": " (better)", "blame": " (worse)"}.get(verdict, "")
    return f"{amount_text(effect, behaviour)} {way} because of {row['stage']}{verdict}"


def gain_text(effect: float, behaviour: Behaviour, unit: bool = True) -> str:
    """An effect in print, on the credit scale: ``+0.41`` for a loss that is lower because of it."""
    return signed_text(gain(effect, behaviour), behaviour, unit)


def gain_range_text(low: float, high: float, behaviour: Behaviour, unit: bool = True) -> str:
    """Two effects that are the ends of a range, on the credit scale, the worse one first."""
    ends = sorted((gain(low, behaviour), gain(high, behaviour)))
    return " to ".join(signed_text(end, behaviour, unit) for end in ends)


def side(effect: float, behaviour: Behaviour) -> str:
    """``credit``, ``blame``, or neither where the effect is not known or rounds to zero."""
    return {"+": "credit", "−": "blame"}.get(gain_text(effect, behaviour)[0], "")


def marked(gain: float, behaviour: Behaviour, unit: bool = True, signed: bool = True) -> str:
    """The size of an effect after its mark, ▲ credit or ▼ blame; no mark if it rounds to zero.

    Args:
        gain: The effect on the credit scale.
        behaviour: What was measured.
        unit: Whether the unit is printed.
        signed: Whether it is credit or blame; where it is neither, the mark is ±.
    """
    text = amount_text(gain, behaviour, unit)
    # As printed, because what rounds to zero depends on the behaviour.
    if not any(digit in text for digit in "123456789"):
        return text
    return f"{'±' if not signed else '▲' if gain > 0 else '▼'} {text}"
