"""What a stage minimised, in words for people who look at it."""

from __future__ import annotations

from stagelens.runs.schema import StageFile


def objective_lines(facts: StageFile) -> list[str]:
    """Objective, reference models and what is held fixed; no line for the model's own loss."""
    if (objective := facts.objective) is None:
        return []
    lines = [f"objective: {objective.title}{', a loss of your own' if objective.own else ''}"]
    lines += [f"{name} model: {found.said}" for name, found in objective.references.items()]
    if objective.on_samples:
        lines.append("trained on sampled answers, which replays keep as recorded")
    return lines
