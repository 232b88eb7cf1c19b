"""What training examples say, for people who search or export them."""

from __future__ import annotations

import json

import pandas as pd
import pyarrow.parquet as pq

from stagelens.runs import fact_tables
from stagelens.runs.run import Run

from .tables import LookFacts, looks_path


def texts_in(shown: bytes | None) -> dict[str, str]:
    """Field to text of what a training example is shown as; none of an image."""
    if shown is None or shown.startswith(b"\x89PNG"):
        return {}
    return {field: str(text) for field, text in json.loads(shown).items()}


def texts(run: Run, stage: str) -> pd.Series | None:
    """What every training example of a stage says, a line per text; None where they are no texts.

    Args:
        run: The run.
        stage: One of its stages.
    """
    path = looks_path(run, stage)
    facts = fact_tables.facts_of(path, LookFacts)
    if facts is None or facts.kind != "text":
        return None
    shown = pq.read_table(path, columns=["shown"])["shown"].to_pylist()
    # In arrow: a hundred thousand texts as objects of Python take several times the memory.
    return pd.Series(["\n".join(texts_in(one).values()) for one in shown], dtype="str")
