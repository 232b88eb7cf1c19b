"""What happened before a stage, and how it ends, in words for people who look at it."""

from __future__ import annotations

from collections.abc import Collection

from stagelens.runs.schema import StageFile

from .numbers import count_text

_STARTS = {
    "pissa": "the adapter began at the weights' largest singular values (PiSSA)",
    "olora": "the adapter began at the weights' QR decomposition (OLoRA)",
    "kept": "the adapter's first values are kept as recorded, whatever the weights beneath",
}
"""By ``AdapterStart.kind``."""


def hand_over_lines(facts: StageFile, before: StageFile | None) -> list[str]:
    """One line per operation at the boundary that a stage begins with.

    Args:
        facts: The stage's.
        before: Those of the stage before; None for the first.
    """
    boundary, config = facts.boundary, facts.build_config or {}
    lines = [f"LoRA adapter {how} before it" for how in boundary.adapters]
    starts = [start for many in boundary.started.values() for start in many]
    if any(start.term.magnitude for start in starts):
        lines.append("DoRA's magnitudes began at the norms of the weights")
    kinds = {start.kind for start in starts}
    lines += [words for kind, words in _STARTS.items() if kind in kinds]
    merged = [len(term.terms) for term in boundary.merged.values()]
    if merged and max(merged) > 1:
        lines.append(f"{max(merged)} adapters merged one after another")
    if boundary.packed:
        again = " again" if boundary.unpacked else ""
        lines.append(f"weights packed into 4 bits{again} before it")
    elif boundary.unpacked:
        lines.append("weights unpacked from 4 bits before it")
    casts = sorted({" and then ".join(dtypes) for dtypes in boundary.casts.values()})
    lines += [f"weights cast to {dtypes} before it" for dtypes in casts]
    if boundary.grown:
        mean = ", at the mean of the others" if boundary.averaged else ""
        lines.append(f"rows added to {_some(boundary.grown)} before it{mean}")
    if boundary.trimmed:
        lines.append(f"rows cut off {_some(boundary.trimmed)} before it")
    if before is not None and boundary.new and not boundary.adapters:
        lines.append(f"new before it: {_some(boundary.new)}")
    if "attention" in config:
        lines.append(f"attention: {config['attention']}")
    if facts.tokenizer is not None:
        if added := facts.tokenizer.added:
            lines.append(f"its tokenizer has {count_text(len(added), 'token')} of its own")
        earlier = None if before is None else before.tokenizer
        if earlier is not None and earlier.chat_template != facts.tokenizer.chat_template:
            lines.append("another chat template than the stage before")
    if boundary.problem is not None:
        lines.append(f"not known how it follows the stage before: {boundary.problem}")
    return lines


def end_lines(facts: StageFile) -> list[str]:
    """How a stage ends, where that is not simply its last step."""
    if (average := facts.average) is not None:
        how = "the mean" if average.decay is None else f"a moving average ({average.decay:g})"
        return [f"ended with {how} of its weights; without an earlier stage they are averaged anew"]
    if (best := facts.best_model) is None:
        return []
    where = f"ended at the best of {count_text(best.trained, 'step')}"
    kept = "without an earlier stage it still ends at that step"
    return [f"{where}, by {best.metric} ({best.value:.3g}); {kept}"]


def _some(names: Collection[str]) -> str:
    first, *others = names
    return f"{first} and {len(others)} more" if others else first
