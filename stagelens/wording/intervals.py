"""Between which values an effect lies, and what the width is made of.

A mean effect over examples is uncertain for two reasons: other examples might have been drawn, and
an estimate is off. The interval is the hull of both: the sampling interval with the error of the
estimate added at either end. Where the error of an estimate is not known there is no interval,
because the sampling interval alone would be read as all that is uncertain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import Behaviour
from stagelens.estimators.stage_trust import REPLAY, StageTrust

from .numbers import amount_text
from .quantiles import t_quantile
from .signs import gain_range_text
from .trust_words import promised_elsewhere, signs_known, trust_word


@dataclass(frozen=True)
class Interval:
    """Between which values a mean effect lies.

    Attributes:
        low: Its lower end, an effect.
        high: Its upper end.
        sampling: What the examples add on either side.
        estimate: What the error of the estimate adds on either side; 0 where there is none.
        cut: Whether an end is nearer than that, because no effect can lie beyond it.
        orders: What the choice of sampled orders adds on either side; 0 where none were sampled.
        drawn: Over what a mean over draws is, as ``8 redraws``; empty for another. Its ends are
            those over draws, and nothing else is added.
    """

    low: float
    high: float
    sampling: float
    estimate: float
    cut: bool = False
    orders: float = 0.0
    drawn: str = ""

    @property
    def is_clear(self) -> bool:
        """Whether it leaves out zero, so that the sign of the mean is known."""
        return self.low > 0 or self.high < 0

    def gains(self, behaviour: Behaviour) -> tuple[float, float]:
        """Its ends as gains, positive for credit; the lower one first."""
        low, high = sorted((behaviour.sign * self.low, behaviour.sign * self.high))
        return low, high


def mean_interval(
    row: Mapping[str, Any], trust: StageTrust | None, behaviour: Behaviour
) -> Interval | None:
    """The interval of a mean effect over examples; None where it is not known.

    Args:
        row: As ``summary.stage_summary`` makes it: ``effect``, ``error`` (its standard error),
            ``freedom`` (the degrees of freedom of that; without, it is taken to be known) and
            ``rms`` (root mean square effect of the stage over the labelled examples of the set).
            With ``final``, the estimate of the mean without the stage is one that can be, too. A
            mean over draws has the interval over them, see :func:`over_draws`.
        trust: What is known of the stage's counterfactual.
        behaviour: Of the effects on which behaviour.
    """
    if (drawn := over_draws(row)) is not None:
        return drawn
    effect, error = (float(row.get(name, np.nan)) for name in ("effect", "error"))
    estimate = mean_error(trust, behaviour.name, row.get("n", 1), row.get("rms", np.nan))
    if estimate is None or not (np.isfinite(effect) and np.isfinite(error)):
        return None
    return _around(effect, chance_over_examples(row), estimate, behaviour, row.get("final", np.nan))


def chance_over_examples(row: Mapping[str, Any]) -> float:
    """What the choice of examples adds on either side of a mean effect (95 %).

    Args:
        row: As :func:`mean_interval` takes it.
    """
    return t_quantile(_number(row.get("freedom", np.inf))) * _number(row.get("error"))


def over_draws(row: Mapping[str, Any]) -> Interval | None:
    """The interval over draws of a mean effect that is itself a mean over these draws; else None.

    Args:
        row: As :func:`mean_interval` takes it, with ``draw_effect``, ``draw_low``, ``draw_high``
            and ``drawn`` where the recipe was drawn.
    """
    names = ("effect", "draw_effect", "draw_low", "draw_high")
    effect, mean, low, high = (_number(row.get(name)) for name in names)
    if not (np.isfinite(low) and np.isfinite(high) and np.isclose(effect, mean, rtol=1e-9)):
        return None
    return Interval(low, high, 0.0, 0.0, drawn=str(row["drawn"]))


def governing(
    row: Mapping[str, Any], trust: StageTrust | None, behaviour: Behaviour
) -> Interval | None:
    """The interval that says whether a mean effect is a finding; None where it is not known.

    That over draws of the recipe where there is one, because it says whether the effect would come
    again; else that over examples.

    Args:
        row: As :func:`mean_interval` takes it, with ``draw_low``, ``draw_high`` and ``drawn`` where
            the recipe was drawn.
        trust: What is known of the stage's counterfactual.
        behaviour: Of the effects on which behaviour.
    """
    low, high = _number(row.get("draw_low")), _number(row.get("draw_high"))
    if np.isfinite(low) and np.isfinite(high):
        return Interval(low, high, 0.0, 0.0, drawn=str(row["drawn"]))
    return mean_interval(row, trust, behaviour)


def is_marked(row: Mapping[str, Any], trust: StageTrust | None, behaviour: Behaviour) -> bool:
    """Whether a mean effect is marked as credit or as blame; else it is neither, marked ±.

    Tables, bars and takeaways all go by this: the sign has to be known, the effect beyond training
    noise where that is known, and :func:`governing`'s interval on the effect's own side of zero.

    Args:
        row: As :func:`governing` takes it, with ``within_noise``.
        trust: What is known of the stage's counterfactual.
        behaviour: Of the effects on which behaviour.
    """
    within, effect = row.get("within_noise"), _number(row.get("effect"))
    if not signs_known(trust, behaviour.name) or (pd.notna(within) and bool(within)):
        return False
    found = governing(row, trust, behaviour)
    # Without an interval, the word of trust beside the number says what is known.
    return found is None or (found.low > 0 if effect > 0 else found.high < 0)


def beside_draws(
    effect: float, mean: float, low: float, high: float, single: float, behaviour: Behaviour
) -> str:
    """What an effect of one run has to do with an interval over draws that it lies outside of.

    The interval is of the recipe's mean, and single trainings scatter around that: an effect of one
    of them outside of it is nothing odd. It is unusual where it is further away than one more
    training would be.

    Args:
        effect: Of the run.
        mean: Over draws.
        low: Lower end of the mean's interval.
        high: Its upper end.
        single: How far one more training may be from the mean; NaN where it is not known.
        behaviour: Of the effects.

    Returns:
        The end of a sentence; empty within the interval, or where one of the numbers is not known.
    """
    if low <= effect <= high or not np.isfinite([effect, mean, low, high, single]).all():
        return ""
    apart = abs(effect - mean)
    verdict = "not unusual" if apart <= single else "unusual"
    own, reach = (amount_text(each, behaviour) for each in (apart, single))
    return (
        f"; this one differs by {own}, which is {verdict}: single trainings differ from that mean "
        f"by up to {reach} (95 %)"
    )


def draws_hold_zero(row: Mapping[str, Any]) -> str:
    """Over what draws the interval of an effect holds zero, as ``8 redraws``; empty if none does.

    Args:
        row: As :func:`over_draws` takes it.
    """
    low, high = _number(row.get("draw_low")), _number(row.get("draw_high"))
    return str(row["drawn"]) if low <= 0 <= high else ""


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)


def example_interval(
    effect: float, error: float, behaviour: Behaviour, final: float = np.nan
) -> Interval | None:
    """The interval of the effect on one example; None where nothing is estimated, or not known.

    Args:
        effect: Of the stage on the example.
        error: As :func:`example_error` gives it; NaN where it is not known.
        behaviour: Which behaviour.
        final: Its value of the final model; NaN where it is not known.
    """
    if not (error > 0 and np.isfinite(effect)):
        return None
    return _around(effect, 0.0, error, behaviour, final)


def _around(
    effect: float, sampling: float, estimate: float, behaviour: Behaviour, final: float
) -> Interval:
    low, high = effect - sampling - estimate, effect + sampling + estimate
    ends = hull(effect, (effect - sampling, effect + sampling), estimate, behaviour, final)
    return Interval(
        *ends, sampling, estimate, cut=not np.allclose(ends, (low, high), 1e-9, 1e-9 * (high - low))
    )


def hull(
    effect: float,
    sampling: tuple[float, float],
    estimate: float,
    behaviour: Behaviour,
    final: float = np.nan,
) -> tuple[float, float]:
    """The ends of a sampling interval with the error of an estimate added, cut off at what can be.

    The final model's value bounds the effect on these very examples, and so what the estimate may
    be off by. It does not bound the effect on others, whose final model's mean is another one.

    Args:
        effect: The mean effect on these examples.
        sampling: Ends of its interval over examples.
        estimate: What the error of the estimate adds on either side.
        behaviour: Which behaviour.
        final: The final model's mean on these examples; NaN where it is not known.
    """
    low, high = effect - estimate, effect + estimate
    if estimate:
        low, high = possible(low, high, behaviour, final)
    return possible(low + sampling[0] - effect, high + sampling[1] - effect, behaviour)


def possible(
    low: float, high: float, behaviour: Behaviour, final: float = np.nan, effects: int = 1
) -> tuple[float, float]:
    """The ends of an interval of effects, cut off at what can be.

    An effect is ``final - without``, and both are values that the behaviour can have. Every
    interval that is printed, over examples or over draws, is cut off here.

    Args:
        low: The lower end.
        high: The upper end.
        behaviour: Which behaviour.
        final: Its value of the final model on the very examples that the ends are of; NaN where it
            is not known, or the ends are of other examples, too.
        effects: Over how many effects the number is a sum or difference; of more than one, without
            ``final``.
    """
    span = effects * (behaviour.highest - behaviour.lowest)
    known = np.isfinite(final)  # else the final model's value may be any, too
    least = final - behaviour.highest if known else -span
    most = final - behaviour.lowest if known else span
    return float(np.clip(low, least, most)), float(np.clip(high, least, most))


def mean_error(trust: StageTrust | None, behaviour: str, count: float, rms: float) -> float | None:
    """What the error of an estimate adds on either side of a mean effect over examples.

    Args:
        trust: What is known of the stage's counterfactual.
        behaviour: Of the effects on which behaviour.
        count: Over how many examples the mean is.
        rms: Root mean square effect of the stage over the labelled examples of the set.

    Returns:
        None where it is not known; 0 where nothing is estimated.
    """
    off = group_error(trust, behaviour)
    if not off:
        return off
    # It was measured on halves of sets: of few examples, single errors average out less.
    single = trust.expected_error if trust is not None and trust.group_error is not None else None
    if single is not None:
        off = float(np.hypot(off, single / np.sqrt(max(float(count), 1.0))))
    return off * float(rms) if np.isfinite(off * rms) else None


def group_error(trust: StageTrust | None, behaviour: str) -> float | None:
    """Error of a mean effect that nine of ten such estimates stay within, as a share of the rms.

    0 where nothing is estimated; None where it is not known, or a replay has shown that what was
    promised does not hold.
    """
    if trust is None or trust.trust == "exact":
        return 0.0
    if trust_word(trust, behaviour) in ("does not agree", "refused"):
        return None
    if trust.group_error is None and trust.estimator == REPLAY:
        return trust.expected_error  # no mean over all examples is further off than they are
    return trust.group_error


def example_error(trust: StageTrust | None, rms: float, behaviour: str) -> float | None:
    """What the error of an estimate adds on either side of the effect on one example.

    The error is relative to the effects of all examples together, so one effect may be off by that
    share of their root mean square, whatever its own size.

    Args:
        trust: What is known of the stage's counterfactual.
        rms: Root mean square effect of the stage over the labelled examples of the set.
        behaviour: Of the effects on which behaviour.

    Returns:
        None where it is not known; 0 where nothing is estimated.
    """
    if trust is None or trust.trust == "exact":
        return 0.0
    found = trust.agreement(behaviour)
    # What a replay has found is better than what was promised.
    error = trust.expected_error if found is None else found.relative_error
    if trust.trust == "refused" or error is None or not np.isfinite(error * rms):
        return None
    return error * rms


def widened(interval: Interval, orders: float, behaviour: Behaviour) -> Interval:
    """An interval with what the choice of sampled orders adds at either end."""
    low, high = interval.low - orders, interval.high + orders
    ends = possible(low, high, behaviour)
    cut = interval.cut or ends != (low, high)
    return replace(interval, low=ends[0], high=ends[1], orders=orders, cut=cut)


def interval_text(interval: Interval, behaviour: Behaviour) -> str:
    """``+0.1 to +0.5``, on the credit scale."""
    return gain_range_text(interval.low, interval.high, behaviour)


def made_of(interval: Interval | None, behaviour: Behaviour) -> str:
    """What the width of an interval is made of, or why there is none."""
    if interval is None:
        return "no interval: the error of this mean is not known"
    if interval.drawn:
        return (
            f"interval {interval_text(interval, behaviour)}, over {interval.drawn} of the recipe "
            "(95 %)"
        )
    parts = [f"±{amount_text(interval.sampling, behaviour)} from the choice of examples (95 %)"]
    if interval.estimate:
        off = amount_text(interval.estimate, behaviour)
        where = promised_elsewhere(behaviour.name)
        parts.append(f"±{off} from the estimate (nine of ten stay within{where and f', {where}'})")
    if interval.orders:
        off = amount_text(interval.orders, behaviour)
        parts.append(f"±{off} from the choice of orders (95 %)")
    parts += ["cut off at what is possible"] if interval.cut else []
    return f"interval {interval_text(interval, behaviour)}: {', '.join(parts)}"
