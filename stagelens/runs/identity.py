"""What the run digest covers of a stage beside its steps."""

from __future__ import annotations

from typing import Any

from .schema import StageFile

# The recorded training, not how long it took, how people describe it, or which file holds it.
# Change it, and stored results are lost.
_DIGESTED: Any = {
    "name": True,
    "optimizer": {"name", "groups", "flags"},
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
    "average": True,
    "zeroed": True,
    "end_calls": True,
    "optimizer": {"members"},
    "boundary": {
        *(
            "grown",
            "averaged",
            "trimmed",
            "casts",
            "calls",
            "adapters",
            "renamed",
            "merged",
            "started",
            "unpacked",
            "packed",
            "problem",
        ),
    },
    "start": _STATE,
    "end": _STATE,
    "objective": True,
    "reference_states": {"__all__": {"model": {"sha256"}, **_STATE}},
    "embedding_noise": True,
    "kernels": True,
    "parallel": {"kind", "count"},
}


def stage_identity(facts: StageFile) -> dict[str, Any]:
    """What distinguishes one recorded stage from another, beside its steps."""
    said = facts.model_dump(mode="json", include=_DIGESTED_IF_SAID, exclude_defaults=True)
    said = {name: value for name, value in said.items() if value}
    own = facts.model_dump(mode="json", include=_DIGESTED)
    return {**own, "also": said} if said else own
