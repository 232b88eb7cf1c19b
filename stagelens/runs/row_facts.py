"""What a stage says of the data set whose rows stand for its batches; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from stagelens.contracts import RunError

from .boundary_facts import STRICT


class RowFacts(BaseModel):
    """The data set of a stage, as it was when its rows were recorded.

    It serves to find the right one again. That batches are those of the training is proven by the
    hash of each, which the run digest covers, and not by this.

    Attributes:
        fingerprint: sha256 of the batches that up to 32 rows make one by one, from the first to the
            last at equal distances; empty where they make none. Unlike the fingerprint of a
            ``datasets.Dataset``, it stays the same when that is saved, or mapped once more.
        rows: How many it had.
        collator: What made a batch of rows, by name.
    """

    model_config = STRICT
    fingerprint: str
    rows: int = Field(ge=0)
    collator: str


def no_data_set(stage: str, facts: RowFacts | None) -> str:
    """That a stage's data set has to be given again, and how.

    Returns:
        Words without a full stop; empty where the stage keeps its batches itself.
    """
    if facts is None:
        return ""
    return (
        f"the batches of stage {stage!r} are kept as rows of a data set that was not given "
        f"({facts.rows:,} rows, collated by {facts.collator}); {_how_to_give(stage)}"
    )


def told_no_data_set(stage: str, reason: str) -> bool:
    """Whether a refusal says, as :func:`no_data_set` does, that its data set is missing."""
    return _how_to_give(stage) in reason


def _how_to_give(stage: str) -> str:
    return (
        f"give it, or its DataLoader: open_run(path, datasets={{{stage!r}: dataset}}) or "
        f"--dataset {stage}=package.module:name (or, of a saved one, --dataset {stage}=FOLDER)"
    )


def check_datasets(run: str, given: Mapping[str, Any], stages: Sequence[str]) -> None:
    """Refuse data sets that are given for a stage which does not exist.

    Raises:
        RunError: One is; lists the stages.
    """
    for name in given:
        if name not in stages:
            listed = ", ".join(map(repr, stages)) or "none"
            raise RunError(
                f"run {run!r} has no stage {name!r} to give a data set for; it has {listed}"
            )
