"""What is known of a number that is made of several coalitions' models.

It is exact only if every model in it is, and refused where one of them is. How far estimates are
off was measured on the calibration bench, for shares and for other sums of models: errors of
models point different ways, so a number is about as far off as independent errors would make it.
Where that was not measured, the errors of the models are added up as if all pointed the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stagelens.estimators.calibration import Kind, known_kind, promised
from stagelens.estimators.coalition_plan import MOST
from stagelens.estimators.expected_error import REFUSED_ABOVE, RELIABLE_BELOW, not_alike
from stagelens.estimators.registry import find
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.intervals import group_error
from stagelens.wording.numbers import count_text
from stagelens.wording.trust_words import holds

from .values import Values, combined

RULE = (
    "A number made of several models is exact only if all of them are, and refused where one is; "
    "otherwise its error is the one that such numbers of estimated models had where all of them "
    "were replayed as well, and where that was not measured, their errors added up as if all of "
    "them pointed the same way."
)

_ENDS = 1e-3, 1e2
"""Between these, ratios are told apart."""
SHARES, SUMS = "shares", "sums"
"""What was measured of numbers made of an estimator's models: shares, and sums of other kinds."""


def kind_of(estimator: str, of: str) -> str:
    """The kind of estimate that numbers made of an estimator's models are."""
    return f"{of} by {estimator}"


def features(
    weights: Mapping[int, float], v: Values, typical: Mapping[int, float], labelled: np.ndarray
) -> dict[str, float]:
    """What the error of a weighted sum of coalitions is told by.

    Args:
        weights: Coalition to its weight in the number; with the final model, or v holds it.
        v: Coalition to (N,) values of the behaviour.
        typical: Estimated coalition to the typical error of its model, relative to the effect of
            everything that it leaves out.
        labelled: (N,) the examples that errors are relative to.

    Returns:
        ``apart``: the logarithm of the sum's error, relative to the sum, if those of its models
        were independent and typical of each; none where the sum is nothing.
    """
    final, own = v[max(v)], _size(combined(v, weights), labelled)
    if not 0 < own < math.inf:
        return {}
    parts = [
        abs(weights[mask]) * error * _size(final - v[mask], labelled)
        for mask, error in typical.items()
    ]
    least, most = _ENDS
    return {"apart": math.log(min(max(math.hypot(*parts) / own, least), most))}


def trust_of(
    name: str,
    weights: Mapping[int, float],
    v: Values,
    trust: Mapping[int, StageTrust],
    full: int,
    behaviour: str,
    labelled: np.ndarray,
    of: str = SUMS,
) -> StageTrust:
    """What is known of a weighted sum of coalitions.

    Args:
        name: What the number is about, a stage for instance.
        weights: Coalition to its weight in the number.
        v: Coalition to (N,) values of the behaviour.
        trust: Coalition to what is known of its model, whose expected error is relative to the
            effect of everything that it leaves out.
        full: The coalition of everybody, which is the recorded final model.
        behaviour: Its name.
        labelled: (N,) the examples that errors are relative to.
        of: Whether it is one of :data:`SHARES`, or of another kind.
    """
    parts = {mask: trust[mask] for mask in weights if mask != full and mask in trust}
    samples = tuple(dict.fromkeys(s for part in parts.values() for s in part.on_samples))
    known = StageTrust(
        stage=name,
        estimator=_estimator(list(parts.values())),
        trust="exact",
        reason=f"All {count_text(len(weights), 'model')} in it are exact.",
        on_samples=samples,
        seconds=sum(part.seconds for part in parts.values()),
        cost=sum(part.cost for part in parts.values()),
    )
    refused = [part for part in parts.values() if part.trust == "refused"]
    missing = [mask for mask in weights if mask not in v]
    if refused or missing:
        reason = (
            f"The model of {refused[0].stage} is refused, and this number is made of it: "
            f"{refused[0].reason}"
            if refused
            else f"{count_text(len(missing), 'model')} that this number is made of "
            f"{'was' if len(missing) == 1 else 'were'} not measured."
        )
        return known.model_copy(update={"trust": "refused", "reason": reason})
    uncertain = {mask: part for mask, part in parts.items() if part.trust != "exact"}
    if not uncertain:
        return known
    made_of = (
        f"It is made of {count_text(len(weights), 'model')}, {len(weights) - len(uncertain)} of "
        "them exact"
    )
    known = known.model_copy(
        update={
            "trust": "estimated",
            "no_replay": next((p.no_replay for p in uncertain.values() if p.no_replay), ""),
        }
    )
    told = _told(weights, uncertain, v, full, of, labelled)
    known = known.model_copy(
        update=_promised(made_of, uncertain, *told)
        if told is not None
        else _added(made_of, weights, uncertain, v, full, behaviour, labelled)
    )
    return worth_showing(known, all(find(part.estimator).free for part in uncertain.values()))


def worth_showing(known: StageTrust, free: bool | None = None) -> StageTrust:
    """What is known of a number; refused where its error is typically larger than the number.

    Args:
        known: What is known so far.
        free: Whether it costs nothing: such numbers are shown, as everywhere, even where their sign
            is uncertain. None if that is so of the estimator.
    """
    if known.trust != "estimated" or (known.typical_error or 0.0) <= REFUSED_ABOVE:
        return known
    if find(known.estimator).free if free is None else free:
        return known
    reason = (
        f"{known.reason} Its error is typically larger than the number itself, so none is shown."
    )
    return _nothing_known(known, reason)


def _told(
    weights: Mapping[int, float],
    uncertain: Mapping[int, StageTrust],
    v: Values,
    full: int,
    of: str,
    labelled: np.ndarray,
) -> tuple[Kind, dict[str, float]] | None:
    """The kind of a number that was measured on the bench, and its features; None for another."""
    if set(weights) == {full, *uncertain} and len(uncertain) == 1:
        return None  # a stage's effect, which is as far off as its model
    typical = {mask: part.typical_error for mask, part in uncertain.items()}
    known = {mask: error for mask, error in typical.items() if error is not None}
    estimators = {part.estimator for part in uncertain.values()}
    if len(known) < len(typical) or len(estimators) > 1:
        return None
    kind, own = known_kind(kind_of(estimators.pop(), of)), features(weights, v, known, labelled)
    return None if kind is None or not own else (kind, own)


def _promised(
    made_of: str, uncertain: Mapping[int, StageTrust], kind: Kind, own: Mapping[str, float]
) -> dict[str, Any]:
    """What is promised of a number, from what others like it were worth."""
    promise = promised(kind, own)
    unlike = next((part.unlike for part in uncertain.values() if part.unlike), "")
    if max(uncertain).bit_length() > MOST:
        unlike = unlike or f"numbers of more than {MOST} stages or parties"
    reason = (
        f"{made_of}; how far such numbers are off was measured on {kind.recordings} trainings of "
        "which all models were replayed as well."
    )
    if promise.low:
        reason += not_alike(unlike)
    return {
        "reason": reason,
        "expected_error": promise.upper,
        "typical_error": promise.typical,
        "group_error": promise.group,
        "wrong_signs": promise.wrong_signs,
        "reliable": promise.reliable and not unlike,
        "unlike": unlike,
    }


def _added(
    made_of: str,
    weights: Mapping[int, float],
    uncertain: Mapping[int, StageTrust],
    v: Values,
    full: int,
    behaviour: str,
    labelled: np.ndarray,
) -> dict[str, Any]:
    """What is known of a number if the errors of all its models point the same way."""
    own = _size(combined(v, weights), labelled)

    def added(error: Callable[[StageTrust], float | None]) -> float | None:
        total = 0.0
        for mask, part in uncertain.items():
            off = error(part)
            if off is None:
                return None
            total += abs(weights[mask]) * off * _size(v[full] - v[mask], labelled)
        return total / own if own > 0 and np.isfinite(total) else None

    expected = added(lambda part: part.expected_error)
    relied = all(holds(part, behaviour) for part in uncertain.values())
    return {
        "reason": f"{made_of}; the errors of the others are added up as if all pointed the same "
        "way.",
        "expected_error": expected,
        "typical_error": added(lambda part: part.typical_error),
        "group_error": added(lambda part: group_error(part, behaviour)),
        "reliable": relied and expected is not None and expected <= RELIABLE_BELOW,
    }


def _nothing_known(known: StageTrust, reason: str) -> StageTrust:
    """Refused: no number, and no error of it."""
    errors = dict.fromkeys(("expected_error", "typical_error", "group_error", "wrong_signs"))
    said = {"trust": "refused", "reason": reason, "reliable": None}
    return known.model_copy(update={**errors, **said})


def of_sampled_orders(
    known: StageTrust, shares: np.ndarray, errors: np.ndarray, pairs: int
) -> StageTrust:
    """What is known of shares from sampled orders: never exact, whatever their models are.

    Args:
        known: What is known of their models.
        shares: (N,) one party's, of the examples that errors are relative to.
        errors: (N,) their standard errors over pairs of orders.
        pairs: How many pairs there are.
    """
    if known.trust == "refused":
        return known
    from scipy import stats  # here, because it takes a second

    off, own = (np.sqrt(np.mean(each[np.isfinite(each)] ** 2)) for each in (errors, shares))
    sampled = float(off / own) if own > 0 and np.isfinite(off) else None
    expected, typical, wrong = None, None, None
    models = 0.0 if known.trust == "exact" else known.expected_error
    if sampled is not None and models is not None:
        expected, typical = (
            models + sampled * float(stats.t.ppf(level, pairs - 1)) for level in (0.95, 0.75)
        )
    if known.trust == "exact" or known.wrong_signs is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            missed = stats.t.sf(np.abs(shares) / errors, pairs - 1)
        # At most those that the models get wrong, and those that the orders do.
        more = known.wrong_signs or 0.0
        wrong = more + float(np.nanmean(missed)) if np.isfinite(missed).any() else None
        wrong = None if wrong is None else min(wrong, 1.0)
    size = "not known" if expected is None else f"about {100 * expected:.0f} % of its size"
    reason = (
        f"{known.reason} Of all orders of joining, {pairs} pairs were drawn: for one example, the "
        f"error is {size}. More models (--models) make it smaller."
    )
    return known.model_copy(
        update={
            "trust": "estimated",
            "reason": reason,
            "expected_error": expected,
            "typical_error": typical,
            # Intervals of means have what orders add beside what models do.
            "group_error": 0.0 if known.trust == "exact" else known.group_error,
            "wrong_signs": wrong,
            "reliable": (known.trust == "exact" or bool(known.reliable))
            and expected is not None
            and expected <= RELIABLE_BELOW,
            "no_replay": known.no_replay or "only more orders do",
        }
    )


def _estimator(parts: list[StageTrust]) -> str:
    """The estimator that the models were obtained by, the least certain one's first."""
    uncertain = [part.estimator for part in parts if part.trust != "exact"]
    return next(iter([*uncertain, *(part.estimator for part in parts)]), "")


def _size(values: np.ndarray, labelled: np.ndarray) -> float:
    """Root mean square over the labelled examples."""
    own = np.asarray(values, dtype=float)[labelled]
    own = own[np.isfinite(own)]
    return float(np.sqrt(np.mean(own**2))) if len(own) else float("nan")
