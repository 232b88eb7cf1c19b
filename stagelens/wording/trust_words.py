"""How far a number can be trusted: eight words, the same on pages, in files and in sentences.

A *trust word* says how a number was obtained and what came of checking it. Long sentences may
explain it, but the standing of a number is one of these words everywhere, and files hold exactly
the word. Rely on filled marks, not on hollow ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from stagelens.estimators.expected_error import (
    REFUSED_ABOVE,
    RELIABLE_BELOW,
    SIGN_UNCERTAIN_ABOVE,
    WRONG_SIGNS_ABOVE,
)
from stagelens.estimators.stage_trust import (
    AGREES_ERROR,
    AGREES_R,
    REPLAY,
    Agreement,
    StageTrust,
)

TrustWord = Literal[
    "exact",
    "verified",
    "reliable",
    "on recorded samples",
    "rough",
    "sign uncertain",
    "does not agree",
    "refused",
]
"""What is known of a number, the best first."""

MARKS: Mapping[TrustWord, str] = {
    "exact": "●",
    "verified": "◆",
    "reliable": "◐",
    "on recorded samples": "◧",
    "rough": "○",
    "sign uncertain": "□",
    "does not agree": "◇",
    "refused": "✕",
}
"""One shape each, so that trust words can be told apart without colour; the best first."""


def percent(share: float | None) -> str:
    """``12 %``; ``n/a`` where there is no number."""
    if share is None or not np.isfinite(share):
        return "n/a"
    # It would round to 0 %, as if there were no error at all.
    if 0 < share < 0.005:
        return "under 1 %"
    return f"{100 * share:.0f} %" if share < 10 else "more than 1,000 %"


MEANINGS: Mapping[TrustWord, str] = {
    "exact": "a replay that repeats the recording bit for bit, or the start of the last stage",
    "verified": (
        "an estimate that was checked against a replay and is close to it: r at least "
        f"{AGREES_R:g}, relative error at most {percent(AGREES_ERROR)}"
    ),
    "reliable": (
        "not checked; in nine of ten such estimates the error is at most the one printed, and that "
        f"is no more than {percent(RELIABLE_BELOW)}; only a replay decides. Of a mean over draws, "
        "the error printed is half its interval over them (95 %)"
    ),
    "on recorded samples": (
        "a replay of training on sampled answers, with the answers as they were recorded; the "
        "model without the stage might have sampled others"
    ),
    "rough": "not checked, and the error may be larger or is not known; where steps were recorded, "
    "a replay settles it, and more draws do where it is a mean over them",
    "sign uncertain": (
        f"not checked, and more than {percent(WRONG_SIGNS_ABOVE)} of the signs may be wrong (where "
        f"that is not known: the error may be above {percent(SIGN_UNCERTAIN_ABOVE)}); credit may "
        "be blame, and blame credit, so it is drawn as neither; where steps were recorded, a "
        "replay settles it"
    ),
    "does not agree": (
        "an estimate that was checked against a replay and is not close to it; the replay's own "
        "numbers are to be taken"
    ),
    "refused": (
        f"no number is shown, because the error may be above {percent(REFUSED_ABOVE)}, the "
        "estimate diverged, or what it needs was not recorded"
    ),
}
"""What each means, thresholds included."""


FIRST_ORDER: TrustWord = "rough"
"""Of contributions, which are of first order: no replay checks them, and no error is known."""


_HOLDS: tuple[TrustWord, ...] = ("exact", "verified", "reliable")


def trust_word(trust: StageTrust, behaviour: str | None = None) -> TrustWord:
    """What is known of a stage's effects, and what came of checking it.

    Args:
        trust: What is known.
        behaviour: Of the effects on which behaviour; None where a number is about all of them, so
            that the one that agrees least with replay decides.
    """
    word = _word_for_the_samples(trust, behaviour)
    # Not even a replay knows what the model without the stage would have sampled.
    return "on recorded samples" if trust.on_samples and word in _HOLDS else word


def _word_for_the_samples(trust: StageTrust, behaviour: str | None) -> TrustWord:
    if trust.over_draws:
        # The same limit as of an estimate, so that one word has one meaning.
        half = _width_over_draws(trust, behaviour) / 2
        return "reliable" if half <= RELIABLE_BELOW else "rough"
    agreement = _agreement(trust, behaviour)
    if agreement is not None:
        return "verified" if agreement.agrees else "does not agree"
    if trust.trust == "verified":
        # Nothing says how well it agrees, so nothing says that it does.
        return "rough"
    return promised_word(trust) if trust.trust == "estimated" else trust.trust


def trust_of_row(trust: StageTrust, row: Mapping[str, Any], behaviour: str) -> StageTrust:
    """What is known of one mean effect: of a mean over draws, its own interval decides.

    Args:
        trust: Of the stage, where intervals over draws are those of means over the whole set.
        row: As ``summary.stage_summary`` makes it, of all examples or of a group.
        behaviour: Of the effects on which behaviour.
    """
    if not trust.over_draws:
        return trust
    names = ("draw_effect", "draw_low", "draw_high")
    found = [row.get(name) for name in names]
    mean, low, high = (np.nan if each is None else float(each) for each in found)
    width = width_in_means(mean, low, high)
    return trust.model_copy(update={"over_draws": ((behaviour, width),)})


def width_in_means(mean: float, low: float, high: float) -> float:
    """How wide the interval of a mean over draws is, in sizes of the mean; infinite if not known.

    Where an end is cut off at what is possible, the other one tells: it lies evenly otherwise.
    """
    if not (np.isfinite(high - low) and mean != 0):
        return float("inf")
    return float(2 * max(mean - low, high - mean) / abs(mean))


HOLDS_ZERO = 2.0
"""The interval of a mean over draws, which lies evenly around it, holds zero from this width on, in
sizes of the mean."""


def clear_over_draws(trust: StageTrust, behaviour: str | None = None) -> bool:
    """Whether a number is a mean over draws whose interval over them leaves out zero.

    Nothing is estimated in a draw, so its sign is then known, however rough its size is.
    """
    return bool(trust.over_draws) and _width_over_draws(trust, behaviour) < HOLDS_ZERO


def _width_over_draws(trust: StageTrust, behaviour: str | None) -> float:
    widths = dict(trust.over_draws)
    # Of all behaviours, or one that was not drawn, the widest.
    return widths.get(behaviour or "", max(widths.values()))


def _agreement(trust: StageTrust, behaviour: str | None) -> Agreement | None:
    if behaviour is not None:
        return trust.agreement(behaviour)
    # The first of several that do not agree, else the first.
    return next((each for each in trust.agreements if not each.agrees), trust.agreement())


def promised_word(trust: StageTrust) -> TrustWord:
    """The word for an estimate before a replay checks it."""
    if _signs_promised(trust):
        return "reliable" if trust.reliable else "rough"
    return "sign uncertain"


def _signs_promised(trust: StageTrust) -> bool:
    if trust.wrong_signs is not None:
        return trust.wrong_signs <= WRONG_SIGNS_ABOVE
    return bool(trust.reliable) or (trust.expected_error or 0.0) <= SIGN_UNCERTAIN_ABOVE


def signs_known(trust: StageTrust | None, behaviour: str | None = None) -> bool:
    """Whether effects may be shown as credit and blame.

    Not where too many signs may be wrong, and not where a replay does not agree with the estimate,
    however many signs it found right: the replay's own numbers have credit and blame.
    """
    return trust is None or trust_word(trust, behaviour) not in ("sign uncertain", "does not agree")


def weakest(words: Iterable[TrustWord]) -> TrustWord:
    """The word for numbers that rest on several counterfactuals: none is worse.

    Raises:
        ValueError: There is no word.
    """
    order = list(MARKS)
    return max(words, key=order.index)


def is_trustworthy(trust: StageTrust, behaviour: str | None = None) -> bool:
    """Whether a number may be stated without a caveat."""
    return trust_word(trust, behaviour) in _HOLDS


def holds(trust: StageTrust, behaviour: str | None = None) -> bool:
    """Whether a number may be stated: without a caveat, or for the samples that were recorded."""
    return trust_word(trust, behaviour) in (*_HOLDS, "on recorded samples")


def may_be_finding(trust: StageTrust | None, behaviour: str | None = None) -> bool:
    """Whether a number may be stated as a finding: not where even its sign may be wrong."""
    if trust is None:
        return True
    return trust_word(trust, behaviour) not in ("sign uncertain", "does not agree", "refused")


def trust_label(trust: StageTrust, behaviour: str | None = None) -> str:
    """The word with the figures that matter: ``verified (r 0.95, error 38 %)``."""
    word = trust_word(trust, behaviour)
    agreement = _agreement(trust, behaviour)
    if agreement is not None:
        # Accuracy has no agreement of its own: the first behaviour's stands in, and is named.
        usual = trust.agreements[0].behaviour if behaviour is None else behaviour
        about = "" if agreement.behaviour == usual else f"{agreement.behaviour}: "
        figures = f"{about}r {decimal(agreement.r)}, error {percent(agreement.relative_error)}"
    elif trust.over_draws:
        width = _width_over_draws(trust, behaviour)
        figures = f"±{percent(width / 2)} over draws" if np.isfinite(width) else "error not known"
    elif trust.trust != "estimated":
        return word
    else:
        figures = promised_error(trust)
    return f"{word} ({figures})"


def promised_error(trust: StageTrust) -> str:
    """The error before a replay checks it: ``error up to 22 %, typically 9 %``."""
    if trust.expected_error is None:
        return "error not known"
    if trust.estimator == REPLAY:
        # By how much it misses the recording, not what nine of ten others stay within.
        return f"error about {percent(trust.expected_error)}"
    typical = "" if trust.typical_error is None else f", typically {percent(trust.typical_error)}"
    return f"error up to {percent(trust.expected_error)}{typical}"


PROMISED = ("margin", "loss", "log-likelihood", "log-likelihood per token")
"""Behaviours whose errors the promises were measured on; an estimate is as wrong as on the worst of
these. Probabilities and answers saturate, and other behaviours were not there."""


def promised_elsewhere(behaviour: str | None) -> str:
    """What the promise was measured on, where that is not this behaviour; else empty."""
    if behaviour is None or behaviour in PROMISED:
        return ""
    return f"measured on margins, losses and log-likelihoods, not on the {behaviour}"


def promised_error_sentence(trust: StageTrust, behaviour: str | None = None) -> str:
    """The same as a sentence; empty where no error is known, or the reason tells it."""
    said = _promised_error_sentence(trust)
    elsewhere = promised_elsewhere(behaviour)
    return f"{said} That was {elsewhere}." if said and elsewhere else said


def _promised_error_sentence(trust: StageTrust) -> str:
    if trust.trust != "estimated" or trust.expected_error is None or trust.estimator == REPLAY:
        return ""
    typical = "" if trust.typical_error is None else f" (typically {percent(trust.typical_error)})"
    said = f"In nine of ten such estimates the error is at most {percent(trust.expected_error)}"
    if trust.wrong_signs is None or trust.wrong_signs <= WRONG_SIGNS_ABOVE:
        return f"{said}{typical}."
    return f"{said}{typical}, and at most {percent(trust.wrong_signs)} of the signs are wrong."


def trust_explanation(trust: StageTrust, behaviour: str | None = None) -> str:
    """What is known, in sentences that end with whether to rely on the number."""
    agreement = _agreement(trust, behaviour)
    said = f"{trust.reason} {promised_error_sentence(trust, behaviour)}".rstrip()
    also = sampled_sentence(trust)
    if agreement is not None:
        said = (
            f"Checked against a replay, on the {agreement.behaviour}: r {decimal(agreement.r)}, "
            f"slope {decimal(agreement.slope)}, relative error {percent(agreement.relative_error)}."
        )
        expected, error = trust.expected_error, agreement.relative_error
        # Not of two errors that would be printed alike.
        if expected is not None and error > expected and percent(error) != percent(expected):
            said += f" Before the replay, it was to be at most {percent(expected)}."
    return " ".join(filter(None, (said, also, trust_advice(trust, behaviour))))


def sampled_sentence(trust: StageTrust) -> str:
    """What is held fixed of stages that were trained on sampled answers; empty without any."""
    return samples_sentence(trust.on_samples)


def samples_sentence(on_samples: Sequence[str]) -> str:
    """:func:`sampled_sentence` of stages by their names."""
    if not on_samples:
        return ""
    several = len(on_samples) > 1
    stages, were = ("Stages", "were") if several else ("Stage", "was")
    return (
        f"{stages} {', '.join(on_samples)} {were} "
        "trained on answers that the model had sampled; the answers, what they were rewarded with "
        "and how probable they were are held as recorded, while the model without the stage might "
        "have sampled others."
    )


def trust_advice(trust: StageTrust, behaviour: str | None = None) -> str:
    """Whether to rely on the number; nothing where it is exact or refused."""
    word = trust_word(trust, behaviour)
    if trust.over_draws:
        clear = word == "rough" and clear_over_draws(trust, behaviour)
        return _SIGN_OVER_DRAWS if clear else _OVER_DRAWS.get(word, "")
    if trust.no_replay and word in _UNSETTLED:
        return f"{_UNSETTLED[word]} No replay can settle it: {trust.no_replay}."
    return _ADVICE.get(word, "")


_ADVICE: Mapping[TrustWord, str] = {
    "verified": "Close enough to rely on.",
    "reliable": "You can rely on it.",
    "on recorded samples": "Rely on it for the answers that were recorded.",
    "rough": "Do not rely on it unless a replay settles it.",
    "sign uncertain": "Even its sign may be wrong: use replay.",
    "does not agree": "Too far off to rely on: use replay.",
}

_OVER_DRAWS: Mapping[TrustWord, str] = {
    "reliable": "Rely on it, as far as its interval over draws goes.",
    "rough": "Rely on its interval over draws, not on its size.",
}
"""The same of a mean over draws."""

_SIGN_OVER_DRAWS = "Rely on its sign and on its interval over draws, not on its size."
"""The same of a rough one whose interval leaves out zero."""

_UNSETTLED: Mapping[TrustWord, str] = {
    "rough": "Do not rely on it.",
    "sign uncertain": "Even its sign may be wrong.",
}
"""The same where nothing can be replayed."""


def decimal(value: float) -> str:
    """Two decimals, with a true minus sign; ``n/a`` where there is no number."""
    if not np.isfinite(value):
        return "n/a"
    return f"{value:.2f}".replace("-", "−")
