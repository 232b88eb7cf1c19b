"""The report's table of what is known of every estimate of a set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from stagelens.estimators.stage_trust import StageTrust
from stagelens.trust.stage_effects import Effects
from stagelens.wording.folding import listed
from stagelens.wording.trust_words import trust_label, trust_word

from .finding import Finding, Rows


def finding(
    every: Sequence[Effects],
    stages: Sequence[str],
    behaviour: str,
    shown: Sequence[StageTrust],
    made: Callable[..., Finding],
) -> Finding:
    """A row for every stored estimate and stage.

    Args:
        every: The estimates, best first.
        stages: Stage names in training order.
        behaviour: Of the effects on which behaviour.
        shown: What is known of the estimate that the report shows.
        made: Makes a finding, of attributes of ``Seen``.
    """
    rows = []
    for effects in every:
        for stage in stages:
            if (trust := effects.trust.get(stage)) is None:
                continue
            agreement = trust.agreement(behaviour)
            rows.append(
                {
                    "estimator": effects.estimator,
                    "stage": stage,
                    "trust": trust_word(trust, behaviour),
                    "r with replay": None if agreement is None else agreement.r,
                    "slope": None if agreement is None else agreement.slope,
                    "error %": None if agreement is None else 100 * agreement.relative_error,
                    "reliable before a replay": trust.reliable,
                    "error up to %": _percent(trust.expected_error),
                    "typically %": _percent(trust.typical_error),
                }
            )
    said = (
        f"{effects.estimator}: "
        + listed([f"{s} {trust_label(t, behaviour)}" for s, t in effects.trust.items()])
        for effects in every
    )
    return made(
        kind="table",
        title=f"What is known of each stage effect on the {behaviour}",
        said=f"{'. '.join(said)}.",
        behaviour=behaviour,
        estimator=", ".join(effects.estimator for effects in every),
        trust=tuple(shown),
        rows=Rows.of(pd.DataFrame(rows)),
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
