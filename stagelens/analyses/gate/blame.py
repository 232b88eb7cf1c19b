"""Which stage of the new recipe a slice got worse by.

Where the old run has the same stage, its recorded steps are replayed inside the new run in place of
the new ones: the exchange effect. Where it has none, or it cannot be replayed, the new stage's own
effect stands in, which compares with no such stage at all, and says so. All of this is of the
recorded models. Effects of several stages need not add up to the drop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stagelens.contracts import (
    ACCURACY,
    Behaviour,
    Progress,
    Refused,
    StageLensError,
    is_fraction,
)
from stagelens.effects.contrasts import mean_spread
from stagelens.effects.results import Result
from stagelens.estimators.stage_trust import REPLAY, StageTrust
from stagelens.runs.run import Run, Stage
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.wording.intervals import mean_error

from .report import How
from .slices import GateSlice

if TYPE_CHECKING:
    from stagelens.effects.scoring_again import OwnScore

SAME = "Both runs have this stage in common."


@dataclass(frozen=True)
class StageDrop:
    """How much worse the new model is, example by example, because of its own stage.

    Attributes:
        stage: Its name.
        how: What it is compared with.
        drops: Behaviour to (N,) drops, positive for worse; empty where it was refused.
        trust: What is known of the model that it was compared with; None where both runs share it.
        reason: Why it is no exchange, and what is not exact.
    """

    stage: str
    how: How
    drops: Mapping[str, np.ndarray]
    trust: StageTrust | None
    reason: str


def counterparts(old: Run, new: Run) -> dict[str, Stage | str]:
    """New stage to the old run's stage of its name, or why it has none."""
    if old.file.task != new.file.task:
        return dict.fromkeys((s.name for s in new.stages), "the runs are of different tasks")
    names = [stage.name for stage in old.stages]
    there = [stage.name for stage in new.stages if stage.name in names]
    if there != [name for name in names if name in there]:
        return dict.fromkeys(
            (s.name for s in new.stages), "the old run has these stages in another order"
        )
    return {
        s.name: old.stage(s.name) if s.name in names else "the old run has no such stage"
        for s in new.stages
    }


@dataclass(frozen=True)
class ScoredKind:
    """A score that slices regressed in.

    Attributes:
        kind: The score.
        table: Its stored effects in the new run.
        again: What scores further models; None where nothing can.
    """

    kind: Behaviour
    table: Result
    again: OwnScore | None


def stage_drops(
    old: Run,
    new: Run,
    examples: EvaluationSet,
    shared: int,
    final: Mapping[str, np.ndarray],
    kinds: Sequence[Behaviour],
    scores: Sequence[ScoredKind],
    progress: Progress,
) -> dict[str, list[StageDrop]]:
    """What every stage of the new run is to blame for, one after another.

    Args:
        old: The old run.
        new: The new run.
        examples: The set, in the new run.
        shared: How many first stages both have in common.
        final: Behaviour to (N,) values of the new model.
        kinds: Those of these behaviours that can be measured here.
        scores: The scores among them: exchanged models answer and are scored where that can be.
        progress: Called for every step.

    Returns:
        Behaviour to one drop per stage.
    """
    pairs = counterparts(old, new)
    again = [each for each in scores if each.again is not None]
    exchanged = [*kinds, *(each.kind for each in again)]
    found: dict[str, list[StageDrop]] = {}

    def add(drop: StageDrop, of: Sequence[Behaviour]) -> None:
        for kind in of:
            found.setdefault(kind.name, []).append(drop)

    for number, stage in enumerate(new.stages):
        part = progress.piece(number, len(new.stages))
        other, left = pairs[stage.name], [each for each in scores if each.again is None]
        if number < shared:
            every = [*kinds, *(each.kind for each in scores)]
            zero = {kind.name: np.zeros(examples.count) for kind in every}
            add(StageDrop(stage.name, "same", zero, None, SAME), every)
            continue
        if isinstance(other, Stage) and exchanged:
            try:
                both = (stage, other)
                drop = _exchanged(old, new, examples, both, final, exchanged, again, part)
                add(drop, exchanged)
                other = ""
            except Refused as refused:
                other = str(refused)
        if isinstance(other, str) and other:
            if kinds:
                add(own_effect(new, examples, stage, kinds, other, part), kinds)
            left = list(scores)
        why = other if isinstance(other, str) and other else _NO_SCORER
        for each in left:
            add(score_effect(examples, stage, each, why), [each.kind])
    return found


_NO_SCORER = "what scored the answers cannot be asked to score others"


def _exchanged(
    old: Run,
    new: Run,
    examples: EvaluationSet,
    both: tuple[Stage, Stage],
    final: Mapping[str, np.ndarray],
    kinds: Sequence[Behaviour],
    scores: Sequence[ScoredKind],
    progress: Progress,
) -> StageDrop:
    from stagelens.effects.scoring_again import scored_model
    from stagelens.estimators.expected_error import judged_replay
    from stagelens.estimators.replay import trust_in_replay
    from stagelens.estimators.replay_check import check_replay
    from stagelens.measuring.models import empty_model, measure_set
    from stagelens.replaying.exchange import check_exchangeable, replay_exchanged
    from stagelens.replaying.replay import replay_later
    from stagelens.runs.schema import digest
    from stagelens.trust.one_draw import values_of

    stage, other = both
    title = f"Replaying the old {stage.name}: "
    trained = check_exchangeable(new, stage, other)
    checking, replaying = progress.part(0.0, 0.4), progress.part(0.4, 0.9, title)
    checks = {}
    for number, each in enumerate(trained):
        report = checking.piece(number, len(trained))
        checks[each.name] = check_replay(old if each is other else new, each, report)
    crossed = [*([other] if stage.index else []), *new.stages[stage.index + 1 :]]
    trust, repeats = trust_in_replay(stage.name, trained, crossed, checks)
    models = [replay_exchanged(new, stage, old, other, replaying).state.model]
    if repeats:
        models.append(replay_later(new, stage, stage.end(), replaying).state.model)
    key = digest("exchange", new.digest, old.digest, examples.digest, stage.name)[:32]
    module = empty_model(new)
    measured = measure_set(new, examples, module, models, key, progress.part(0.9, 1.0))
    labels = examples.table([])["label"]
    values = [values_of(each, labels) for each in measured]
    owned = [(each.kind.name, each.again) for each in scores if each.again is not None]
    for own, weights in zip(values, models, strict=True) if owned else ():
        told = scored_model(new, examples, module, weights, [again for _, again in owned])
        own |= {name: told[again.key] for name, again in owned}
    drops = {kind.name: kind.sign * (values[0][kind.name] - final[kind.name]) for kind in kinds}
    if repeats:
        name = kinds[-1].name  # the first that was measured may be an accuracy, which is coarser
        known = np.isfinite(final[name]) & np.isfinite(values[0][name])
        pair = final[name][known], values[1][name][known]
        trust = judged_replay(trust, *pair, drops[name][known], name, "what the exchange does")
    reason = trust.reason
    if not stage.index and other.facts.start != stage.facts.start:
        reason = f"With what the first stage began from, which is another one, too. {reason}"
    return StageDrop(
        stage.name, "exchange", {} if trust.trust == "refused" else drops, trust, reason
    )


def own_effect(
    new: Run,
    examples: EvaluationSet,
    stage: Stage,
    kinds: Sequence[Behaviour],
    why: str,
    progress: Progress,
) -> StageDrop:
    """What a stage did to the new model, against no such stage."""
    from stagelens.effects.computing import attribute
    from stagelens.effects.summary import with_accuracy
    from stagelens.estimators.registry import default_estimator, find

    chosen = REPLAY if find(REPLAY).possible(new) else default_estimator(new)
    said = f"Its own stage effect, against no such stage, because {why.rstrip('.')}."
    try:
        result = attribute(new, examples.name, chosen, [stage.name], progress)
    except StageLensError as error:
        return StageDrop(stage.name, "stage effect", {}, None, f"{said} {error}")
    trust = result.trust[stage.name]
    table = with_accuracy(result.table)
    drops = {}
    for kind in kinds:
        rows = table[(table["behaviour"] == kind.name) & (table["stage"] == stage.name)]
        ids = examples.table([])["example_id"].astype(object)
        effect = rows.set_index("example_id")["effect"].reindex(ids).to_numpy(float)
        drops[kind.name] = -kind.sign * effect
    refused = trust.trust == "refused"
    return StageDrop(
        stage.name, "stage effect", {} if refused else drops, trust, f"{said} {trust.reason}"
    )


@dataclass(frozen=True)
class Blame:
    """A stage's part in the drop of one slice.

    Attributes:
        found: The stage.
        drop: Mean over the slice; NaN where it is not known.
        low: Lower end of the interval that holds for all stages together; NaN: not known.
        high: Upper end.
        did_it: Whether it is named.
    """

    found: StageDrop
    drop: float
    low: float
    high: float
    did_it: bool


def blamed(
    drops: Sequence[StageDrop],
    behaviour: Behaviour,
    one: GateSlice,
    clusters: np.ndarray | None,
    level: float = 0.05,
) -> list[Blame]:
    """Which stages a slice's drop is due to.

    A stage is named where its drop is clearly above 0, with all stages looked at together
    (Bonferroni), and the stage of the largest drop is not clearly worse than it, pair by pair.

    Args:
        drops: Of :func:`stage_drops`.
        behaviour: Of the drop.
        one: The slice.
        clusters: (N,) the number of the source of each example; None where all are apart.
        level: How often any interval may miss.
    """
    looked_at = max(sum(one.how != "same" for one in drops), 1)
    own = None if clusters is None else clusters[one.inside]
    answers = counted_besides(behaviour)
    values, ends = [], []
    for each in drops:
        inside = each.drops.get(behaviour.name)
        value = None if inside is None else inside[one.inside]
        values.append(value)
        ends.append(_ends(each, behaviour, value, own, answers, level / looked_at))
    clear = [n for n, (_, low, _) in enumerate(ends) if low > 0]
    named = set()
    if clear:
        top = max(clear, key=lambda n: ends[n][0])
        for n in clear:
            apart = mean_spread(_values(values[top]) - _values(values[n]), own, answers)
            worse = n != top and apart.ends(level / max(looked_at - 1, 1))[0] > 0
            named |= set() if worse else {n}
    return [Blame(each, *ends[n], did_it=n in named) for n, each in enumerate(drops)]


def counted_besides(behaviour: Behaviour) -> bool:
    """Whether one change each way is taken to have been seen besides, as of answers."""
    return behaviour == ACCURACY or is_fraction(behaviour)


def _values(values: np.ndarray | None) -> np.ndarray:
    assert values is not None  # of stages with an interval
    return values


def _ends(
    found: StageDrop,
    behaviour: Behaviour,
    values: np.ndarray | None,
    clusters: np.ndarray | None,
    answers: bool,
    level: float,
) -> tuple[float, float, float]:
    """The mean drop and its interval, with the error of an estimate at either end."""
    if values is None or not np.isfinite(values).any():
        return math.nan, math.nan, math.nan
    if found.how == "same":
        return 0.0, 0.0, 0.0
    over = mean_spread(values, clusters, answers)
    every = found.drops[behaviour.name]  # errors are relative to the effects on the whole set
    rms = float(np.sqrt(np.nanmean(every**2)))
    off = mean_error(found.trust, behaviour.name, np.isfinite(values).sum(), rms)
    low, high = over.ends(level)
    if off is None:
        return over.value, math.nan, math.nan
    return over.value, low - off, high + off


def score_effect(examples: EvaluationSet, stage: Stage, scored: ScoredKind, why: str) -> StageDrop:
    """What a stage is to blame for on a score, by its stored stage effect.

    Args:
        examples: The set.
        stage: Of the new run.
        scored: The score.
        why: It is no exchange.
    """
    kind, table = scored.kind, scored.table
    rows = table.table[table.table["stage"] == stage.name].set_index("example_id")
    trust = table.trust.get(stage.name)
    said = f"Its own stage effect on the score, against no such stage, because {why.rstrip('.')}."
    if rows.empty or trust is None or trust.trust == "refused":
        lacks = "No score of the model without it is stored." if trust is None else trust.reason
        return StageDrop(stage.name, "stage effect", {}, trust, f"{said} {lacks}")
    ids = examples.table([])["example_id"].astype(object)
    effect = rows["effect"].reindex(ids).to_numpy(float)
    drops = {kind.name: -kind.sign * effect}
    return StageDrop(stage.name, "stage effect", drops, trust, f"{said} {trust.reason}")
