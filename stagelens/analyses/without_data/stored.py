"""Effects of training examples on disk: one table per question, which describes itself.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import Behaviour
from stagelens.effects.results import EFFECT_COLUMNS, BehaviourFacts
from stagelens.estimators.registry import method_of
from stagelens.estimators.stage_trust import REPLAY, StageTrust
from stagelens.estimators.without_rows import LeftOutRows
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.training_rows import TrainingRows

from .chosen import Chosen, Divisor

_METHOD = 1
"""Part of every key; raised when what leaving out means changes."""
_FOLDER = "results/without-data"


class WithoutDataFacts(BaseModel):
    """What a stored table says of itself.

    Attributes:
        run_digest: Of the run.
        set_name: Of the evaluation set.
        set_digest: The same.
        stage: Whose training examples are left out.
        ids: Which.
        words: Which they were when it was asked first; see :class:`Chosen`.
        divisor: See :class:`LeftOutRows`.
        estimator: How the model without them was obtained.
        settings: Of the estimator.
        behaviours: Of the table.
        trust: What is known of that model; ``stage`` is the stage's name.
        examples: How many training examples the stage has.
        uses: How many uses of them are gone.
        all_uses: How many there were.
        changed: How many steps lack an example.
        skipped: How many of these have none left, and are not taken.
        steps: Of the stage.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_name: str
    set_digest: str
    stage: str
    ids: tuple[str, ...]
    words: str = ""
    divisor: Divisor
    estimator: str
    settings: dict[str, Any] = {}
    behaviours: list[BehaviourFacts]
    trust: StageTrust
    examples: int
    uses: int
    all_uses: int
    changed: int
    skipped: int
    steps: int


@dataclass(frozen=True)
class WithoutData:
    """Effects of training examples: rows as an effect table has them, and what is known of them.

    ``effect`` is final - without, as everywhere; ``stage`` is the stage whose examples are left
    out.
    """

    facts: WithoutDataFacts
    table: pd.DataFrame

    @property
    def behaviours(self) -> dict[str, Behaviour]:
        """Behaviours of the table by name."""
        return {one.name: one.behaviour() for one in self.facts.behaviours}

    @property
    def chosen(self) -> Chosen:
        """The examples that are left out."""
        return Chosen(self.facts.stage, self.facts.ids, self.facts.words)


def without_data_path(
    run: Run,
    examples: EvaluationSet,
    rows: LeftOutRows,
    estimator: str = REPLAY,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Where the effects are stored, or would be.

    Args:
        run: The run.
        examples: The evaluation set.
        rows: What is left out.
        estimator: How the model without them is obtained.
        settings: Of the estimator.
    """
    parts = (method_of(estimator), run.digest, examples.digest, rows.stage, rows.settings_in(run))
    key = digest(_METHOD, *parts, estimator, dict(settings or {}))[:32]
    return run.files.inside(f"{_FOLDER}/{key}.parquet")


def _as_asked(run: Run, examples: EvaluationSet, path: Path, facts: WithoutDataFacts) -> bool:
    """Whether a file is where its facts belong: not one that was copied, or has grown old."""
    if (facts.run_digest, facts.set_digest) != (run.digest, examples.digest):
        return False
    if facts.stage not in [stage.name for stage in run.stages]:
        return False
    rows = LeftOutRows(facts.stage, facts.ids, facts.divisor)
    return path == without_data_path(run, examples, rows, facts.estimator, facts.settings)


def load_without_data(
    run: Run,
    examples: EvaluationSet,
    rows: LeftOutRows,
    estimator: str = REPLAY,
    settings: Mapping[str, Any] | None = None,
) -> WithoutData | None:
    """Stored effects; None where there are none that can be used. See :func:`without_data_path`."""
    path = without_data_path(run, examples, rows, estimator, settings)
    return read_without_data(run, examples, path)


def read_without_data(run: Run, examples: EvaluationSet, path: Path) -> WithoutData | None:
    """Effects in a file; None where they cannot be used, or are not of what its name says."""
    found = fact_tables.read(path, WithoutDataFacts, EFFECT_COLUMNS)
    if found is None or not _as_asked(run, examples, path, found[0]):
        return None
    return WithoutData(*found)


def stored_without_data(run: Run, examples: EvaluationSet) -> dict[Path, WithoutDataFacts]:
    """File to facts of what is stored of a set, by this recording, the latest first.

    Without what earlier versions stored, of which no question is answered any more.
    """
    every = fact_tables.facts_of_all(run.files.inside(_FOLDER), "*.parquet", WithoutDataFacts)
    return {file: facts for file, facts in every.items() if _as_asked(run, examples, file, facts)}


@dataclass(frozen=True)
class Counts:
    """What leaving out examples takes away; see :class:`WithoutDataFacts`."""

    examples: int
    uses: int
    all_uses: int
    changed: int
    skipped: int
    steps: int


def counts(rows: TrainingRows, chosen: Chosen, steps: int) -> Counts:
    """What leaving these examples out takes away.

    Args:
        rows: All examples of the stage.
        chosen: Those that are left out.
        steps: Of the stage.
    """
    gone = {step: len(places) for step, places in rows.places(chosen.ids).items()}
    sizes = rows.table["steps"].explode().value_counts()
    return Counts(
        examples=len(rows),
        uses=sum(gone.values()),
        all_uses=int(rows.table["uses"].sum()),
        changed=len(gone),
        skipped=sum(count == sizes[step] for step, count in gone.items()),
        steps=steps,
    )
