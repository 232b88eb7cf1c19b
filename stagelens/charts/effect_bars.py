"""Every stage's effect on one example as bars of markup, which a browser draws at once.

They show what :func:`stagelens.charts.example_effects` draws, without the wait for a figure when
somebody goes from example to example.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import pandas as pd

from stagelens.contracts import Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.folding import strongest
from stagelens.wording.intervals import Interval
from stagelens.wording.numbers import axis_unit, is_share, scaled, signed_text
from stagelens.wording.signs import marked
from stagelens.wording.trust_words import MARKS, is_trustworthy, trust_word

from .bars import error_text, example_intervals, notes_of_one, said_of_one
from .diverging_bars import FAINT, SHORT_NOISE, direction_texts, is_true
from .style import BLAME, CREDIT, INK, NEITHER, PAPER, PUSH, ZERO, see_through, short, written
from .tokens import Markup

_STRIPE = see_through(PAPER, 0.65)
_HATCHED = f"repeating-linear-gradient(135deg,{BLAME} 0 4px,{_STRIPE} 4px 6px),{BLAME}"
"""Blame differs by more than its colour and side."""
_CROSSED = f"repeating-linear-gradient(45deg,{_STRIPE} 0 2px,transparent 2px 6px),"
_UNSIGNED = f"{_CROSSED}repeating-linear-gradient(135deg,{_STRIPE} 0 2px,{NEITHER} 2px 6px)"
"""Of what is neither credit nor blame: neither colour, and hatched both ways."""


def effect_bars(
    effects: pd.DataFrame,
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
    largest: float | None = None,
    towards: str | None = None,
) -> Markup:
    """Every stage's effect on one example: credit to the right of zero, blame to the left.

    Of many stages, the strongest.

    Args:
        effects: As :func:`stagelens.charts.example_effects` takes them: ``stage``, ``effect`` and,
            where the training noise is known, ``within_noise``; where they are known, ``error`` and
            ``final``.
        behaviour: What was measured.
        trust: Stage to what is known of its counterfactual. Bars that are not to be relied on are
            faint, and grey where they are neither credit nor blame. A stage without trust shows
            its name.
        largest: Size of the effect whose bar fills its side, to compare examples; None for the
            largest of these.
        towards: The answer that the behaviour is about, where nobody has said that it is right;
            see :func:`stagelens.charts.example_effects`.
    """
    count = len(effects)
    effects = effects.iloc[strongest(effects["effect"])]
    stages = [str(stage) for stage in effects["stage"]]
    gains = [behaviour.sign * float(effect) for effect in effects["effect"]]
    within = [is_true(one) for one in effects.get("within_noise", [None] * len(stages))]
    intervals = example_intervals(effects, behaviour)
    notes = notes_of_one(stages, intervals, within, behaviour, trust)
    sizes = [abs(scaled(gain, behaviour)) for gain in gains if isfinite(gain)]
    if largest is not None:
        sizes = [abs(scaled(largest, behaviour))]
    # A lower bound, so that effects that all round to zero are not blown up.
    reach = max([*sizes, 1.0 if is_share(behaviour) else 0.01])
    lines = "".join(
        _line(stage, gain, interval, note, noisy, behaviour, trust.get(stage), reach, towards)
        for stage, gain, interval, note, noisy in zip(
            stages, gains, intervals, notes, within, strict=True
        )
    )
    more = count - len(effects)
    alt = said_of_one(stages, gains, within, notes, behaviour, trust, more, towards)
    unit = f" ({axis_unit(behaviour)})" if axis_unit(behaviour) else ""
    left, right = direction_texts(behaviour, unit, towards and short(towards, 24))
    axis = (
        "<div style='display:flex;justify-content:space-between;opacity:.75;font-size:.8125rem'>"
        f"<span>{written(left)}</span><span>{written(right)}</span></div>"
    )
    return Markup(
        f"<div role='figure' aria-label='{written(alt)}' style='font-size:.875rem'>"
        "<div style='display:grid;grid-template-columns:minmax(0,1fr) auto;gap:0 .6em'>"
        f"{lines}</div>{axis}{_rest(more)}</div>",
        alt,
    )


def _rest(more: int) -> str:
    return f"<div style='opacity:.75'>{more:,} more stages have smaller effects.</div>" * (more > 0)


def _line(
    stage: str,
    gain: float,
    interval: Interval | None,
    note: str,
    within_noise: bool,
    behaviour: Behaviour,
    trust: StageTrust | None,
    reach: float,
    towards: str | None,
) -> str:
    """A stage's name, what is known about it, its amount, and the bar below."""
    notes = []
    faint = False
    if trust is not None:
        word = trust_word(trust, behaviour.name)
        notes.append(f"{MARKS[word]} {word}")
        faint = not is_trustworthy(trust, behaviour.name)
    notes += [SHORT_NOISE] if within_noise else []
    signed = not note
    about = f"{error_text(interval, behaviour)} {note}"
    known = f" <span style='opacity:.75;font-size:.8125rem'>{written(', '.join(notes))}</span>"
    if isfinite(gain):
        number = marked(gain, behaviour, signed=signed)
        colors = (CREDIT, _HATCHED)
        if towards is not None:
            colors = (PUSH, PUSH)
            number = signed_text(gain, behaviour) if signed else number
        bar = _bar(gain, abs(scaled(gain, behaviour)) / reach, faint, signed, colors)
        if interval is not None:
            low, high = (scaled(end, behaviour) / reach for end in interval.gains(behaviour))
            bar += _whisker(low, high)
    else:
        refused = trust is not None and trust.trust == "refused"
        number, bar = "refused: no number" if refused else "no number", ""
    return (
        f"<div style='overflow-wrap:anywhere'><bdi>{written(short(stage, 60))}</bdi>"
        f"{known if notes else ''}</div>"
        f"<div style='white-space:nowrap;text-align:right'>{written(number)}</div>"
        f"<div title='{written(about.strip())}' "
        "style='grid-column:1/-1;position:relative;height:1.2em;margin-bottom:.4em'>"
        f"<span style='position:absolute;left:50%;top:0;bottom:0;border-left:1px solid {ZERO}'>"
        f"</span>{bar}</div>"
    )


def _bar(gain: float, share: float, faint: bool, signed: bool, colors: tuple[str, str]) -> str:
    side, filled = ("left", colors[0]) if gain >= 0 else ("right", colors[1])
    edge = "" if signed else f";outline:1px solid {NEITHER}"
    filled = filled if signed else _UNSIGNED
    return (
        f"<span style='position:absolute;{side}:50%;top:.15em;height:.9em;"
        f"width:{50 * min(share, 1.0):.2f}%;background:{filled};"
        f"opacity:{FAINT if faint else 1}{edge}'></span>"
    )


def _whisker(low: float, high: float) -> str:
    """An interval in shares of the way to either end, cut off there; dark in a light seam."""
    low, high = (max(min(end, 1.0), -1.0) for end in (low, high))
    return (
        f"<span style='position:absolute;left:{50 + 50 * low:.2f}%;width:{50 * (high - low):.2f}%;"
        f"top:calc(50% + .1em);height:2px;background:{INK};"
        f"box-shadow:0 0 0 1.5px {PAPER}'></span>"
    )
