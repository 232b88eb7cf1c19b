"""How a stage was trained, in words for people who look at it."""

from __future__ import annotations

from stagelens.runs.run import Stage
from stagelens.runs.schema import StageFile

from .numbers import count_text


def optimizer_words(facts: StageFile) -> list[str]:
    """The optimiser and what goes with it: momentum, weight decay, clipping, mixed precision."""
    if facts.merge is not None:
        return ["no optimiser: merged, not trained"]
    known = facts.optimizer
    group = known.groups[0].hyperparameters if known is not None and known.groups else {}
    words: list[str] = ["optimiser not known" if known is None else known.name]
    if group.get("momentum"):
        words.append(f"momentum {group['momentum']:g}")
    if group.get("weight_decay"):
        words.append(f"weight decay {group['weight_decay']:g}")
    if facts.clip_norm is not None:
        words.append(f"clipped at {facts.clip_norm:g}")
    if facts.precision != "float32":
        words.append(f"{facts.precision} mixed precision")
    return words


def steps_words(stage: Stage) -> str:
    """How many steps a stage has, and whether they were recorded."""
    if stage.facts.merge is not None:
        return "no steps: merged, not trained"
    if stage.facts.origin == "recorded":
        count = stage.facts.processes
        return count_text(stage.steps, "step") + f", in {count} processes" * (count > 1)
    if stage.updates:
        return f"{count_text(stage.updates, 'step')}, none of them recorded"
    return "assembled from checkpoints: no steps recorded"
