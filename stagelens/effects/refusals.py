"""Whether what was refused before still is. Nothing here imports torch."""

from __future__ import annotations

from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.objectives import told_missing
from stagelens.runs.optimizer_kinds import was_absent
from stagelens.runs.row_facts import told_no_data_set
from stagelens.runs.run import Run, Stage


def stands(run: Run, known: StageTrust) -> bool:
    """Whether a stored refusal still is one: not if what was missing then is here now."""
    return known.trust != "refused" or not any(_is_here(s, known.reason) for s in run.stages)


def _is_here(stage: Stage, reason: str) -> bool:
    """Whether a refusal is for want of something that can be had now.

    A stage's optimiser, its objective, or the data set that its batches are rows of.
    """
    optimizer = stage.facts.optimizer
    if optimizer is not None and was_absent(optimizer, reason):
        return True
    told = told_missing(stage.name, reason) or told_no_data_set(stage.name, reason)
    return told and not stage.no_replay
