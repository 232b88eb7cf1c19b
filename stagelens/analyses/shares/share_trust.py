"""What is known of a number that is made of several coalitions' models.

The rule, which is conservative: a number is exact only if every model in it is, and refused where
one of them is. Otherwise the errors of its models are added up, each as large as its weight makes
it, as if all of them pointed the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from stagelens.estimators.expected_error import REFUSED_ABOVE, RELIABLE_BELOW
from stagelens.estimators.registry import find
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.intervals import group_error
from stagelens.wording.numbers import count_text
from stagelens.wording.trust_words import holds

from .values import Values, combined

RULE = (
    "A number made of several models is exact only if all of them are, and refused where one is; "
    "otherwise their errors are added up as if all of them pointed the same way."
)


def trust_of(
    name: str,
    weights: Mapping[int, float],
    v: Values,
    trust: Mapping[int, StageTrust],
    full: int,
    behaviour: str,
    labelled: np.ndarray,
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
    made_of = count_text(len(weights), "model")
    if not uncertain:
        return known
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
    typical = added(lambda part: part.typical_error)
    reason = (
        f"It is made of {made_of}, {len(weights) - len(uncertain)} of them exact; the errors of "
        "the others are added up as if all pointed the same way."
    )
    # Numbers that cost nothing are shown, as everywhere, even where their sign is uncertain.
    free = all(find(part.estimator).free for part in uncertain.values())
    if typical is not None and typical > REFUSED_ABOVE and not free:
        reason += " Their sum is typically larger than the number itself, so none is shown."
        return known.model_copy(update={"trust": "refused", "reason": reason})
    relied = all(holds(part, behaviour) for part in uncertain.values())
    update = {
        "trust": "estimated",
        "reason": reason,
        "expected_error": expected,
        "typical_error": typical,
        "group_error": added(lambda part: group_error(part, behaviour)),
        "reliable": relied and expected is not None and expected <= RELIABLE_BELOW,
        "no_replay": next((p.no_replay for p in uncertain.values() if p.no_replay), ""),
    }
    return known.model_copy(update=update)


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
    if known.trust == "exact":
        with np.errstate(divide="ignore", invalid="ignore"):
            missed = stats.t.sf(np.abs(shares) / errors, pairs - 1)
        wrong = float(np.nanmean(missed)) if np.isfinite(missed).any() else None
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
