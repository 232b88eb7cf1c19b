"""Effects over several draws of a recipe, and between which values their mean lies.

The effects of one run are one draw. A mean effect over K draws has an interval; with few draws it
is wide, as it has to be, and with fewer than three there is none. Intervals over examples, which
say how a set was sampled, are another thing.

Where a pilot of draws has settled how many there are in all, the spread is that of the pilot alone,
and the interval keeps its level whatever number came out: C. Stein, A Two-Sample Test for a Linear
Hypothesis Whose Power is Independent of the Variance, Ann. Math. Statist. 16, 1945.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from stagelens.contracts import Behaviour, StageLensError
from stagelens.replaying.draw_plan import data_of
from stagelens.wording.folding import listed
from stagelens.wording.intervals import possible
from stagelens.wording.quantiles import LEVEL, t_quantile

from .chance_and_data import FEWEST_REPEATS, half_width, spreads

COLUMNS = ("stage", "behaviour", "draw", "example_id", "final", "effect")
"""Columns of a table of effects over draws: ``final`` with all stages, in that draw."""

FEWEST = 3
"""Fewer draws give no interval."""

Kind = Literal["recipe", "same data", "given earlier", "runs"]
"""What was drawn: every stage anew, with batches drawn with replacement for other data of the same
kind; every stage anew on the same data; only the later stages; or several recorded runs."""

NAMES: dict[Kind, str] = {
    "recipe": "of this recipe",
    "same data": "of this recipe on the same data",
    "given earlier": "given the earlier stages as recorded",
    "runs": "of this recipe, over recorded runs",
}


@dataclass(frozen=True)
class DrawnEffects:
    """The effects of stages in several draws.

    Means over examples are compared between draws, so all are over the same ones: an example that
    has no value in one draw has none in any, for that stage and behaviour.

    Attributes:
        table: :data:`COLUMNS`; what is left out is NaN.
        kind: What was drawn.
        pilot: How many draws settled the number of all; None where it was given beforehand.
        batches: The fewest batches that were drawn with replacement in a stage; None where none
            were.
    """

    table: pd.DataFrame
    kind: Kind
    pilot: int | None = None
    batches: int | None = None
    left_out: str = field(default="", init=False)
    """Which examples are left out of all draws, in a sentence; empty where none are."""

    def __post_init__(self) -> None:
        table, told = _complete(self.table)
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "left_out", told)

    def interval(
        self,
        values: Sequence[float] | np.ndarray,
        behaviour: Behaviour | None = None,
        effects: int = 1,
    ) -> DrawInterval:
        """:func:`interval_over_draws` of a number in each of these draws.

        Args:
            values: (K,) the number in each draw.
            behaviour: On which the number is an effect, so that the interval is cut off at what
                can be; None where only its sign or its spread matters.
            effects: Over how many effects the number is a sum or difference, as a gap's are two.
        """
        found = interval_over_draws(values, self.kind, self.pilot, self.batches)
        return found if behaviour is None else found.within(behaviour, effects)

    @cached_property
    def count(self) -> int:
        """How many draws there are."""
        return int(self.table["draw"].nunique())

    def has_interval(self, number: int) -> bool:
        """Whether so many draws are enough for an interval."""
        return (number if self.pilot is None else min(number, self.pilot)) >= FEWEST

    @property
    def words(self) -> str:
        """``8 redraws``, or ``4 recorded runs``."""
        return self.counted(self.count)

    def counted(self, number: int) -> str:
        """The same of so many, as some stages may have been left out in fewer draws."""
        return f"{number} {'recorded runs' if self.kind == 'runs' else 'redraws'}"


def _complete(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Effects of examples that have one in every draw, and what is said of the others."""
    missing = table["effect"].isna()
    if not missing.any():
        return table, ""
    keys = [table[name] for name in ("stage", "behaviour", "example_id")]
    some = missing.groupby(keys, observed=True, sort=False).transform("any")
    # Examples that have no value in any draw, such as those without a label, are none to tell of.
    lost = table.loc[some & ~missing, ["stage", "behaviour", "example_id"]].drop_duplicates()
    if lost.empty:
        return table, ""
    lacking = table[missing].merge(lost, on=list(lost.columns))["draw"].unique()
    kept = table.assign(**{name: table[name].mask(some) for name in ("final", "effect")})
    return kept, left_out_text(lost["example_id"].nunique(), lacking)


def left_out_text(examples: int, draws: Sequence[int] | np.ndarray) -> str:
    """That some examples are left out of all draws.

    Args:
        examples: How many.
        draws: The numbers of the draws that have no value of some of them, from 0 on.
    """
    are = "1 example has" if examples == 1 else f"{examples:,} examples have"
    numbers = sorted(int(number) + 1 for number in draws)
    named = (
        f"draw {numbers[0]}"
        if len(numbers) == 1
        else f"draws {listed([str(number) for number in numbers])}"
    )
    return (
        f"{are} no value in {named} and {'is' if examples == 1 else 'are'} left out of all draws, "
        "so that means are over the same examples in each."
    )


@dataclass(frozen=True)
class DrawInterval:
    """The mean of a number over draws, and between which values that of the recipe lies.

    Attributes:
        mean: Over the draws.
        low: Lower end, 95 %; NaN with fewer than :data:`FEWEST` draws, or where all are alike: how
            much others would differ is then not known.
        high: Its upper end.
        sd: Standard deviation over the draws; NaN with one.
        draws: How many.
        reach: How far from the mean a single number can be at all.
    """

    mean: float
    low: float
    high: float
    sd: float
    draws: int
    reach: float = math.inf

    def within(self, behaviour: Behaviour, effects: int = 1) -> DrawInterval:
        """The same, cut off at what an effect on a behaviour can be.

        Student's t knows no bounds, but no share of 0 to 1 moves by more than 100 points.

        Args:
            behaviour: Which.
            effects: See :meth:`DrawnEffects.interval`.
        """
        if not np.isfinite(self.mean):
            return self
        low, high = possible(self.low, self.high, behaviour, effects=effects)
        most = possible(-math.inf, math.inf, behaviour, effects=effects)[1]
        return replace(self, low=low, high=high, reach=most + abs(self.mean))

    @property
    def is_clear(self) -> bool:
        """Whether it leaves out zero; never so where there is none."""
        return self.low > 0 or self.high < 0

    @property
    def single(self) -> float:
        """How far one more training may be from the mean, 95 %; NaN where it is not known.

        A prediction interval reaches further than that of the mean, however many draws there are.
        The recorded run should be nearer yet: draws with other data have its data in their middle.
        """
        if not self.low < self.high:
            return math.nan
        apart = t_quantile(self.draws - 1) * self.sd * math.sqrt(1 + 1 / self.draws)
        return min(apart, self.reach)


def interval_over_draws(
    values: Sequence[float] | np.ndarray,
    kind: Kind = "recipe",
    pilot: int | None = None,
    batches: int | None = None,
    level: float = LEVEL,
) -> DrawInterval:
    """The interval of a mean over draws: the t-interval, save of draws with other data.

    Draws whose batches are drawn with replacement vary around the recorded data as those vary
    around other data sets (the bootstrap): that part of their spread is the error of the recorded
    data, which more draws make better known, not smaller. Chance averages out over draws; as
    some have the data of another, the two parts are told apart, see ``chance_and_data``.

    Args:
        values: (K,) a number in each draw, the pilot's first.
        kind: What was drawn.
        pilot: See :class:`DrawnEffects`.
        batches: See :class:`DrawnEffects`.
        level: Share of intervals that may miss.
    """
    values = np.asarray(values, float)
    count, nan = len(values), float("nan")
    if not count or not np.isfinite(values).all():
        return DrawInterval(nan, nan, nan, nan, count)
    mean = float(values.mean())
    spread = values if pilot is None else values[:pilot]
    sd = float(values.std(ddof=1)) if count > 1 else nan
    if _alike(values):
        sd = 0.0 if count > 1 else nan
    if len(spread) < FEWEST or _alike(spread):
        return DrawInterval(mean, nan, nan, sd, count)
    if kind == "recipe":
        half = half_width(spreads(values, [*map(data_of, range(count))]), level, batches)
    else:
        error = float(spread.std(ddof=1)) / math.sqrt(count)
        half = t_quantile(len(spread) - 1, level) * error
    if not half:  # draws that differ may still be alike in all that tells a spread
        return DrawInterval(mean, nan, nan, sd, count)
    return DrawInterval(mean, mean - half, mean + half, sd, count)


def tells_chance(draws: int) -> bool:
    """Whether so many draws of the recipe tell chance from what other data would change."""
    return draws - len(set(map(data_of, range(draws)))) >= FEWEST_REPEATS


def _alike(values: np.ndarray) -> bool:
    return bool(np.allclose(values, values[0], rtol=1e-9, atol=1e-12))  # but for rounding


def draws_for_width(pilot: np.ndarray, width: float, level: float = LEVEL) -> int:
    """How many draws in all an interval of some width needs, by Stein's rule.

    Args:
        pilot: (K, C) numbers in each draw of the pilot; the widest of the C settles it.
        width: From the lower to the upper end.
        level: Share of intervals that may miss.

    Raises:
        StageLensError: No number is known.
    """
    count = len(pilot)
    sds = np.atleast_2d(pilot.T).std(axis=1, ddof=1)
    if not np.isfinite(sds).any():
        raise StageLensError("the effects are not known: examples have no value of this behaviour")
    sd = np.nanmax(sds)
    needed = (2 * t_quantile(count - 1, level) * float(sd) / width) ** 2
    # Rounding must not ask for one more draw than a whole number needs.
    return max(count, math.ceil(needed * (1 - 1e-12)))


def likely_draws(needed: int, pilot: int) -> tuple[int, int]:
    """From how many to how many draws the true spread would need, in at least 8 of 10 pilots.

    :func:`draws_for_width` goes by the pilot's spread, whose interval this is.

    Args:
        needed: What it gives, for one number; of several, the widest makes it rather too many.
        pilot: How many draws the pilot has.
    """
    from scipy.special import gammaincinv

    freedom = pilot - 1
    # Quantiles of chi square; a large one says that the pilot's spread was rather too large.
    most, least = 2 * gammaincinv(freedom / 2, [0.9, 0.1]) / freedom
    return max(pilot, math.floor(needed / most)), math.ceil(needed / least)


def example_sd(drawn: DrawnEffects) -> pd.Series:
    """Standard deviation over draws of the effect on each example.

    Returns:
        One value per (stage, behaviour, example_id); NaN with one draw.
    """
    return drawn.table.groupby(["stage", "behaviour", "example_id"])["effect"].std()


def intervals_of_means(
    drawn: DrawnEffects, rows: pd.DataFrame, behaviour: Behaviour, keys: Sequence[str]
) -> dict[tuple[str, ...], DrawInterval]:
    """The interval of the mean effect over each group of examples.

    Args:
        drawn: Effects over draws.
        rows: Effects of one behaviour with ``example_id`` and the columns in ``keys``.
        behaviour: Which; intervals are cut off at what an effect on it can be.
        keys: ``stage``, and the column of the groups where there is one.
    """
    own = drawn.table[drawn.table["behaviour"] == behaviour.name]
    # Of the same examples as the mean beside it.
    members = rows.loc[rows["effect"].notna(), ["example_id", *keys]]
    joined = own.merge(members, on=["stage", "example_id"])
    means = joined.groupby([*keys, "draw"], observed=True)["effect"].mean().reset_index()
    found = {}
    for key, part in means.groupby(list(keys), observed=True):
        values = part.sort_values("draw")["effect"].to_numpy()
        name = key if isinstance(key, tuple) else (key,)
        found[name] = drawn.interval(values, behaviour)
    return found


def columns_of(found: DrawInterval | None, drawn: DrawnEffects | None) -> dict[str, Any]:
    """An interval as the columns of a summary; see ``summary.stage_summary``."""
    if found is None or drawn is None:
        return {"drawn": None}
    ends = {"draw_low": found.low, "draw_high": found.high, "draw_sd": found.sd}
    ends |= {"draw_single": found.single}
    return {"draw_effect": found.mean, **ends, "drawn": drawn.counted(found.draws)}
