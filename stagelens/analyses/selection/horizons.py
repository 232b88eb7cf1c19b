"""Which horizon to look ahead: each is judged by replaying what it would choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stagelens.analyses.contributions.contribution_table import Question
from stagelens.contracts import Progress, ProgressCallback, no_progress
from stagelens.runs.run import Run, Stage
from stagelens.runs.sets.folds import folds

from .outcomes import TRIALS, Wanted
from .proving import prove
from .ranked import HALVES, Ranking
from .ranking import rank


@dataclass(frozen=True)
class Tried:
    """A horizon, and the target after the stage was replayed with what it chose.

    Attributes:
        ranking: Made with it, by all of the target's examples.
        values: The target's mean behaviour, by draw; none of a horizon that is not judged.
    """

    ranking: Ranking
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Trials:
    """All horizons, the best one first.

    Attributes:
        tried: The horizons.
        random: What as many random examples gave in the same draws; none where nothing was judged.
    """

    tried: list[Tried]
    random: tuple[float, ...] = ()

    @property
    def best(self) -> Ranking:
        """Of the best horizon."""
        return self.tried[0].ranking


def try_horizons(
    run: Run,
    stage: Stage,
    wanted: Wanted,
    groups: Mapping[str, str] | None = None,
    progress: ProgressCallback = no_progress,
) -> Trials:
    """Rank by every horizon, and replay what each would choose.

    Where first order breaks down, a longer look ahead says less, and one that is too short sees
    little but the next step: at higher learning rates the best horizon is shorter. Each half of the
    target's examples judges what the other half alone would choose, so that a ranking which fits
    the examples it was made for, and no others, is not taken for a good one.

    Args:
        run: The run.
        stage: Whose examples.
        wanted: What is asked. A single horizon is not replayed.
        groups: Example to its group of the column ``wanted.by``; see
            :meth:`~.ranked.Ranking.by_groups`.
        progress: Called for every step.

    Raises:
        SetError: The question names what the set does not have.
        Refused: As :func:`~.ranking.rank` and :func:`~.proving.prove`.
    """
    overall, found = Progress(progress), []
    examples = run.evaluation_set(wanted.set_name)
    question = wanted.sides(examples)[0]
    count = len(wanted.horizons)
    for number, horizon in enumerate(wanted.horizons):
        part = overall.part(number / count, (number + 1) / count)
        asked = (run, stage, wanted.set_name, question, horizon, wanted.behaviour)
        single = rank(*asked, part.part(0.0, 0.7), wanted.curvature)
        ranking = _ordered(single, wanted, groups)
        values: tuple[float, ...] = ()
        if count > 1:
            # The half is taken first, so that what the other one says is not in the order.
            halves = [single.by_half(half) for half in range(len(HALVES))]
            orders = [None if own is None else _ordered(own, wanted, groups) for own in halves]
            values = _judged(run, stage, wanted, question, ranking, orders, part.part(0.7, 1.0))
        found.append(Tried(ranking, values))
    if count == 1:
        return Trials(found)
    kept = found[0].ranking.kept(wanted.keep)
    beside = prove(
        *(run, stage, wanted.set_name, question, found[0].ranking, kept),
        draws=TRIALS,
        kinds=("random",),
        progress=overall.part(1.0, 1.0),
    )
    kind = found[0].ranking.facts.behaviour

    def worth(tried: Tried) -> float:
        mean = float(np.mean(tried.values))
        # Of models that are no longer finite there is no number.
        return -np.inf if np.isnan(mean) else kind.behaviour().sign * mean

    best_first = sorted(found, key=worth, reverse=True)
    return Trials(best_first, tuple(beside.values("random", kind.name).tolist()))


def _ordered(ranking: Ranking, wanted: Wanted, groups: Mapping[str, str] | None) -> Ranking:
    """By groups and within labels, as far as that is wanted."""
    if groups is not None:
        ranking = ranking.by_groups(wanted.by, groups)
    return ranking.within_labels() if wanted.per_label else ranking


def _judged(
    run: Run,
    stage: Stage,
    wanted: Wanted,
    question: Question,
    ranking: Ranking,
    orders: Sequence[Ranking | None],
    progress: ProgressCallback,
) -> tuple[float, ...]:
    """The target's mean behaviour by draw, each half after a replay of what the other half chose.

    Of a target that has no halves, that after a replay of what it chose itself.
    """
    examples = run.evaluation_set(wanted.set_name)
    halves = folds(examples, question.of(examples), len(HALVES))
    pairs = [
        (order, Question(ids=judges))
        for order, judges in zip(orders, reversed(halves), strict=False)
        if order is not None
    ] or [(ranking, question)]
    overall, values, sizes = Progress(progress), [], []
    for number, (order, judges) in enumerate(pairs):
        proof = prove(
            *(run, stage, wanted.set_name, judges, order, order.kept(wanted.keep)),
            draws=TRIALS,
            kinds=("chosen",),
            progress=overall.part(number / len(pairs), (number + 1) / len(pairs)),
        )
        values.append(proof.values("chosen", ranking.facts.behaviour.name))
        sizes.append(len(judges.of(examples)))
    return tuple(np.average(values, axis=0, weights=sizes).tolist())
