"""A run in which one stage is taken as two: its first steps, and those after.

Nothing of the recording changes. Between the two parts lies a boundary at which weights and the
optimiser's state are carried on, as they are from step to step within a stage; what either part
does by itself then follows from the rules that hold for stages. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stagelens.contracts import Refused, StageLensError

from .boundary_facts import Boundary
from .run import Run, Stage
from .schema import StageFile, StateRef
from .steps import RecordedSteps


@dataclass(frozen=True)
class Cut:
    """Where a stage is taken as two.

    Attributes:
        stage: Its name.
        step: How many of its steps are the first part.
    """

    stage: str
    step: int


class PartOfStage(Stage):
    """Some steps of a stage, as a stage of their own.

    Args:
        whole: The recorded stage.
        facts: As of the whole, but for what is the part's own.
        between: Which of its steps these are, from 0.
    """

    def __init__(self, whole: Stage, facts: StageFile, between: range) -> None:
        given = (whole.index, whole.previous, whole._given, whole.rows)
        super().__init__(whole._files, facts, *given)
        self._between = between

    @property
    def steps(self) -> int:
        """How many optimiser steps the part has."""
        return len(self._between)

    def table(self) -> pd.DataFrame:
        """One row per step of the part, with the numbers that they have in the whole stage."""
        rows = super().table()
        return rows[rows["step"].isin(self._between)].reset_index(drop=True)

    def read_steps(self) -> RecordedSteps:
        """The part's recorded steps, by number within the part."""
        return RecordedSteps(self._files, self.facts.parts_of_each, self._between, self.rows)


def names_of_parts(cut: Cut, steps: int) -> tuple[str, str]:
    """What the two parts of a stage of so many steps are called."""
    spans = (1, cut.step), (cut.step + 1, steps)
    first, second = (
        f"step {low:,}" if low == high else f"steps {low:,} to {high:,}" for low, high in spans
    )
    return f"{cut.stage} ({first})", f"{cut.stage} ({second})"


def check_cut(stage: Stage, step: int) -> None:
    """Refuse what cannot be taken as two.

    Raises:
        StageLensError: There is no such step, or nothing on one side of it.
        Refused: What the stage ends at, or was trained on, depends on all of its steps.
    """
    if not 0 < step < stage.steps:
        if stage.steps < 2:
            raise StageLensError(
                f"stage {stage.name!r} has {stage.steps} recorded steps, so it cannot be taken as "
                "two; choose another stage"
            )
        raise StageLensError(
            f"stage {stage.name!r} has {stage.steps} steps, so it can be taken as two after one of "
            f"the steps 1 to {stage.steps - 1}, and not after step {step}"
        )
    facts = stage.facts
    why = ""
    if facts.average is not None:
        why = "it ends at an average of weights over its steps"
    elif facts.end_calls:
        why = "its optimiser turns its weights into others at its end"
    elif facts.objective is not None and facts.objective.moves_references:
        why = "a reference model follows the trained one from step to step"
    if why:
        raise Refused(f"stage {stage.name!r} cannot be taken as two, because {why}")


def cut_run(run: Run, cut: Cut, middle: StateRef) -> Run:
    """The run with a stage taken as two; it shares the folder, and has a digest of its own.

    Args:
        run: The run as recorded.
        cut: Where.
        middle: The training state between the two parts.

    Raises:
        StageLensError: The stage cannot be taken as two there.
    """
    whole = run.stage(cut.stage)
    check_cut(whole, cut.step)
    first, second = names_of_parts(cut, whole.steps)
    made = copy(run)
    for name in ("digest", "recording"):  # they are those of the whole stages
        made.__dict__.pop(name, None)
    made.stages = []
    for stage in run.stages:
        parts = _parts(stage, cut, middle) if stage is whole else [copy(stage)]
        for part in parts:
            part.index = len(made.stages)
            part.previous = made.stages[-1] if made.stages else None
            if part.previous is not None:
                part.previous.following = part
            part.facts = _referring(part.facts, stage.name, {"start": first, "end": second}, cut)
            made.stages.append(part)
    return made


def _parts(whole: Stage, cut: Cut, middle: StateRef) -> list[Stage]:
    facts, steps = whole.facts, whole.steps
    kept: dict[str, Any] = {"checkpoints": [], "history": None, "updates": None}
    groups = [] if facts.optimizer is None else facts.optimizer.groups
    carried = [name for group in groups for name in group.parameters]
    within = Boundary(optimizer="carried", carried=carried, frozen=facts.boundary.frozen)
    found: list[Stage] = []
    spans: tuple[tuple[range, dict[str, Any]], ...] = (
        (range(cut.step), {"end": middle, "end_optimizer": None}),
        (range(cut.step, steps), {"start": middle, "boundary": within}),
    )
    for name, (span, own) in zip(names_of_parts(cut, steps), spans, strict=True):
        seconds = None if facts.seconds is None else facts.seconds * len(span) / steps
        update = {**kept, **own, "name": name, "steps": len(span), "seconds": seconds}
        found.append(PartOfStage(whole, facts.model_copy(update=update), span))
    return found


def _referring(facts: StageFile, whole: str, names: Mapping[str, str], cut: Cut) -> StageFile:
    """Facts whose reference models are at the ends of the two parts, where the cut stage's were."""
    objective = facts.objective
    if objective is None:
        return facts
    references = {
        name: one.model_copy(update={"stage": names[one.kind]})
        if one.kind in names and (one.stage or whole) == cut.stage
        else one
        for name, one in objective.references.items()
    }
    return facts.model_copy(
        update={"objective": objective.model_copy(update={"references": references})}
    )
