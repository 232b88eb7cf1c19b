"""One ``StageTrust`` of each standing."""

from __future__ import annotations

from typing import Any

from stagelens.estimators.stage_trust import Agreement, StageTrust


def trust(kind: str = "estimated", **more: Any) -> StageTrust:
    facts = {"stage": "shortcut", "estimator": "coarse-replay", "trust": kind, "reason": "So."}
    return StageTrust.model_validate({**facts, **more})


def agreement(
    r: float = 0.97, error: float = 0.12, slope: float = 1.02, behaviour: str = "margin"
) -> Agreement:
    return Agreement(behaviour=behaviour, r=r, slope=slope, relative_error=error)


EXACT = trust("exact", estimator="replay", reason="Replay repeats the recording bit for bit.")
AGREES = trust("verified", agreements=(agreement(),), expected_error=0.1)
DISAGREES = trust("does not agree", agreements=(agreement(0.4, 1.3, 0.35),))
UNSURE = trust(expected_error=0.9, reliable=False, reason="Coarse replay.")
RELIABLE = trust(expected_error=0.22, typical_error=0.09, reliable=True, reason="Coarse replay.")
ROUGH = trust(expected_error=0.52, reliable=False, reason="Coarse replay.")
UNKNOWN = trust(estimator="task-vector", reason="Task vector; its error is not known.")
SAMPLED = trust("exact", estimator="replay", on_samples=["grpo"], reason="Replay repeats it.")
REFUSED = trust("refused", reason="It would diverge.")

ALL = {
    "exact": EXACT,
    "verified": AGREES,
    "reliable": RELIABLE,
    "on recorded samples": SAMPLED,
    "rough": ROUGH,
    "sign uncertain": UNSURE,
    "does not agree": DISAGREES,
    "refused": REFUSED,
}
"""By the word for it, the best first."""
