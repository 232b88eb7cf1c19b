"""What a replay keeps as it was recorded, although without a stage it would have been otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stagelens.runs.run import Stage

_REFERENCE = re.compile(r"ref(erence)?_.*log_?p", re.IGNORECASE)
"""Names under which batches hold what a reference model made of them."""


def held_fixed(stages: Sequence[Stage]) -> list[str]:
    """What replays of these stages keep, in words; empty where they keep nothing of the kind.

    Training data are not meant, but what a model of the run made: answers that it sampled, and log-
    probabilities of a reference model.
    """
    return [words for stage in stages for words in _of(stage)]


def _of(stage: Stage) -> Iterator[str]:
    facts = stage.facts.objective
    if facts is not None and facts.on_samples:
        yield (
            f"stage {stage.name!r} is replayed on the recorded samples: without an earlier stage "
            "the model would have sampled other answers"
        )
    if facts is not None and facts.references:
        return  # the objective computes them again
    if names := sorted(set(_reference_columns(stage))):
        yield (
            f"the batches of stage {stage.name!r} hold log-probabilities of a reference model "
            f"({', '.join(names)}), which are kept as recorded: without an earlier stage they would "
            "be others, unless the reference is a model from outside the run (record the stage "
            "with an objective that computes them)"
        )


def _reference_columns(stage: Stage) -> Iterator[str]:
    if not stage.replayable:
        return
    for micro in stage.read_steps()[0].batches or ():
        yield from _names(micro.batch)


def _names(batch: Any) -> Iterator[str]:
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            if _REFERENCE.search(str(key)):
                yield str(key)
            yield from _names(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from _names(value)
