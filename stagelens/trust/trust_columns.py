"""What is known of effects as columns of a table, for files that leave the run."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.trust_words import trust_word

TRUST_COLUMNS = ("trust", "reliable", "expected_error")
"""The word; whether the estimate could be relied on before any replay, null where that is not said;
and the relative error that nine of ten such estimates stay within, null where it is not known."""


def with_trust(
    table: pd.DataFrame, trust: Mapping[str, StageTrust], behaviour: str | None = None
) -> pd.DataFrame:
    """A table of effects with :data:`TRUST_COLUMNS` added at its end.

    Args:
        table: With ``stage`` and, where ``behaviour`` is None, ``behaviour``.
        trust: Stage to what is known of its effects; other stages get nulls.
        behaviour: What all rows are about.
    """
    stages = table["stage"].astype(object)
    named = table["behaviour"].astype(object) if behaviour is None else [behaviour] * len(table)
    words = {
        (stage, name): trust_word(known, name)
        for stage, known in trust.items()
        for name in set(named)
    }
    reliable = {stage: known.reliable for stage, known in trust.items()}
    errors = {stage: known.expected_error for stage, known in trust.items()}
    return table.assign(
        trust=[words.get(each) for each in zip(stages, named, strict=True)],
        reliable=stages.map(reliable).astype("boolean"),
        expected_error=stages.map(errors).astype(float),
    )
