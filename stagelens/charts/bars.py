"""Credit and blame as diverging bars: per stage over many examples, or for one example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens.contracts import Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.folding import strongest
from stagelens.wording.intervals import (
    Interval,
    draws_hold_zero,
    example_interval,
    is_marked,
    made_of,
    mean_interval,
)
from stagelens.wording.numbers import (
    amount_text,
    count_text,
    phrase,
    scaled,
    signed_text,
)
from stagelens.wording.trust_words import promised_elsewhere, signs_known, trust_word

from .diverging_bars import BELOW, BarRow, diverging, is_true, told
from .style import INK, LIGHT, NEITHER, PAPER, Chart, Palette, escaped

_UNSIGNED = "± its sign is uncertain: neither credit nor blame"
_REFUTED = "± a replay does not agree: neither credit nor blame"
_UNCLEAR = "± no clear change: the interval includes zero"


def credit_and_blame(
    summary: pd.DataFrame,
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
    palette: Palette = LIGHT,
    about: str = "all examples",
) -> Chart:
    """One diverging bar per stage, in training order from top to bottom; of many, the strongest.

    Args:
        summary: One row per stage, as ``summary.stage_summary`` makes it (``gain``, ``credit``,
            ``blame``, ``effect``, ``n``, ``within_noise``); NaN where a stage is refused.
        behaviour: What was measured.
        trust: Stage to what is known of its counterfactual; printed under its name. Bars that
            are not to be relied on are faint; those whose sign is uncertain are grey, as are means
            over draws whose interval holds zero.
        palette: Light or dark.
        about: Which examples, for the alternative text.
    """
    every = summary.to_dict("records")
    intervals = [mean_interval(r, trust.get(str(r["stage"])), behaviour) for r in every]
    shown = shown_stages(summary)
    rows, known = [every[place] for place in shown], [intervals[place] for place in shown]
    within = [is_true(r["within_noise"]) for r in rows]
    notes = [
        sign_note(trust.get(str(r["stage"])), behaviour, one) or _not_again(r)
        for r, one in zip(rows, known, strict=True)
    ]
    redrawn = [draws_hold_zero(r) for r in rows]
    bars = [
        BarRow(
            stage=str(row["stage"]),
            credit=float(row["credit"]),
            blame=float(row["blame"]),
            hover=_hover(row, behaviour, one, note),
            within_noise=noisy,
            unsigned=bool(note),
            middle=float(row["gain"]),
            ends=_drawn(one, behaviour),
            redrawn=over,
        )
        for row, one, noisy, note, over in zip(rows, known, within, notes, redrawn, strict=True)
    ]
    figure = diverging(bars, behaviour, trust, palette)
    clear = [is_marked(r, trust.get(str(r["stage"])), behaviour) for r in rows]
    figure.add_trace(
        go.Scatter(
            x=[scaled(float(r["gain"]), behaviour) for r in rows],
            y=[place + BELOW for place in range(len(rows))],
            mode="markers",
            name="net",
            marker={
                "symbol": "hourglass",
                "size": 13,
                # Filled with neither colour where the sign of the mean is not clear.
                "color": [PAPER if one else NEITHER for one in clear],
                "line": {"color": [INK if one else PAPER for one in clear], "width": 2},
            },
            hoverinfo="skip",
        )
    )
    said = "; ".join(
        f"{r['stage']}: {_sides(r, behaviour, bool(note))}"
        + (f", {note.removeprefix('± ')}" if note else "")
        + told(trust.get(str(r["stage"])), behaviour, noisy, redrawn=over)
        for r, noisy, note, over in zip(rows, within, notes, redrawn, strict=True)
    )
    more = rest_text(summary, behaviour)
    ends = {
        "low": [np.nan if one is None else one.low for one in intervals],
        "high": [np.nan if one is None else one.high for one in intervals],
    }
    return Chart(
        figure,
        f"Credit and blame of each stage for the {phrase(behaviour)} on {about}. {said}."
        + (f" {more}" if more else ""),
        summary.assign(**ends),
    )


def _drawn(interval: Interval | None, behaviour: Behaviour) -> tuple[float, float] | None:
    if interval is None or interval.low == interval.high:
        return None
    return interval.gains(behaviour)


_NOISY = "± within training noise"
"""Said of an effect on one example that another order of the batches might turn round."""


def sign_note(trust: StageTrust | None, behaviour: Behaviour, interval: Interval | None) -> str:
    """Why bars of a stage, or of one example, are neither credit nor blame; empty where they are.

    Where nothing is estimated, single examples have their credit and blame, whatever the mean.
    """
    if trust is not None and not signs_known(trust, behaviour.name):
        refuted = trust_word(trust, behaviour.name) == "does not agree"
        return _REFUTED if refuted else _UNSIGNED
    uncertain = interval is not None and (interval.estimate > 0 or bool(interval.drawn))
    unclear = uncertain and interval is not None and not interval.is_clear
    return _UNCLEAR if unclear else ""


def _not_again(row: Mapping[str, Any]) -> str:
    """That other trainings may turn bars round; empty where they do not, or it is not known."""
    over = draws_hold_zero(row)
    return f"± the interval over {over} holds zero: neither credit nor blame" if over else ""


def _hover(
    row: Mapping[str, Any], behaviour: Behaviour, interval: Interval | None, note: str
) -> str:
    lines = [f"<b>{escaped(str(row['stage']))}</b>", _would_be_mean(row, behaviour)]
    lines.append(made_of(interval, behaviour))
    plus, minus = (signed_text(row[name], behaviour) for name in ("credit", "blame"))
    shares = [_percent(row[f"{name}_share"]) for name in ("credit", "blame")]
    names = ("one way", "the other way") if note else ("credit", "blame")
    lines.append(f"{names[0]} {plus}, in {shares[0]} of {row['n']:,} examples")
    lines.append(f"{names[1]} {minus}, in {shares[1]}")
    return "<br>".join([*lines, *([note] if note else [])])


def _sides(row: Mapping[str, Any], behaviour: Behaviour, unsigned: bool) -> str:
    if not np.isfinite(row["gain"]):
        return "no number"
    first, second = (amount_text(row[name], behaviour) for name in ("credit", "blame"))
    if unsigned:
        return f"{first} one way, {second} the other way"
    return f"credit {first}, blame {second}"


def shown_stages(summary: pd.DataFrame) -> list[int]:
    """The rows of a summary that :func:`credit_and_blame` draws: most credit or most blame."""
    return strongest(np.fmax(summary["credit"].astype(float), -summary["blame"].astype(float)))


def rest_text(summary: pd.DataFrame, behaviour: Behaviour) -> str:
    """The stages that :func:`credit_and_blame` leaves out, in a sentence; empty where none is."""
    shown = set(shown_stages(summary))
    rest = summary.iloc[[place for place in range(len(summary)) if place not in shown]]
    if rest.empty:
        return ""
    known = rest.dropna(subset=["credit", "blame"])
    said = f"Not drawn: {count_text(len(rest), 'stage')} with less credit and blame than these"
    if known.empty:
        return f"{said}, none of them with a number."
    # Not their sum, which would read as the effect of leaving out all of them at once.
    credit, blame = (amount_text(known[name].mean(), behaviour) for name in ("credit", "blame"))
    return f"{said}; on average credit {credit} and blame {blame}."


def example_effects(
    effects: pd.DataFrame,
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
    palette: Palette = LIGHT,
    towards: str | None = None,
) -> Chart:
    """Every stage's effect on one example as a bar: credit to the right, blame to the left.

    Args:
        effects: One row per stage in training order, with ``stage``, ``effect`` and, where the
            training noise is known, ``within_noise``; where the error of the effect on one example
            is known, ``error``, what it adds on either side, and ``final``, what the final model
            has.
        behaviour: What was measured.
        trust: Stage to what is known of its counterfactual.
        palette: Light or dark.
        towards: The answer that the behaviour is about, where nobody has said that it is right:
            then there is no credit or blame, and stages push towards it or away from it.
    """
    every, effects = effects, effects.iloc[strongest(effects["effect"])]
    stages = [str(stage) for stage in effects["stage"]]
    gains = [behaviour.sign * float(effect) for effect in effects["effect"]]
    within = [is_true(one) for one in effects.get("within_noise", [None] * len(stages))]
    intervals = example_intervals(effects, behaviour)
    notes = notes_of_one(stages, intervals, within, behaviour, trust)
    hovers = [
        f"<b>{escaped(stage)}</b><br>without it: {phrase(behaviour)} "
        f"{_change(-behaviour.sign * gain, behaviour)}{error_text(interval, behaviour, '<br>')}"
        + (f"<br>{note}" if note and note != _NOISY else "")
        for stage, gain, interval, note in zip(stages, gains, intervals, notes, strict=True)
    ]
    bars = [
        BarRow(
            stage=stage,
            credit=max(gain, 0.0) if np.isfinite(gain) else gain,
            blame=min(gain, 0.0) if np.isfinite(gain) else gain,
            hover=hover,
            within_noise=noisy,
            unsigned=bool(note),
            middle=gain,
            ends=_drawn(interval, behaviour),
        )
        for stage, gain, hover, noisy, note, interval in zip(
            stages, gains, hovers, within, notes, intervals, strict=True
        )
    ]
    figure = diverging(bars, behaviour, trust, palette, narrow=True, towards=towards)
    more = len(every) - len(effects)
    said = said_of_one(stages, gains, within, notes, behaviour, trust, more, towards)
    return Chart(figure, said, every)


def notes_of_one(
    stages: Sequence[str],
    intervals: Sequence[Interval | None],
    within: Sequence[bool],
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
) -> list[str]:
    """:func:`sign_note` of each stage on one example, where noise makes neither, too."""
    return [
        sign_note(trust.get(stage), behaviour, interval) or (_NOISY if noisy else "")
        for stage, interval, noisy in zip(stages, intervals, within, strict=True)
    ]


def example_intervals(effects: pd.DataFrame, behaviour: Behaviour) -> list[Interval | None]:
    """Of each row that :func:`example_effects` takes."""
    unknown = pd.Series(np.nan, effects.index)
    columns = (effects["effect"], effects.get("error", unknown), effects.get("final", unknown))
    return [
        example_interval(float(effect), float(error), behaviour, float(final))
        for effect, error, final in zip(*columns, strict=True)
    ]


def said_of_one(
    stages: Sequence[str],
    gains: Sequence[float],
    within: Sequence[bool],
    notes: Sequence[str],
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
    more: int = 0,
    towards: str | None = None,
) -> str:
    """The effects on one example in words; a gain is credit where it is positive.

    Of many stages these are the strongest, and there are ``more``. ``notes`` are of
    :func:`sign_note`. With ``towards``, see :func:`example_effects`, a gain pushes towards it.
    """
    said = "; ".join(
        f"{stage}: "
        + (
            "no number"
            if not np.isfinite(gain)
            else f"{_side(gain, note, towards)} {amount_text(gain, behaviour)}"
        )
        + told(trust.get(stage), behaviour, noisy and note != _NOISY)
        for stage, gain, noisy, note in zip(stages, gains, within, notes, strict=True)
    )
    rest = f" {more:,} more stages have smaller effects." if more else ""
    return f"Effect of each stage on this example's {phrase(behaviour)}. {said}.{rest}"


def _side(gain: float, note: str, towards: str | None) -> str:
    if note:
        return f"{note.removeprefix('± ')},"
    if towards is not None:
        return f"pushes {'towards' if gain > 0 else 'away from'} {towards}, by"
    return "credit" if gain > 0 else "blame"


def error_text(interval: Interval | None, behaviour: Behaviour, before: str = "") -> str:
    """What the error of an estimate adds to the effect on one example; empty where not known."""
    if interval is None:
        return ""
    off = amount_text(interval.estimate, behaviour)
    where = promised_elsewhere(behaviour.name)
    return f"{before}±{off}, which nine of ten such estimates stay within{where and f' ({where})'}"


def _would_be_mean(row: Mapping[str, Any], behaviour: Behaviour) -> str:
    return f"without it: mean {phrase(behaviour)} {_change(-row['effect'], behaviour)}"


def _change(difference: float, behaviour: Behaviour) -> str:
    if not np.isfinite(difference):
        return "not known"
    word = "higher" if difference > 0 else "lower"
    return "the same" if difference == 0 else f"{amount_text(difference, behaviour)} {word}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if np.isfinite(share) else "n/a"
