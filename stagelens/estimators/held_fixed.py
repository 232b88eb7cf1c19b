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

    Not the training data are meant, but what a model of the run made of them: log-probabilities of
    a reference model, and initial values of adapters. Sampled answers are told by
    ``StageTrust.on_samples``.
    """
    held = []
    for stage in stages:
        starts = [start for each in stage.facts.boundary.started.values() for start in each]
        if kept := [start.term for start in starts if start.kind == "kept"]:
            held.append(
                f"the adapter of stage {stage.name!r} began with values that were computed from "
                f"the model before it, at random or from data ({kept[0].a}), which are kept as "
                "recorded, with their product taken out of the weights beneath: without an earlier "
                'stage they would be others (init_lora_weights="pissa" or "olora" can be repeated)'
            )
        facts = stage.facts.objective
        if facts is not None and facts.references:
            continue  # the objective computes them again
        if names := sorted(set(_reference_columns(stage))):
            held.append(
                f"the batches of stage {stage.name!r} hold log-probabilities of a reference model "
                f"({', '.join(names)}), which are kept as recorded: without an earlier stage they "
                "would be others, unless the reference is a model from outside the run (record the "
                "stage with an objective that computes them)"
            )
    return held


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
