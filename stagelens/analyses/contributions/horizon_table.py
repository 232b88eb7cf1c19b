"""How far ahead first order holds, on disk and in words. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.effects.results import BehaviourFacts
from stagelens.estimators.neglected_bounds import (
    Kind,
    Span,
    beyond,
    bound,
    bounds,
    held_sentence,
    kind_of,
    span_of,
)
from stagelens.estimators.stage_trust import AGREES_ERROR
from stagelens.runs import fact_tables
from stagelens.runs.optimizer_kinds import update_of
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .contribution_table import asked_digest

_METHOD = 3
"""Part of every key; raised when what is stored changes."""

SHARE = 0.1
"""Of the stage's training examples, drawn at random: the part that is left out to tell."""

HOLDS_BELOW = AGREES_ERROR
"""First order is of use up to this error, where verified estimates end too."""

COLUMNS = ("horizon", "windows", "first_order", "neglected", "expected_error", "gradients")
"""One row per horizon, the shortest first.

``horizon``: in steps; missing for the last row, the final model. ``windows``: stretches of the
stage that were looked at. ``first_order`` and ``neglected``: their mean effect on the behaviour to
first order, and what to add to it to second order, in the behaviour's unit. ``expected_error``: the
neglected term over the effect with it, root mean squares over the examples asked about and the
windows; missing where no learning rate was above 0. ``gradients``: what the row cost, in gradients
of a step.
"""


class HorizonFacts(BaseModel):
    """What a stored answer says of itself.

    Attributes:
        run_digest: Of the run.
        set_digest: Of the evaluation set.
        stage: Whose training examples.
        count: How many examples of the set were asked about.
        behaviour: Whose.
        share: Of the stage's training examples that are left out.
        left_out: How many examples that is.
        steps: Of the stage.
        later: Steps of the later stages.
        seconds: Wall time.
        task: Of the run; like the following, empty in answers without it.
        optimizers: Stage to the name of its update (``update_of``), of this and all later ones.
        normalised: Those of them that moved the statistics of batch normalisation.
        unlike: What else of them the calibration bench holds no example of, as the trust of
            estimates has it; empty where there is nothing.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    stage: str
    count: int
    behaviour: BehaviourFacts
    share: float
    left_out: int
    steps: int
    later: int
    seconds: float
    task: str = ""
    optimizers: dict[str, str] = {}
    normalised: tuple[str, ...] = ()
    unlike: str = ""

    def strange(self, final: bool = True) -> str:
        """What is unlike the runs that bounds were measured on, as a reason; else empty.

        Args:
            final: Of the effect on the final model, which later stages' steps carry; else of one
                within the stage, to which they do nothing.
        """
        known = bounds()
        if self.task and self.task not in known.tasks:
            return f"the task is {self.task}"
        for stage, optimizer in self.optimizers.items():
            if not final and stage != self.stage:
                continue
            if optimizer not in known.optimizers:
                return f"stage {stage} was trained with {optimizer}"
            if stage in self.normalised:
                return f"stage {stage} trained batch normalisation"
        return self.unlike


@dataclass(frozen=True)
class Horizons:
    """Expected errors of first order, by horizon (:data:`COLUMNS`)."""

    facts: HorizonFacts
    table: pd.DataFrame

    @property
    def whole(self) -> float:
        """The expected error of the effect on the final model."""
        return float(self.table["expected_error"].iloc[-1])

    @property
    def holds(self) -> bool:
        """Whether first order is of use up to the final model."""
        return self.judged(len(self.table) - 1) <= HOLDS_BELOW

    @property
    def promised(self) -> bool:
        """Whether a bound on the error of the effect on the final model is known."""
        return self.bound(len(self.table) - 1) is not None

    @property
    def kind(self) -> Kind:
        """Of what its errors are."""
        return kind_of(self.facts.count)

    def bound(self, place: int) -> float | None:
        """What nine of ten true errors stay within, of one row; None where that is not known."""
        final = self._span(place) == "final"
        if self.facts.strange(final) or self._beyond(place):
            return None
        return bound(self.kind, self._span(place), float(self.table["expected_error"].iloc[place]))

    def unknown(self, place: int) -> str:
        """Why there is no bound, as a reason; empty where there is one."""
        if self.bound(place) is not None:
            return ""
        if strange := self.facts.strange(self._span(place) == "final"):
            return f"bounds are not calibrated for that: {strange}"
        return self._beyond(place) or "no expected errors as large were measured"

    def judged(self, place: int) -> float:
        """The bound of a row; its expected error where none is known."""
        found = self.bound(place)
        return float(self.table["expected_error"].iloc[place]) if found is None else found

    def _span(self, place: int) -> Span:
        final = place == len(self.table) - 1
        return span_of(None if final else int(self.table["horizon"].iloc[place]))

    def _beyond(self, place: int) -> str:
        final = self._span(place) == "final"
        steps = self.facts.steps + self.facts.later
        if not final:
            steps = int(self.table["horizon"].iloc[place])
        return beyond(self.facts.behaviour.name, steps, final, self.facts.share)

    def place(self, horizon: int) -> int:
        """The row of the next horizon that was looked at, from this one on, else of the whole."""
        known = self.table["expected_error"].notna()
        later = np.flatnonzero(known & (self.table["horizon"] >= horizon).fillna(False))
        return int(later[0]) if len(later) else len(self.table) - 1

    def furthest(self) -> int | None:
        """The place of the longest horizon up to which all errors are of use; None for none."""
        found = None
        for place in range(len(self.table) - 1):
            error = self.judged(place)
            if np.isnan(error):  # nothing was moved yet
                continue
            if not error <= HOLDS_BELOW:
                break
            found = place
        return found


def later_text(horizon: int) -> str:
    """``10 steps later``."""
    return "a step later" if horizon == 1 else f"{horizon:,} steps later"


def error_text(error: float) -> str:
    """An error as it is printed."""
    if np.isnan(error):
        return "nothing moved yet"
    if not error < 10:
        return "over 10 times"
    return "less than 1 %" if error < 0.01 else f"about {100 * error:.0f} %"


def _of(error: float) -> str:
    """The same before what it is a part of."""
    text = error_text(error)
    return text if text.startswith("over") else f"{text} of"


def most_text(found: Horizons, place: int) -> str:
    """What nine of ten errors of a row stay within, as it is printed; empty where not known."""
    most = found.bound(place)
    return "" if most is None else error_text(most).removeprefix("about ")


def _at_most(found: Horizons, place: int) -> str:
    """The same, in brackets."""
    most = most_text(found, place)
    if most:
        return f" (nine of ten such errors are at most {most})"
    return f" (how large such errors are at most is not known: {found.unknown(place)})"


def sentence(found: Horizons) -> str:
    """What first order of the whole neglects, and the horizon up to which it is of use."""
    whole, furthest = found.whole, found.furthest()
    said = (
        f"{_without(found.facts)}, first order neglects a second-order term of "
        f"{_of(whole)} the effect on the final model{_at_most(found, len(found.table) - 1)}"
    )
    if found.holds and not found.promised:
        return f"{said}. Whether first order holds here is not known: replay says it of a group."
    if found.holds:
        return f"{said}."
    if furthest is None:
        return f"{said}: first order says nothing here, not even of the next step; use replay."
    row = found.table.iloc[furthest]
    near, most = error_text(float(row["expected_error"])), most_text(found, furthest)
    near = f"{near}, nine of ten at most {most}" if most else near
    later = later_text(int(row["horizon"]))
    return f"{said}: beyond first order. It holds for the effect {later} ({near})."


def within_sentence(found: Horizons, horizon: int) -> str:
    """What first order of a horizon neglects, next to that of the whole."""
    place = found.place(horizon)
    error = float(found.table["expected_error"].iloc[place])
    return (
        f"{_without(found.facts)}, first order neglects a second-order term of "
        f"{_of(error)} the effect {later_text(horizon)}{_at_most(found, place)}, and of "
        f"{_of(found.whole)} that on the final model{_at_most(found, len(found.table) - 1)}."
    )


def promised(found: Horizons) -> str:
    """What is promised, and how often it held elsewhere; empty where nothing is promised."""
    if not any(most_text(found, place) for place in range(len(found.table))):
        return ""
    return held_sentence(found.kind)


def _without(facts: HorizonFacts) -> str:
    return f"Where {100 * facts.share:.0f} % of the examples of {facts.stage} are left out"


def horizons_path(
    run: Run, examples: EvaluationSet, behaviour: str, ids: Sequence[str], stage: str, share: float
) -> Path:
    """Where the answer for these examples is stored, or would be."""
    parts = (_METHOD, run.digest, examples.digest, behaviour, asked_digest(ids), stage, share)
    return run.files.inside(f"results/horizons/{digest(*parts)[:32]}.parquet")


def load_horizons(
    run: Run,
    examples: EvaluationSet,
    behaviour: str,
    ids: Sequence[str],
    stage: Stage,
    share: float = SHARE,
) -> Horizons | None:
    """A stored answer; None where there is none that can be used."""
    path = horizons_path(run, examples, behaviour, ids, stage.name, share)
    found = fact_tables.read(path, HorizonFacts, COLUMNS)
    if found is None:
        return None
    facts, table = found
    # A file that was copied to this name is not believed.
    own = (facts.run_digest, facts.set_digest, facts.behaviour.name, facts.stage, facts.count)
    if own != (run.digest, examples.digest, behaviour, stage.name, len(ids)):
        return None
    # Stored by the optimiser's name in earlier versions.
    updates = {each.name: update_of(each.optimizer) for each in run.stages[stage.index :]}
    known = {name: updates.get(name, update) for name, update in facts.optimizers.items()}
    return Horizons(facts.model_copy(update={"optimizers": known}), table)
