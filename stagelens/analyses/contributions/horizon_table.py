"""How far ahead first order holds, on disk and in words. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.effects.results import BehaviourFacts
from stagelens.estimators.stage_trust import AGREES_ERROR
from stagelens.runs import fact_tables
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .contribution_table import asked_digest

_METHOD = 2
"""Part of every key; raised when what is stored changes."""

SHARE = 0.1
"""Of the stage's training examples, drawn at random: the part that is left out to tell."""

HOLDS_BELOW = AGREES_ERROR
"""First order is of use up to this expected error, where verified estimates end too."""

NINE_OF_TEN = 1.5
"""Nine of ten true errors are at most this many times the expected one; see
``tests/benchmarks/neglected.py``."""

COLUMNS = ("horizon", "windows", "first_order", "neglected", "expected_error", "gradients")
"""One row per horizon, the shortest first.

``horizon``: in steps; missing for the last row, the final model. ``windows``: stretches of the
stage that were looked at. ``first_order`` and ``neglected``: their mean effect on the behaviour to
first order, and what to add to it to second order, in the behaviour's unit. ``expected_error``: the
neglected term over the effect with it, root mean squares over the examples asked about and the
windows. ``gradients``: what the row cost, in gradients of a step.
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
        return self.whole <= HOLDS_BELOW

    def at(self, horizon: int) -> float:
        """The expected error of the next horizon that was looked at, from this one on."""
        later = self.table[self.table["horizon"] >= horizon]
        return float(later["expected_error"].iloc[0]) if len(later) else self.whole

    def furthest(self) -> int | None:
        """The longest horizon up to which all expected errors are of use; None for none."""
        found = None
        for row in self.table.dropna(subset="horizon").itertuples():
            if not float(row.expected_error) <= HOLDS_BELOW:
                break
            found = int(row.horizon)
        return found


def later_text(horizon: int) -> str:
    """``10 steps later``."""
    return "a step later" if horizon == 1 else f"{horizon:,} steps later"


def error_text(error: float) -> str:
    """An expected error as it is printed."""
    if not error < 10:  # NaN too
        return "over 10 times"
    return "less than 1 %" if error < 0.01 else f"about {100 * error:.0f} %"


def _of(error: float) -> str:
    """The same before what it is a part of."""
    text = error_text(error)
    return text if text.startswith("over") else f"{text} of"


def sentence(found: Horizons) -> str:
    """What first order of the whole neglects, and the horizon up to which it is of use."""
    whole, furthest = found.whole, found.furthest()
    said = (
        f"{_without(found.facts)}, first order neglects a second-order term of "
        f"{_of(whole)} the effect on the final model"
    )
    if found.holds:
        return f"{said}."
    if furthest is None:
        return f"{said}: first order says nothing here, not even of the next step; use replay."
    near = error_text(found.at(furthest))
    return f"{said}: beyond first order. It holds for the effect {later_text(furthest)} ({near})."


def within_sentence(found: Horizons, horizon: int) -> str:
    """What first order of a horizon neglects, next to that of the whole."""
    return (
        f"{_without(found.facts)}, first order neglects a second-order term of "
        f"{_of(found.at(horizon))} the effect {later_text(horizon)}, and of "
        f"{_of(found.whole)} that on the final model."
    )


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
    return Horizons(facts, table)
