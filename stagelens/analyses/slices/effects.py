"""What stages do to slices, with intervals over examples, and where two slices differ most.

Intervals are over examples: of a mean, over the slice's own; of a difference, over those of both
slices, which may overlap (see ``effects.contrasts``). The largest of many differences is large by
chance alone: it is chosen, and reported with an interval, at a level that is corrected for how many
were looked at (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.contrasts import Spread, difference_spread, mean_spread
from stagelens.effects.draws import DrawInterval, DrawnEffects
from stagelens.effects.headlines import FEWEST
from stagelens.effects.summary import of_behaviour, rms_effects, stage_summary
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.sets.clusters import CLUSTER
from stagelens.wording.intervals import beside_draws
from stagelens.wording.numbers import amount_text, phrase, signed_text
from stagelens.wording.quantiles import LEVEL
from stagelens.wording.sentences import Part, Sentence, slice_parts, would_be
from stagelens.wording.trust_words import may_be_finding

from .saved import Slice

COLUMNS = (
    "slice",
    "stage",
    "n",
    "missing",
    "final",
    "without",
    "effect",
    "low",
    "high",
    "rms",
    "gain",
    "noise_sd",
    "within_noise",
    "drawn",
)


def slice_summary(
    parts: Iterable[pd.DataFrame],
    behaviour: Behaviour,
    stages: Sequence[str],
    slices: Sequence[Slice],
    orders: pd.DataFrame | None = None,
    draws: DrawnEffects | None = None,
) -> pd.DataFrame:
    """Mean effect of every stage on every slice, with its interval.

    Args:
        parts: An effect table in parts, each of whole stages, with ``summary.with_accuracy``
            applied where accuracy is asked for.
        behaviour: Which of its behaviours.
        stages: Stage names in training order.
        slices: Of the table's set.
        orders: Effects in several orders of the batches; None where the noise is not known.
        draws: Effects in several draws of the recipe; None where there are none.

    Returns:
        :data:`COLUMNS`, one row per slice and stage; ``low`` and ``high`` are the 95 % interval of
        ``effect`` over the slice's examples, all else is as in ``summary.stage_summary``.
    """
    frames: dict[str, list[pd.DataFrame]] = {one.name: [] for one in slices}
    answers = behaviour == ACCURACY
    for part in parts:
        rows = of_behaviour(part, behaviour.name)
        sizes = rms_effects(rows)
        for one in slices:
            own = rows[rows["example_id"].isin(one.example_ids)]
            means = stage_summary(own, behaviour, stages, None, orders, draws)
            means["rms"] = means["stage"].map(sizes)
            ends = []
            for stage in means["stage"]:
                of = own[own["stage"] == stage]
                spread = mean_spread(of["effect"].to_numpy(float), _clusters(of), answers)
                ends.append(spread.ends())
            low, high = zip(*ends, strict=True) if ends else ((), ())
            made = means.assign(slice=one.name, low=low, high=high)[list(COLUMNS)]
            frames[one.name].append(made)
    every = [frame for own in frames.values() for frame in own]
    return pd.concat(every, ignore_index=True) if every else pd.DataFrame(columns=list(COLUMNS))


@dataclass(frozen=True)
class Difference:
    """How much more a stage does to one slice than to another.

    Attributes:
        stage: Whose effect.
        more: The slice with the larger effect, ``final - without``.
        less: The other one.
        effects: Mean effect on either.
        low: End of the interval of ``effects[0] - effects[1]``, corrected for ``looked_at``.
        high: The other end.
        looked_at: How many differences there were to choose from.
        within_noise: Whether the difference is within training noise or, where the recipe was
            drawn, whether its interval over draws holds zero; None: neither is known.
        over_draws: The interval of the difference over draws of the recipe; None: not known.
        drawn: How many draws of what, as ``8 redraws``.
    """

    stage: str
    more: Slice
    less: Slice
    effects: tuple[float, float]
    low: float
    high: float
    looked_at: int
    within_noise: bool | None
    over_draws: DrawInterval | None = None
    drawn: str = ""

    @property
    def size(self) -> float:
        """Size of the difference; positive."""
        return self.effects[0] - self.effects[1]


def largest_difference(
    parts: Iterable[pd.DataFrame],
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
    slices: Sequence[Slice],
    orders: pd.DataFrame | None = None,
    draws: DrawnEffects | None = None,
) -> Difference | None:
    """Where a stage treats two slices most differently, as far as that is certain.

    All pairs of slices of at least :data:`FEWEST` measured examples that were not chosen by the
    outcome are looked at, for every stage whose number may be a finding
    (:func:`~stagelens.wording.trust_words.may_be_finding`). The one whose corrected interval is
    furthest from zero is taken.

    Args:
        parts: As in :func:`slice_summary`.
        behaviour: Which of its behaviours.
        trust: What is known of each stage's counterfactual.
        slices: Of the table's set.
        orders: Effects in several orders of the batches; None where the noise is not known.
        draws: Effects in several draws of the recipe; None where there are none.

    Returns:
        None where no corrected interval excludes zero.
    """
    usable = [one for one in slices if not one.by_outcome]
    by_name = {one.name: one for one in usable}
    found: list[tuple[Spread, str, Slice, Slice]] = []
    values: dict[str, pd.DataFrame] = {}
    for part in parts:
        rows = of_behaviour(part, behaviour.name)
        here = set(rows["stage"].unique())
        for stage, known in trust.items():
            if stage not in here or not may_be_finding(known, behaviour.name):
                continue
            values[stage] = rows[rows["stage"] == stage].dropna(subset=["effect"])
            own, clusters = _effects(values[stage]), _clusters(values[stage])
            large = {
                one.name: inside
                for one in usable
                if (inside := own.index.isin(one.example_ids)).sum() >= FEWEST
            }
            for names in combinations(large, 2):
                sides, numbers = (large[names[0]], large[names[1]]), own.to_numpy(float)
                spread = difference_spread(numbers, *sides, clusters, behaviour == ACCURACY)
                if spread.value < 0:
                    spread, names = replace(spread, value=-spread.value), names[::-1]
                found.append((spread, stage, by_name[names[0]], by_name[names[1]]))
    level = LEVEL / max(len(found), 1)
    # Without an interval the lower end is NaN, which is no finding.
    clear = [(each[0].ends(level)[0], place) for place, each in enumerate(found)]
    clear = [(low, place) for low, place in clear if low > 0]
    if not clear:
        return None
    spread, stage, more, less = found[max(clear)[1]]
    low, high = spread.ends(level)
    own = _effects(values[stage])
    inside = own.index.isin(more.example_ids), own.index.isin(less.example_ids)
    effects = float(own[inside[0]].mean()), float(own[inside[1]].mean())
    told = stage, more, less, effects, low, high, len(found)
    over = None if draws is None else _over_draws(draws, behaviour, stage, own, inside)
    if over is not None and draws is not None:
        return Difference(*told, not over.is_clear, over, draws.counted(over.draws))
    sd = _noise_sd(orders, behaviour, stage, own, inside)
    return Difference(*told, None if np.isnan(sd) else bool(effects[0] - effects[1] < 2 * sd))


def _effects(rows: pd.DataFrame) -> pd.Series:
    return rows.set_index("example_id")["effect"]


def _clusters(rows: pd.DataFrame) -> np.ndarray | None:
    """Which of these examples share a source; None where all are apart."""
    return pd.factorize(rows[CLUSTER])[0] if CLUSTER in rows else None


def _noise_sd(
    orders: pd.DataFrame | None,
    behaviour: Behaviour,
    stage: str,
    own: pd.Series,
    inside: Sequence[np.ndarray],
) -> float:
    """Standard deviation of the difference over orders of the batches; NaN: not known."""
    if orders is None:
        return float("nan")
    apart = _apart(orders, "order", behaviour, stage, own, inside)
    return float(apart.std()) if apart.notna().sum() > 1 else float("nan")


def _over_draws(
    draws: DrawnEffects,
    behaviour: Behaviour,
    stage: str,
    own: pd.Series,
    inside: Sequence[np.ndarray],
) -> DrawInterval | None:
    """The interval of the difference over draws; None where there is none."""
    apart = _apart(draws.table, "draw", behaviour, stage, own, inside)
    found = draws.interval(apart.to_numpy(), behaviour, effects=2)
    return found if np.isfinite(found.low) else None


def _apart(
    table: pd.DataFrame,
    by: str,
    behaviour: Behaviour,
    stage: str,
    own: pd.Series,
    inside: Sequence[np.ndarray],
) -> pd.Series:
    """The difference in each order, or in each draw, in the order of their numbers."""
    of = table[(table["behaviour"] == behaviour.name) & (table["stage"] == stage)]
    each = of.pivot_table(index="example_id", columns=by, values="effect").reindex(own.index)
    return each[inside[0]].mean() - each[inside[1]].mean()


def difference_sentence(
    found: Difference, behaviour: Behaviour, noun: str, trust: StageTrust | None = None
) -> Sentence:
    """A difference as a sentence that a person can read aloud, with its interval.

    Args:
        found: The difference.
        behaviour: Of which behaviour.
        noun: What an example is called.
        trust: What is known of the stage's counterfactual; "about" and "may" follow from it.
    """
    either = [(found.more, found.effects[0]), (found.less, found.effects[1])]
    # The larger effect first, so that "but" leads to the smaller one.
    either.sort(key=lambda each: -abs(each[1]))
    (large, first), (small, second) = either
    subject = phrase(behaviour) if behaviour == ACCURACY else f"the mean {phrase(behaviour)}"
    ends = (
        f"{amount_text(found.low, behaviour, unit=False)} to {amount_text(found.high, behaviour)}"
    )
    corrected = f", corrected for {found.looked_at} comparisons" if found.looked_at > 1 else ""
    noise = "; this is within training noise, so not a finding" if found.within_noise else ""
    if found.over_draws is not None:
        over = found.over_draws.low, found.over_draws.high
        low, high = (signed_text(end, behaviour, unit=False) for end in over)
        drawn = found.over_draws
        apart = beside_draws(found.size, drawn.mean, drawn.low, drawn.high, drawn.single, behaviour)
        centre = f" {signed_text(drawn.mean, behaviour, unit=False)} on average" if apart else ""
        noise = f"; of this recipe{centre}, 95 %: {low} to {high} over {found.drawn}"
        noise += ", which holds zero, so not a finding" if found.within_noise else ""
        noise += apart
    return Sentence(
        (
            Part("Without "),
            Part(found.stage, "stage"),
            Part(f", {subject}"),
            *would_be(first, behaviour, trust),
            Part(" on "),
            *slice_parts(noun, large.column, large.name),
            Part(", but"),
            *would_be(second, behaviour, trust),
            Part(" on "),
            *slice_parts(noun, small.column, small.name),
            Part(": a difference of "),
            Part(amount_text(found.size, behaviour), "amount"),
            Part(f" (95 % interval {ends}{corrected}){noise}."),
        ),
        trust,
        behaviour.name,
    )
