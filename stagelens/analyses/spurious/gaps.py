"""Gaps between groups, with and without each stage, and what to say of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.draws import DrawInterval, DrawnEffects
from stagelens.effects.groups import GroupMetrics, crossed, group_metrics
from stagelens.effects.summary import by_stage, of_behaviour, right_answers
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.sets.clusters import CLUSTER
from stagelens.trust.stage_effects import Effects
from stagelens.wording.intervals import group_error
from stagelens.wording.numbers import amount_text
from stagelens.wording.sentences import Part, Sentence
from stagelens.wording.trust_words import (
    MARKS,
    TrustWord,
    holds,
    may_be_finding,
    trust_word,
)

FINAL = "final model"
"""Name of the final model among the models that are compared."""


def without(stage: str) -> str:
    """Name of the model without a stage."""
    return f"without {stage}"


@dataclass(frozen=True)
class Gaps:
    """Groups under the final model and without each stage.

    Attributes:
        metrics: Of the models :data:`FINAL` and :func:`without` each stage.
        behaviour: What the gap is in, accuracy or margin.
        within_noise: Stage to whether its effect on the gap is within training noise or, where the
            recipe was drawn, whether its interval over draws holds zero; no entry where neither is
            known.
        over_draws: Stage to the interval of its effect on the gap over draws of the recipe.
    """

    metrics: GroupMetrics
    behaviour: Behaviour
    within_noise: Mapping[str, bool]
    over_draws: Mapping[str, DrawInterval] = field(default_factory=dict)


def group_gaps(
    table: pd.DataFrame | Iterable[pd.DataFrame],
    stages: Sequence[str],
    by: Sequence[str],
    behaviour: Behaviour = ACCURACY,
    orders: pd.DataFrame | None = None,
    trust: Mapping[str, StageTrust] | None = None,
    draws: DrawnEffects | None = None,
) -> Gaps:
    """Measure every group of a set under the final model and without each stage.

    Accuracy is that of the counterfactual weights' answers; margins are the effect table's.

    Args:
        table: An effect table, or its parts, each of whole stages; rows of ``accuracy`` are not
            needed.
        stages: Stage names in training order.
        by: Columns that groups come from; several are crossed.
        behaviour: What the gap is in: accuracy, or the margin.
        orders: Effects in several orders of the batches, from ``noise.load_orders``; None where
            the noise is not known.
        trust: Stage to what is known of its counterfactual. Where it says how far the mean of a
            group may be off, intervals are wider by that.
        draws: Effects in several draws of the recipe; None where there are none.

    Raises:
        SetError: A column is not there.
    """
    measured = models(table, stages, by)
    metrics = _widened(group_metrics(measured, by, behaviour.name), measured, trust or {})
    within: dict[str, bool] = {}
    over: dict[str, DrawInterval] = {}
    if metrics.best is not None:
        sides = _sides(measured[FINAL], by, metrics)
        if orders is not None:
            within = _within_noise(metrics, stages, behaviour, sides, orders)
        if draws is not None:
            over = _over_draws(stages, behaviour, sides, draws)
    # Draws say more than the noise of later stages.
    within |= {stage: not interval.is_clear for stage, interval in over.items()}
    return Gaps(metrics, behaviour, within, over)


def _widened(
    metrics: GroupMetrics,
    measured: Mapping[str, pd.DataFrame],
    trust: Mapping[str, StageTrust],
) -> GroupMetrics:
    """The same with the error of estimates in the intervals of the models that are estimated."""
    groups, gaps = metrics.groups.copy(), metrics.gaps.copy()
    for stage, known in trust.items():
        model = without(stage)
        for kind in ("accuracy", "margin"):
            off = group_error(known, kind)
            if off == 0 or model not in measured:
                continue
            # An error that is not known leaves no interval.
            off = np.nan if off is None else off
            off *= _rms_change(measured[FINAL], measured[model], kind)
            rows = groups["model"] == model
            low, high = (groups.loc[rows, f"{kind}_{end}"] for end in ("low", "high"))
            ends = (-np.inf, np.inf) if kind == "margin" else (0.0, 1.0)
            groups.loc[rows, f"{kind}_low"] = (low - off).clip(*ends)
            groups.loc[rows, f"{kind}_high"] = (high + off).clip(*ends)
            if kind == metrics.measure and len(gaps):
                rows = gaps["model"] == model
                # A gap is between two means, each of which may be off.
                for name in ("gap", "change"):
                    gaps.loc[rows, f"{name}_low"] -= 2 * off
                    gaps.loc[rows, f"{name}_high"] += 2 * off
    return replace(metrics, groups=groups, gaps=gaps)


def _rms_change(final: pd.DataFrame, other: pd.DataFrame, kind: str) -> float:
    """Root mean square effect of a stage over the labelled examples; NaN where it is not known."""
    if kind == "margin":
        if "margin" not in final:
            return float("nan")
        change = final["margin"] - other["margin"]
    else:
        sides = (right_answers(each["prediction"], each["label"]) for each in (final, other))
        change = next(sides) - next(sides)
    return float((change[final["label"].notna()] ** 2).mean() ** 0.5)


def rows_of(effects: Effects, by: Sequence[str]) -> Iterator[pd.DataFrame]:
    """What :func:`group_gaps` needs of an estimate: the rows with margins, where these exist."""
    name = "margin" if "margin" in effects.behaviours else effects.measured
    return effects.parts(name, list(dict.fromkeys([*_NEEDED, *by])))


_NEEDED = (
    *("stage", "behaviour", "example_id", "label", "prediction", "prediction_without"),
    *("final", "without", CLUSTER),
)


def models(
    table: pd.DataFrame | Iterable[pd.DataFrame], stages: Sequence[str], by: Sequence[str] = ()
) -> dict[str, pd.DataFrame]:
    """The answers of the final model and without each stage, as plain tables.

    Args:
        table: An effect table, or its parts, each of whole stages.
        stages: Stage names in training order.
        by: Columns of the set to keep.

    Returns:
        Model name to one row per example: ``example_id``, ``label``, ``by``, ``prediction``, and
        ``margin`` where it was measured, and ``cluster`` where examples share a source.
    """
    every = list(dict.fromkeys(["example_id", "label", *by, CLUSTER]))
    found: dict[str, pd.DataFrame] = {}
    for part in [table] if isinstance(table, pd.DataFrame) else table:
        margins = bool((part["behaviour"] == "margin").any())
        rows = of_behaviour(part, "margin" if margins else part["behaviour"].iloc[0])
        needed = [each for each in dict.fromkeys([*_NEEDED, *by]) if each in rows]
        for stage, one in by_stage(rows[needed], stages):
            own = one.reset_index(drop=True)
            kept = [each for each in every if each in own]
            told = {"prediction": "prediction"}, {"prediction_without": "prediction"}
            if margins:
                told = {**told[0], "final": "margin"}, {**told[1], "without": "margin"}
            # Every stage's rows repeat what the final model answered.
            if not found:
                found[FINAL] = own[[*kept, *told[0]]].rename(columns=told[0])
            found[without(stage)] = own[[*kept, *told[1]]].rename(columns=told[1])
            # The same texts need not be in memory once for each model.
            if own["example_id"].array.equals(found[FINAL]["example_id"].array):
                found[without(stage)]["example_id"] = found[FINAL]["example_id"]
    return found


def _sides(table: pd.DataFrame, by: Sequence[str], metrics: GroupMetrics) -> pd.Series:
    """Example id to whether it is in the best group; of those of the best and the worst."""
    examples = table[table["label"].notna()]
    group = crossed(examples, by)
    best, worst = group == metrics.best, group == metrics.worst
    either = (best | worst).to_numpy()
    return pd.Series(best.to_numpy()[either], examples["example_id"].to_numpy()[either])


def _within_noise(
    metrics: GroupMetrics,
    stages: Sequence[str],
    behaviour: Behaviour,
    side: pd.Series,
    orders: pd.DataFrame,
) -> dict[str, bool]:
    """Whether each stage's effect on the gap is below 2 noise sd over orders of the batches."""
    sums = _changes(orders, behaviour, side, "order")
    own = metrics.gaps.set_index("model")["change"]
    within = {}
    for stage, of in sums.groupby(level=0):
        # One order alone has no spread.
        if len(of) > 1 and stage in stages and np.isfinite(own[without(str(stage))]):
            within[str(stage)] = bool(abs(own[without(str(stage))]) < 2 * of.std())
    return within


def _over_draws(
    stages: Sequence[str], behaviour: Behaviour, side: pd.Series, draws: DrawnEffects
) -> dict[str, DrawInterval]:
    """The interval over draws of each stage's effect on the gap, where there is one."""
    changes = _changes(draws.table, behaviour, side, "draw")
    found = {}
    for stage, of in changes.groupby(level=0):
        interval = draws.interval(of.sort_index().to_numpy(), behaviour, effects=2)
        if stage in stages and np.isfinite(interval.low):
            found[str(stage)] = interval
    return found


def _changes(table: pd.DataFrame, behaviour: Behaviour, side: pd.Series, by: str) -> pd.Series:
    """Effects on the gap by stage and order, or stage and draw."""
    rows = table[(table["behaviour"] == behaviour.name) & table["example_id"].isin(side.index)]
    best = rows["example_id"].map(side).astype(bool)
    means = rows["effect"].groupby([rows["stage"], rows[by], best], observed=True).mean().unstack()
    return (means[True] - means[False]) if len(means.columns) == 2 else means.squeeze() * np.nan


# ---------------------------------------------------------------------------------- sentences


def findings(gaps: Gaps, stages: Sequence[str]) -> list[str]:
    """Stages whose effect on the gap is a finding: those that widen it first, then by size.

    The interval of the effect over examples has to exclude zero, and that over draws of the recipe
    too, where there is one; otherwise the effect must not be within training noise.
    """
    rows = gaps.metrics.gaps.set_index("model")
    found = []
    for stage in stages:
        if without(stage) not in rows.index:
            continue
        row = rows.loc[without(stage)]
        sure = row["change_low"] > 0 or row["change_high"] < 0
        if sure and not gaps.within_noise.get(stage, False):
            # A positive change widens the gap, and False sorts before True.
            found.append((row["change"] < 0, -abs(row["change"]), stage))
    return [stage for *_, stage in sorted(found)]


def gap_sentences(
    gaps: Gaps, stages: Sequence[str], trust: Mapping[str, StageTrust], noun: str, limit: int = 3
) -> list[Sentence]:
    """The gap, and what it would be without the stages that change it most.

    Args:
        gaps: From :func:`group_gaps`.
        stages: Stage names in training order.
        trust: What is known of each stage's counterfactual.
        noun: What an example is called.
        limit: How many stages are named at most.
    """
    metrics, behaviour = gaps.metrics, gaps.behaviour
    if metrics.best is None or metrics.worst is None:
        return []
    rows = metrics.gaps.set_index("model")
    final = rows.loc[FINAL]
    measured = "accuracy" if behaviour.name == ACCURACY.name else f"mean {behaviour.name}"
    opening = (
        Part(f"The gap in {measured} between "),
        Part(metrics.worst, "group"),
        Part(" and "),
        Part(metrics.best, "group"),
        Part(f" {noun}s is "),
        Part(amount_text(final["gap"], behaviour), "amount"),
    )
    named = [
        stage
        for stage in findings(gaps, stages)
        if stage in trust and may_be_finding(trust[stage], behaviour.name)
    ][:limit]
    if not named:
        chance = ", which may be chance" if final["gap_low"] <= 0 else ""
        rest = f"{chance}; no stage changes it by more than chance."
        return [Sentence((*opening, Part(rest)), None, behaviour.name)]
    said = []
    for place, stage in enumerate(named):
        gap = float(rows.loc[without(stage), "gap"])
        start = (*opening, Part("; without ")) if place == 0 else (Part("Without "),)
        words = (*start, Part(stage, "stage"), *_would_be(gap, behaviour, trust[stage]), Part("."))
        said.append(Sentence(words, trust[stage], behaviour.name))
    return said


def gap_notes(gaps: Gaps, stages: Sequence[str], trust: Mapping[str, StageTrust]) -> dict[str, str]:
    """The model without each stage to a few words on what is known of it, for a chart."""
    words, notes = model_words(gaps, stages, trust), {}
    for stage in stages:
        word = words[without(stage)]
        unclear = "may be 0 over redraws" if stage in gaps.over_draws else "within noise"
        noise = f", ≈ effect {unclear}" if gaps.within_noise.get(stage) else ""
        notes[without(stage)] = f"{MARKS[word]} {word}{noise}"
    return notes


def model_words(
    gaps: Gaps, stages: Sequence[str], trust: Mapping[str, StageTrust]
) -> dict[str, TrustWord]:
    """Every model to what is known of it; the final model was measured."""
    known: dict[str, TrustWord] = {FINAL: "exact"}
    return known | {without(s): trust_word(trust[s], gaps.behaviour.name) for s in stages}


def _would_be(gap: float, behaviour: Behaviour, trust: StageTrust) -> tuple[Part, ...]:
    verb = " it would be " if holds(trust, behaviour.name) else " it may be "
    # A gap that is printed as 0 has no other way round.
    turned = gap < 0 and any(c in "123456789" for c in amount_text(gap, behaviour))
    about = "" if trust.trust == "exact" else "about "
    text = f"{about}{amount_text(gap, behaviour)}"
    return (
        Part(verb),
        Part(text, "amount"),
        *((Part(" the other way round"),) if turned else ()),
    )
