"""Numbers as people read them: values and effects of behaviours, counts, and times."""

from __future__ import annotations

import numpy as np

from stagelens.contracts import SCORE, Behaviour, is_fraction, is_score

_SHARES = ("accuracy", "probability")
_PHRASES = {"probability": "probability of the label"}


def is_share(behaviour: Behaviour) -> bool:
    """Whether values lie in 0..1 and are printed as percentages, differences as points."""
    return behaviour.name in _SHARES or behaviour.unit == "points" or is_fraction(behaviour)


def phrase(behaviour: Behaviour) -> str:
    """The behaviour's name as used in a sentence, without an article."""
    if is_score(behaviour):
        return f"{behaviour.name.removeprefix(SCORE)} score"
    return _PHRASES.get(behaviour.name, behaviour.name)


def axis_unit(behaviour: Behaviour) -> str:
    """What differences are measured in, for axis titles; empty where the behaviour has none."""
    return "points" if is_share(behaviour) else behaviour.unit


def scaled(value: float, behaviour: Behaviour) -> float:
    """As axes and tables print it: percent for shares, else the value."""
    return 100 * value if is_share(behaviour) else value


def number(value: float) -> str:
    """Two or three significant digits, with a true minus sign; "n/a" where there is no number."""
    if not np.isfinite(value):
        return "n/a"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    # Smaller sizes would print as 0.000, or as −0.000.
    text = f"{value:.{digits}f}" if size >= 0.0005 else "0"
    return text.replace("-", "−")


def value_text(value: float, behaviour: Behaviour) -> str:
    """A measured value: ``87.5 %`` for shares, else the number."""
    if not np.isfinite(value):
        return "n/a"
    return f"{100 * value:.1f} %" if is_share(behaviour) else number(value)


def certainty_text(probability: float) -> str:
    """How probable a model holds its own answer: ``probability 97 %``; never 0 or 100 %."""
    shown = 100 * probability
    if shown > 99.9:
        return "probability > 99.9 %"
    if shown < 0.1:
        return "probability < 0.1 %"
    # Whole percents would round what is next to an end to it.
    return f"probability {shown:.{1 if shown < 1 or shown > 99 else 0}f} %"


def amount_text(difference: float, behaviour: Behaviour, unit: bool = True) -> str:
    """The size of a difference, without its sign: ``41 points``, ``0.41``."""
    if not np.isfinite(difference):
        return "n/a"
    size = abs(difference)
    if not is_share(behaviour):
        return number(size)
    points = 100 * size
    # From 9.95 on, one decimal would give 10.0 and more: a digit too many.
    text = f"{points:.0f}" if points >= 9.95 else f"{points:.1f}"
    if not unit:
        return text
    return f"{text} point" if text == "1" else f"{text} points"


def signed_text(difference: float, behaviour: Behaviour, unit: bool = True) -> str:
    """A difference with its sign; without one where it rounds to zero."""
    text = amount_text(difference, behaviour, unit)
    # Looks at the text, because rounding depends on the behaviour.
    if not np.isfinite(difference) or not any(c in "123456789" for c in text):
        return text
    return ("+" if difference > 0 else "−") + text


def plain_signed(value: float, digits: str = ".3f") -> str:
    """A number with its sign, minus as elsewhere in words and tables, and no unit."""
    return f"{value:+{digits}}".replace("-", "−")


def count_text(n: int, noun: str = "example") -> str:
    """``1 image``, ``1,200 images``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def predicted_time(seconds: float) -> str:
    """A predicted time, no more exact than it deserves: ``about 20 seconds``, ``about 3 hours``."""
    for size, unit in ((3600.0, "hour"), (60.0, "minute")):
        # From 1.5 on, the rounded number is at least 2, so the plural is right.
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.0f} {unit}s"
    if seconds >= 55:
        return "about a minute"
    if seconds < 10:
        return "under 10 seconds"
    return f"about {5 * round(seconds / 5)} seconds"


def measured_time(seconds: float) -> str:
    """A time that was measured: ``7 ms``, ``2.4 s``, ``3.1 min``."""
    if seconds < 0.95:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.0005 else "0 ms"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
