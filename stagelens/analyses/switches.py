"""What the model does with some stages switched off, for the combinations that were measured.

A combination is named by the places in training of the stages that are off: ``()`` is the final
model, ``(1,)`` the counterfactual without the second stage, ``(1, 3)`` the model in which neither
happened. Single stages are read off an effect table, so that a switch says what every other page
says of that stage; all others are coalition models. Nothing here trains or asks a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects import summary
from stagelens.effects.coalition_results import CoalitionResult
from stagelens.effects.contrasts import mean_spread, share_interval
from stagelens.estimators.stage_trust import StageTrust
from stagelens.trust.stage_effects import Effects
from stagelens.wording.intervals import mean_error

from .shares.share_trust import worth_showing

Off = tuple[int, ...]
"""Places in training of the stages that are switched off, ascending."""

ALL_ON: Off = ()
_RECORDED = StageTrust(
    stage="",
    estimator="",
    trust="exact",
    reason="Measured on the recorded final model; nothing is estimated.",
)


@dataclass(frozen=True)
class Switched:
    """One model, on the N examples of a set.

    Attributes:
        off: The stages that did not happen.
        values: (N,) a behaviour; NaN where it has none.
        answers: (N,) texts; None where there is no answer.
        trust: What is known of the model.
        estimator: How it was obtained; empty for the recorded one.
    """

    off: Off
    values: np.ndarray
    answers: np.ndarray
    trust: StageTrust
    estimator: str = ""

    @property
    def refused(self) -> bool:
        """Whether there are no numbers."""
        return self.trust.trust == "refused"


@dataclass(frozen=True)
class Level:
    """The mean of a behaviour of one model over examples.

    Attributes:
        n: Over how many.
        mean: NaN of none.
        low: Lower end of the 95 % interval over the choice of examples, with what the error of an
            estimate adds; NaN where it is not known.
        high: Its upper end.
    """

    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Turned:
    """How one model differs from the final one on some examples.

    Attributes:
        n: How many have both values.
        effect: Mean of ``final - switched`` over these.
        error: Its standard error over examples, or over their sources.
        freedom: Degrees of freedom of that.
        rms: Root mean square of ``final - switched`` over the labelled examples of the set.
        better: How many are better with the stages off; of accuracy, wrong answers turned right.
        worse: How many are worse.
        answers: How many answers differ.
    """

    n: int
    effect: float
    error: float
    freedom: float
    rms: float
    better: int
    worse: int
    answers: int


def measured(
    effects: Effects,
    coalitions: CoalitionResult | None,
    behaviour: Behaviour,
    stages: Sequence[str],
    ids: Sequence[str],
) -> dict[Off, Switched]:
    """Every combination that was measured, the final model first.

    Args:
        effects: Of leaving out single stages.
        coalitions: Models of several stages, every stage its own party; None where none are known.
        behaviour: Which behaviour; coalitions that do not have it are left out.
        stages: Names in training order.
        ids: (N,) the set's example ids, in order.

    Returns:
        A refused combination is there too, with NaN.
    """
    found: dict[Off, Switched] = {}
    columns = ("stage", "example_id", "final", "without", "prediction", "prediction_without")
    places = {name: place for place, name in enumerate(stages)}
    for part in effects.parts(behaviour.name, columns):
        for name, rows in summary.by_stage(part, stages):
            rows = _in_order(rows, ids)
            if ALL_ON not in found:
                found[ALL_ON] = _model(ALL_ON, rows, "final", "prediction", _RECORDED, "")
            off: Off = (places[name],)
            trust = effects.trust[name]
            columns_of = ("without", "prediction_without")
            found[off] = _model(off, rows, *columns_of, trust, effects.sources[name])
    if coalitions is not None and behaviour.name in coalitions.behaviours:
        for mask, trust in coalitions.trust.items():
            off = tuple(place for place in range(len(stages)) if not mask >> place & 1)
            if off not in found or (found[off].refused and trust.trust != "refused"):
                one = _of_coalition(coalitions, mask, off, behaviour, len(ids))
                if off not in found or not one.refused:
                    found[off] = one
    return found


def _in_order(rows: pd.DataFrame, ids: Sequence[str]) -> pd.DataFrame:
    own = rows["example_id"].astype(object).to_numpy()
    if len(own) == len(ids) and (own == np.asarray(ids, dtype=object)).all():
        return rows
    return rows.set_index(pd.Index(own)).reindex(list(ids))


def _model(
    off: Off, rows: pd.DataFrame, value: str, answer: str, trust: StageTrust, estimator: str
) -> Switched:
    answers = rows[answer].astype(object)
    return Switched(
        off,
        rows[value].to_numpy(float, na_value=np.nan),
        answers.where(answers.notna(), None).to_numpy(object),
        trust,
        estimator,
    )


def _of_coalition(
    coalitions: CoalitionResult, mask: int, off: Off, behaviour: Behaviour, count: int
) -> Switched:
    trust, estimator = worth_showing(coalitions.trust[mask]), coalitions.facts.estimator
    if mask not in coalitions.models or trust.trust == "refused":
        return Switched(off, np.full(count, np.nan), np.full(count, None), trust, estimator)
    values, answers = coalitions.value(mask, behaviour.name), coalitions.predictions(mask)
    return Switched(off, values, answers, trust, estimator)


def level(
    one: Switched,
    final: Switched,
    behaviour: Behaviour,
    chosen: np.ndarray,
    labels: np.ndarray,
    clusters: np.ndarray | None = None,
) -> Level:
    """The mean over some examples, with its interval.

    It is that of ``effects.contrasts``: of accuracy, one that does not shrink to nothing where all
    are right; of other behaviours, Student's. Where the model is an estimate, its error is added at
    either end.

    Args:
        one: The model.
        final: The final model, from which the error of an estimate is reckoned.
        behaviour: What ``values`` are.
        chosen: (N,) which examples.
        labels: (N,) which examples of the set have a label.
        clusters: (N,) the source of each, below 0 where it has none; None where all are apart.
    """
    known = chosen & np.isfinite(one.values)
    values = one.values[known]
    n = len(values)
    if not n:
        return Level(0, np.nan, np.nan, np.nan)
    mean = float(values.mean())
    own = None if clusters is None else clusters[known]
    share = behaviour == ACCURACY
    low, high = share_interval(values, own) if share else mean_spread(values, own).ends()
    added = mean_error(one.trust, behaviour.name, n, _rms(final.values - one.values, labels))
    if added is None:
        return Level(n, mean, np.nan, np.nan)
    low, high = low - added, high + added
    low, high = (float(np.clip(end, behaviour.lowest, behaviour.highest)) for end in (low, high))
    return Level(n, mean, low, high)


def _rms(effects: np.ndarray, labels: np.ndarray) -> float:
    effects = effects[labels] if labels.any() else effects
    effects = effects[np.isfinite(effects)]
    return float(np.sqrt((effects**2).mean())) if len(effects) else np.nan


def turned(
    one: Switched,
    final: Switched,
    behaviour: Behaviour,
    chosen: np.ndarray,
    labels: np.ndarray,
    clusters: np.ndarray | None = None,
) -> Turned:
    """How a model differs from the final one on some examples; arguments are those of level."""
    effects = final.values - one.values
    known = chosen & np.isfinite(effects)
    effect, own = effects[known], None if clusters is None else clusters[known]
    gain = behaviour.sign * effect
    spread = mean_spread(effect, own, behaviour == ACCURACY)
    answered = [
        (a, b)
        for a, b in zip(final.answers[chosen], one.answers[chosen], strict=True)
        if a is not None and b is not None
    ]
    return Turned(
        len(effect),
        float(effect.mean()) if len(effect) else np.nan,
        spread.error,
        spread.freedom,
        _rms(effects, labels),
        int((gain < 0).sum()),
        int((gain > 0).sum()),
        sum(a != b for a, b in answered),
    )


def sample(
    models: Mapping[Off, Switched], behaviour: Behaviour, chosen: np.ndarray, most: int
) -> np.ndarray:
    """Examples that stand for a group: as many of each kind as the group has of it.

    Examples are put in order of what the models do with them (of accuracy: the wrong ones first,
    and then by which switch turns them; else by the final model's value, the worst first), and
    every n-th is taken. So the shares that are right, with all stages on or with any of them off,
    are about those of the whole group; nothing is left to chance.

    Args:
        models: Of :func:`measured`.
        behaviour: What their values are.
        chosen: (N,) the group.
        most: At most this many.

    Returns:
        Their places in the set, in that order.
    """
    places = np.flatnonzero(chosen)
    final = models[ALL_ON].values[places]
    if behaviour == ACCURACY:
        others = [off for off in models if off]
        moved = {off: np.sum(models[off].values[places] != final) for off in others}
        # Single switches are pressed first, and of these the one that changes most.
        others.sort(key=lambda off: (len(off), -moved[off], off))
        kinds = [np.nan_to_num(-models[off].values[places], nan=1.0) for off in reversed(others)]
        order = np.lexsort((*kinds, np.nan_to_num(final, nan=2.0)))
    else:
        order = np.argsort(behaviour.sign * final, kind="stable")  # NaN comes last
    places = places[order]
    if len(places) <= most:
        return places
    step = len(places) / most
    return places[((np.arange(most) + 0.5) * step).astype(int)]


def combination_of(off: Iterable[str], stages: Sequence[str]) -> Off:
    """The combination in which these stages are off; names that are none are left out."""
    names = set(off)
    return tuple(place for place, name in enumerate(stages) if name in names)
