"""Trust in an estimate, from what the calibration bench says of others like it."""

from __future__ import annotations

import math

import numpy as np

from .calibration import calibration, kind_of, known_kind, promised
from .evidence import Evidence, PairedEvidence
from .neglected_bounds import Kind, bound, bounds
from .stage_trust import AGREES_ERROR, StageTrust

_TINY = 1e-12  # keeps ratios finite where a stage has no effect at all

RELIABLE_BELOW = max(each.reliable_below or 0.0 for each in calibration().kinds.values())
"""No upper error above this is called reliable; each kind of estimate has a limit of its own."""
_REPEATED_BELOW = 0.28
"""Replays that are not bit for bit are relied on up to this measured error."""
SIGN_UNCERTAIN_ABOVE = 0.7
"""Upper errors above this leave the sign uncertain where the share of wrong signs is not known:
normal errors of relative size e, independent of normal effects, turn the sign of arctan(e) / pi."""
WRONG_SIGNS_ABOVE = 0.2
"""Shares of wrong signs above this leave the sign of a stage's effects uncertain."""
REFUSED_ABOVE = 1.0
"""A typical error as large as the effect itself leaves nothing to say."""


def judged(
    trust: StageTrust,
    evidence: Evidence,
    title: str,
    unlike: str,
    refused_above: float = REFUSED_ABOVE,
) -> StageTrust:
    """Trust in an estimate from its evidence: reliable or not, or refused.

    Args:
        trust: As the estimator gave it.
        evidence: From the measured models.
        title: Of the estimator, as used at the beginning of sentences.
        unlike: What the bench holds no example of, see :func:`.course.unlike_the_bench`.
        refused_above: A typical error above this leaves nothing to say.
    """
    paired = evidence if isinstance(evidence, PairedEvidence) else None
    kind = known_kind(kind_of(trust.estimator, paired is not None and paired.partial is not None))
    if kind is None:
        return trust
    features = evidence.features()
    if not np.isfinite(evidence.effect()).all():
        return _refused(trust, f"{title}: its effects are no finite numbers.")
    promise = promised(kind, features)
    if paired is not None and not promise.typical <= refused_above:  # so that a NaN is refused too
        size = f"{100 * promise.typical:.0f} % of" if promise.typical <= 10 else "over 10 times"
        return _refused(
            trust,
            f"{title}: an error of {size} the effect is typical of such estimates, so no number is "
            f"shown; raise the budget, or use replay.{_seen(paired)}",
        )
    # The bench knows nothing of the neglected term, which may lower trust, but never raise it.
    least = evidence.neglected or 0.0
    # Bounds are not known for SGD: runs of only one scenario were measured.
    most = None if evidence.course.sgd else _most(trust.estimator, evidence.neglected)
    unlike = unlike or ("" if promise.familiar else _STRANGE)
    reason = trust.reason
    if paired is not None:
        reason += _seen(paired)
    else:
        reason += (
            f" Over the {kind.recordings} trainings of the calibration bench, the median error of "
            f"this estimator was {100 * kind.typical:.0f} %."
        )
        # Promised of what was measured alone; elsewhere it may still lower trust.
        strange = evidence.course.optimizers - {*bounds().optimizers}
        measured = not (unlike or strange or evidence.course.batch_norm)
        reason += second_order_sentence(evidence.neglected, most if measured else None)
    # Said only where nothing else stands against it.
    if promise.low:
        reason += not_alike(unlike)
    return trust.model_copy(
        update={
            "reason": reason,
            "expected_error": max(promise.upper, least, most or 0.0),
            "typical_error": max(promise.typical, least),
            "group_error": max(promise.group, least),
            "wrong_signs": max(promise.wrong_signs, math.atan(least) / math.pi),
            "reliable": promise.reliable and not unlike and (most or least) <= RELIABLE_BELOW,
            "unlike": unlike,
            "neglected": evidence.neglected,
        }
    )


def _most(estimator: str, neglected: float | None) -> float | None:
    """What nine of ten errors of first order stay within where so much is neglected; else None."""
    kinds: tuple[Kind, ...] = ("unrolled-jump", "unrolled-scale")
    kind = next((kind for kind in kinds if kind == estimator), None)
    return None if kind is None or neglected is None else bound(kind, "final", neglected)


def second_order_sentence(neglected: float | None, most: float | None = None) -> str:
    """What first order neglects, in a sentence with a space before it; empty if not known.

    Args:
        neglected: Relative to the effect.
        most: What nine of ten errors of such estimates stay within; None where it is not known.
    """
    if neglected is None:
        return ""
    size = "over 10 times" if neglected >= 10 else f"about {100 * neglected:.0f} % of"
    if neglected < 0.005:
        size = "less than 1 % of"
    beyond = ", so that this is beyond first order" if neglected > AGREES_ERROR else ""
    within = "" if most is None else f"; nine of ten such errors are at most {100 * most:.0f} %"
    return f" The neglected second-order term is {size} the effect{beyond}{within}."


_STRANGE = "no training there was like this one"


def not_alike(unlike: str) -> str:
    """Why an estimate whose error is low enough is not called reliable; empty where it is."""
    if not unlike:
        return ""
    return f" Not called reliable, because the calibration holds nothing like it: {unlike}."


def _refused(trust: StageTrust, reason: str) -> StageTrust:
    return trust.model_copy(update={"trust": "refused", "reason": reason, "expected_error": None})


def _seen(evidence: PairedEvidence) -> str:
    """What a partial replay has shown; empty where there was none."""
    if evidence.partial is None:
        return ""
    return (
        " At the end of the stages that were replayed, cheap replay was off by "
        f"{100 * evidence.partial:.0f} % of the effect."
    )


def judged_replay(
    trust: StageTrust,
    final: np.ndarray,
    repeated: np.ndarray,
    effect: np.ndarray,
    behaviour: str,
    whose: str = "this stage's effect",
) -> StageTrust:
    """Trust in a replay that is not bit for bit, by what its deviation means for the effect.

    The recorded stages, repeated in the same way, should give the final model; by as much as they
    miss it, the replay without the stage is taken to be wrong too.

    Args:
        trust: As the estimator gave it.
        final: (N,) behaviour of the final model.
        repeated: (N,) behaviour of the final model as repeated here.
        effect: (N,) effect of the stage.
        behaviour: Its name.
        whose: What the effect is called.
    """
    error = float(np.linalg.norm(final - repeated) / (np.linalg.norm(effect) + _TINY))
    if not error <= REFUSED_ABOVE:  # NaN too
        reason = (
            f"{trust.reason} Repeating the recorded stages here changes the {behaviour} by more "
            f"than {whose}, so no number is shown."
        )
        return trust.model_copy(update={"trust": "refused", "reason": reason})
    share = "less than 1" if error < 0.005 else f"{100 * error:.0f}"
    reason = (
        f"{trust.reason} Repeating the recorded stages here changes the {behaviour} by {share} % "
        f"of {whose}."
    )
    return trust.model_copy(
        update={"reason": reason, "expected_error": error, "reliable": error <= _REPEATED_BELOW}
    )
