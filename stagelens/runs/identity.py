"""What belongs to a stage: what the run digest covers of it, and its files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .schema import FileRef, StageFile

# The recorded training, not how long it took, how people describe it, or which file holds it.
# Change it, and stored results are lost.
_DIGESTED: Any = {
    "name": True,
    "optimizer": True,
    "boundary": {"optimizer", "carried", "new", "removed", "frozen"},
    "trainable": True,
    "evaluation_mode": True,
    "clip_norm": True,
    "accumulation": True,
    "precision": True,
    "build_config": True,
    "start": {"model": {"sha256"}, "optimizer": {"sha256"}},
    "end": {"model": {"sha256"}, "optimizer": {"sha256"}},
}
# Left out where they have their defaults, so that digests of runs without them do not change.
_STATE: Any = {"more": {"__all__": {"sha256"}}, "fixed": {"sha256"}, "names": True}
_DIGESTED_IF_SAID: Any = {
    "origin": True,
    "boundary": {"grown", "adapters", "renamed", "merged"},
    "start": _STATE,
    "end": _STATE,
}


def stage_identity(facts: StageFile) -> dict[str, Any]:
    """What distinguishes one recorded stage from another, beside its steps."""
    said = facts.model_dump(mode="json", include=_DIGESTED_IF_SAID, exclude_defaults=True)
    said = {name: value for name, value in said.items() if value}
    own = facts.model_dump(mode="json", include=_DIGESTED)
    return {**own, "also": said} if said else own


def files_of(facts: StageFile) -> Iterator[FileRef]:
    """Every file that a stage's description names."""
    for state in (facts.start, facts.end, *(each.state for each in facts.checkpoints)):
        yield from state.files if state is not None else ()
    for part in facts.parts:
        yield part.table
        if part.batches is not None:
            yield part.batches
    yield from facts.beside.values()
    if facts.history is not None:
        yield facts.history
