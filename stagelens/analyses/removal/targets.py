"""A gap to close, as a person names it; what the search found for it is kept in the run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from stagelens.analyses.slices.saved import column_key, examples_of
from stagelens.contracts import Progress, RunError, SetError, StageLensError
from stagelens.estimators.registry import method_of
from stagelens.runs.files import read_json, write_json
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .measurements import FOLDER
from .parts import validation_part
from .spec import Edit

if TYPE_CHECKING:
    from stagelens.contracts import ProgressCallback

TOLERANCE = 0.02
"""Share of right answers that the control group may lose, unless another is given."""


class Target(BaseModel):
    """Close the gap between a group and a control group by taking parts of stages out.

    Attributes:
        estimator: How the counterfactuals are obtained.
        settings: Its own arguments.
        stages: Those that may be taken out.
        by: Column of the groups.
        group: The group that the model serves worse, as text.
        control: The group that is to be served no worse; None for all other examples.
        tolerance: Share of right answers that the control group may lose.
    """

    model_config = ConfigDict(frozen=True)

    estimator: str
    settings: dict[str, Any] = {}
    stages: list[str]
    by: str
    group: str
    control: str | None = None
    tolerance: float = TOLERANCE


class Found(BaseModel):
    """What the search found; all figures are those of the validation part.

    Attributes:
        target: What was asked.
        run_digest: Of the run.
        set_digest: Of the evaluation set.
        edit: What was found; without strengths where nothing keeps the tolerance.
        closed: Whether it closes the gap.
        gap_before: Accuracy of the control group, at the group's own mix of labels, minus that of
            the group.
        gap_after: The same after the edit.
        drop: Share of right answers that the control group loses.
        size: Norm of the edit over the norm of taking the stages out as a whole.
        tried: How many edits were measured.
        examples: How many examples they were measured on.
    """

    model_config = ConfigDict(frozen=True)

    target: Target
    run_digest: str
    set_digest: str
    edit: Edit
    closed: bool
    gap_before: float
    gap_after: float
    drop: float
    size: float
    tried: int
    examples: int

    def sentence(self) -> str:
        """What was found, in words."""
        group, control = self.target.group, self.target.control or "all others"
        values = (self.gap_before, self.gap_after, abs(self.drop))
        before, after, drop = (f"{100 * value:.1f}".replace("-", "−") for value in values)
        if not self.edit.strengths:
            return (
                f"Nothing that was tried closes any of the gap of {before} points between "
                f"{control} and {group} at the allowed price."
            )
        outcome = "closes" if self.closed else "narrows, but does not close,"
        price = f"loses {drop}" if self.drop > 0 else f"gains {drop}"
        return (
            f"The edit {outcome} the gap between {control} and {group}: {before} points "
            f"before, {after} after, at {group}'s own mix of labels. {control} {price} "
            f"points of accuracy. It changes the weights {self.size:.0%} as much as taking the "
            f"stages out entirely. Found on the validation part ({self.examples:,} examples)."
        )


def groups_of(table: pd.DataFrame, by: str) -> pd.Series:
    """The group of every example, as text; null where it has none.

    Raises:
        SetError: There is no such column.
    """
    if by not in table:
        raise SetError(
            f"there is no column {by!r} to make groups of; choose one of "
            f"{', '.join(name for name in table if name != 'example_id')}"
        )
    return table[by].astype(object).map(str, na_action="ignore")


def _path(run: Run, examples: EvaluationSet, target: Target) -> str:
    groups = column_key(run, examples, target.by)
    what = (run.digest, examples.digest, target.model_dump(), *groups)
    key = digest(method_of(target.estimator), "target", *what)[:32]
    return f"{FOLDER}/{key}.json"


def load_found(run: Run, examples: EvaluationSet, target: Target) -> Found | None:
    """What was found before; None where nothing is stored that can be used."""
    try:
        found = read_json(run.files.inside(_path(run, examples, target)), Found)
    except (RunError, ValidationError):
        return None
    same = (found.run_digest, found.set_digest) == (run.digest, examples.digest)
    return found if same and found.target == target else None


def find(
    run: Run, examples: EvaluationSet, target: Target, progress: ProgressCallback | None = None
) -> Found:
    """The smallest edit that closes a gap; from the run folder where it was found before.

    Args:
        run: The run.
        examples: One of its evaluation sets, with labels.
        target: What to close, and at which price.
        progress: Called for counterfactuals (half of it) and for the search.

    Raises:
        SetError: A column or group is not there.
        Refused: An estimator cannot give a stage, or a group has no labelled examples.
        StageLensError: The tolerance is not between 0 and 1.
    """
    before = load_found(run, examples, target)
    if before is not None:
        return before
    if not 0 <= target.tolerance <= 1:
        raise StageLensError(
            f"a tolerance of {target.tolerance:g} is not between 0 and 1; it is the share of "
            "right answers that the control group may lose, for instance 0.02"
        )
    table = examples_of(run, examples)
    groups = groups_of(table, target.by)
    names = sorted(groups.dropna().unique())
    for name in filter(None, (target.group, target.control)):
        if name not in names:
            listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            raise SetError(f"{target.by} has no group {name!r}; choose one of {listed}")
    group = (groups == target.group).to_numpy()
    control = (groups == target.control).to_numpy() if target.control else ~group
    validation = validation_part(table, [target.by])

    from .edits import material
    from .targeted import Goal, search

    overall = Progress(progress)
    own = material(run, target.estimator, target.settings, target.stages, overall.part(0.0, 0.5))
    labels = table["label"].astype(object).to_numpy()
    best = search(
        run,
        examples,
        own,
        target.stages,
        Goal(group, control, labels, target.tolerance),
        validation,
        overall.part(0.5, 1.0),
    )
    strengths, layers = best.by_layer()
    edit = Edit(
        estimator=target.estimator, settings=target.settings, strengths=strengths, layers=layers
    )
    found = Found(
        target=target,
        run_digest=run.digest,
        set_digest=examples.digest,
        edit=edit,
        closed=best.closed,
        gap_before=best.before.gap,
        gap_after=best.chosen.gap,
        drop=best.before.control - best.chosen.control,
        size=best.chosen.size,
        tried=best.tried,
        examples=int(np.count_nonzero(validation & (group | control))),
    )
    write_json(run.files.inside(_path(run, examples, target)), found)
    return found
