"""How far a number can be trusted: one vocabulary for pages, charts, sentences and tables.

``trust`` says how a number was obtained and checked (exact, verified, estimated, refused). Its
*trust word* adds the outcome: an estimate that was verified agrees with replay or does not, and one
that was not verified is reliable or rough. Rely on filled marks, not on hollow ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from stagelens.estimators.expected_error import REFUSED_ABOVE, RELIABLE_BELOW
from stagelens.estimators.stage_trust import AGREES_ERROR, AGREES_R, StageTrust

TrustWord = Literal["exact", "agrees", "disagrees", "reliable", "rough", "refused"]
"""What is known of a number, and what came of it."""

MARKS: Mapping[TrustWord, str] = {
    "exact": "●",
    "agrees": "◆",
    "disagrees": "◇",
    "reliable": "◐",
    "rough": "○",
    "refused": "✕",
}
"""One shape each, so that trust words can be told apart without colour."""

WORDS: Mapping[TrustWord, str] = {
    "exact": "exact",
    "agrees": "verified, agrees",
    "disagrees": "verified, does not agree",
    "reliable": "estimated, reliable",
    "rough": "estimated, rough",
    "refused": "refused",
}
"""What each is called."""


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
    "agrees": (
        "an estimate that was checked against a replay and is close to it: r at least "
        f"{AGREES_R:g}, relative error at most {percent(AGREES_ERROR)}"
    ),
    "disagrees": "an estimate that was checked against a replay and is not close to it; use replay",
    "reliable": (
        "not verified; the expected error, found without a replay, is at most "
        f"{percent(RELIABLE_BELOW)}; only a replay decides"
    ),
    "rough": ("not verified, and the expected error is larger or unknown; a replay settles it"),
    "refused": (
        f"no number is shown, because the expected error is above {percent(REFUSED_ABOVE)}, the "
        "estimate diverged, or what it needs was not recorded"
    ),
}
"""What each means, thresholds included."""


def trust_word(trust: StageTrust, behaviour: str | None = None) -> TrustWord:
    """What is known of a stage's effects on a behaviour, and what came of it."""
    if trust.trust == "verified":
        agreement = trust.agreement(behaviour)
        return "agrees" if agreement is not None and agreement.agrees else "disagrees"
    if trust.trust == "estimated":
        return "reliable" if trust.reliable else "rough"
    return trust.trust


def is_trustworthy(trust: StageTrust, behaviour: str | None = None) -> bool:
    """Whether a number may be stated without a caveat."""
    return trust_word(trust, behaviour) in ("exact", "agrees", "reliable")


def trust_label(trust: StageTrust, behaviour: str | None = None) -> str:
    """A few words with the figures that matter: ``verified, agrees (r 0.95, error 38 %)``."""
    word = trust_word(trust, behaviour)
    agreement = trust.agreement(behaviour)
    if agreement is not None:
        # Accuracy has no agreement of its own: the first behaviour's stands in, and is named.
        about = "" if behaviour in (None, agreement.behaviour) else f"{agreement.behaviour}: "
        figures = f"{about}r {decimal(agreement.r)}, error {percent(agreement.relative_error)}"
    elif trust.trust != "estimated":
        return WORDS[word]
    elif trust.expected_error is None:
        figures = "error not known"
    else:
        figures = f"expected error {percent(trust.expected_error)}"
    return f"{WORDS[word]} ({figures})"


def trust_explanation(trust: StageTrust, behaviour: str | None = None) -> str:
    """What is known, in sentences that end with whether to rely on the number."""
    agreement = trust.agreement(behaviour)
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
    "agrees": "Close enough to rely on.",
    "disagrees": "Too far off to rely on: use replay.",
    "reliable": "You can rely on it.",
    "rough": "Do not rely on it until a replay has settled it.",
}


def decimal(value: float) -> str:
    """Two decimals, with a true minus sign; ``n/a`` where there is no number."""
    if not np.isfinite(value):
        return "n/a"
    return f"{value:.2f}".replace("-", "−")
