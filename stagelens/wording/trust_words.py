"""How far a number can be trusted: eight words, the same on pages, in files and in sentences.

A *trust word* says how a number was obtained and what came of checking it. Long sentences may
explain it, but the standing of a number is one of these words everywhere, and files hold exactly
the word. Rely on filled marks, not on hollow ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from stagelens.estimators.expected_error import (
    REFUSED_ABOVE,
    RELIABLE_BELOW,
    SIGN_UNCERTAIN_ABOVE,
)
from stagelens.estimators.stage_trust import AGREES_ERROR, AGREES_R, Agreement, StageTrust

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
        "not checked; the expected error, found without a replay, is at most "
        f"{percent(RELIABLE_BELOW)}; only a replay decides"
    ),
    "on recorded samples": (
        "a replay of training on sampled answers, with the answers as they were recorded; the "
        "model without the stage might have sampled others"
    ),
    "rough": "not checked, and the expected error is larger or unknown; a replay settles it",
    "sign uncertain": (
        f"not checked, and the expected error is above {percent(SIGN_UNCERTAIN_ABOVE)}: credit may "
        "be blame, and blame credit; use replay"
    ),
    "does not agree": (
        "an estimate that was checked against a replay and is not close to it; use replay"
    ),
    "refused": (
        f"no number is shown, because the expected error is above {percent(REFUSED_ABOVE)}, the "
        "estimate diverged, or what it needs was not recorded"
    ),
}
"""What each means, thresholds included."""


FIRST_ORDER: TrustWord = "rough"
"""Of contributions, which are of first order: no replay checks them, and no error is known."""


def trust_word(trust: StageTrust, behaviour: str | None = None) -> TrustWord:
    """What is known of a stage's effects, and what came of checking it.

    Args:
        trust: What is known.
        behaviour: Of the effects on which behaviour; None where a number is about all of them, so
            that the one that agrees least with replay decides.
    """
    agreement = _agreement(trust, behaviour)
    if agreement is not None:
        return "verified" if agreement.agrees else "does not agree"
    if trust.trust == "verified":
        # Nothing says how well it agrees, so nothing says that it does.
        return "rough"
    if trust.trust == "estimated":
        return "reliable" if trust.reliable else expected_word(trust.expected_error)
    return trust.trust


def _agreement(trust: StageTrust, behaviour: str | None) -> Agreement | None:
    if behaviour is not None:
        return trust.agreement(behaviour)
    # The first of several that do not agree, else the first.
    return next((each for each in trust.agreements if not each.agrees), trust.agreement())


def expected_word(error: float | None) -> TrustWord:
    """The word for an estimate that was not checked, by its expected error."""
    if error is None:
        return "rough"
    if error > SIGN_UNCERTAIN_ABOVE:
        return "sign uncertain"
    return "reliable" if error <= RELIABLE_BELOW else "rough"


def weakest(words: Iterable[TrustWord]) -> TrustWord:
    """The word for numbers that rest on several counterfactuals: none is worse.

    Raises:
        ValueError: There is no word.
    """
    order = list(MARKS)
    return max(words, key=order.index)


def is_trustworthy(trust: StageTrust, behaviour: str | None = None) -> bool:
    """Whether a number may be stated without a caveat."""
    return trust_word(trust, behaviour) in ("exact", "verified", "reliable")


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
    elif trust.trust != "estimated":
        return word
    elif trust.expected_error is None:
        figures = "error not known"
    else:
        figures = f"expected error {percent(trust.expected_error)}"
    return f"{word} ({figures})"


def trust_explanation(trust: StageTrust, behaviour: str | None = None) -> str:
    """What is known, in sentences that end with whether to rely on the number."""
    agreement = _agreement(trust, behaviour)
    said = trust.reason
    if agreement is not None:
        said = (
            f"Checked against a replay, on the {agreement.behaviour}: r {decimal(agreement.r)}, "
            f"slope {decimal(agreement.slope)}, relative error {percent(agreement.relative_error)}."
        )
        expected, error = trust.expected_error, agreement.relative_error
        # Twice a small error is soon exceeded, so 10 points are asked for too.
        if expected is not None and error > max(2 * expected, expected + 0.1):
            said += f" Without the replay, only {percent(expected)} was expected."
    return f"{said} {trust_advice(trust, behaviour)}".rstrip()


def trust_advice(trust: StageTrust, behaviour: str | None = None) -> str:
    """Whether to rely on the number; nothing where it is exact or refused."""
    return _ADVICE.get(trust_word(trust, behaviour), "")


_ADVICE: Mapping[TrustWord, str] = {
    "verified": "Close enough to rely on.",
    "reliable": "You can rely on it.",
    "on recorded samples": "Rely on it for the answers that were recorded.",
    "rough": "Do not rely on it until a replay has settled it.",
    "sign uncertain": "Even its sign may be wrong: use replay.",
    "does not agree": "Too far off to rely on: use replay.",
}


def decimal(value: float) -> str:
    """Two decimals, with a true minus sign; ``n/a`` where there is no number."""
    if not np.isfinite(value):
        return "n/a"
    return f"{value:.2f}".replace("-", "−")
