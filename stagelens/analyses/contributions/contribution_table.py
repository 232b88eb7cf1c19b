"""Contributions on disk: one file per question, which describes itself. Nothing imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import SetError
from stagelens.derivatives.curvature_kinds import USUAL, Curvature, key_of
from stagelens.effects.results import BehaviourFacts
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.training_rows import rest_key
from stagelens.tasks import traits

_CONTRIBUTIONS = 3
"""Part of every key; raised when the sweep, or what is kept of it, changes."""
_OF_PLAIN_LOSSES = 1
"""The same for runs of built-in tasks that name no objective: what changed since is of others."""

SHOWN = 20
"""Training examples per stage, at either end of the ranking, whose content is kept."""

_LEFT_OPEN = 0.5
"""Part of a stage effect; where first order leaves more than this unexplained, it is said."""

COLUMNS = {
    # pandas' nullable types, because every part leaves some columns out.
    "part": "string",
    "stage": "string",
    "step": "Int64",
    "value": "float64",
    "answer": "string",
    "position": "Int64",
    "uses": "Int64",
    "label": "string",
    "other_labels": "string",
    "before": "string",
    "content": "object",
    "slope": "float64",
    "steps": "object",
    "slopes": "object",
    "micros": "object",
    "counts": "object",
    "kind": "string",
    "terms": "float64",
    "share": "float64",
    "denominator": "Int64",
}
"""One table for all parts; columns that a part does not use are missing values.

``observed``: ``value`` of the behaviour after ``step`` steps of the stage (0: before the first
stage), the mean over the examples asked about; and the ``answer`` if it is a single one.
``step``: ``value`` is the step's contribution.
``carried``: ``value`` is what ``contracts.CARRIED`` added up to over the stage.
``example``: one training example of the stage. ``value`` is its contribution over all its
``uses``, the first of them at ``step`` and ``position``; its recorded ``label``; the
``other_labels`` that the same input has in this stage; where it has a label, the ``answer`` of the
final model and that of the model ``before`` the stage; and, of those that contributed most, the
``content``: the bytes of a PNG, or texts as JSON. ``steps`` and ``slopes`` list, per use, its step
and the derivative of the behaviour in the weight of the example's loss there, the divisor kept;
``slope`` is their sum. ``micros`` and ``counts`` list the micro-batch of the step, and how many
terms of its loss the example has.
``batch``: one micro-batch, by its number in the ``step`` as ``position``: the ``kind`` of its loss
(see :class:`stagelens.replaying.batch_parts.Cut`), how many ``terms`` that counts, its ``share``
(1 over what it is divided by), the number of its ``denominator`` in the step (see
:func:`stagelens.replaying.batch_parts.denominators`), and as ``slope`` the sum over its examples.
Not of stages in :attr:`ContributionFacts.no_rest`.
"""
_LATER = ("slope", "steps", "slopes", "micros", "counts", "kind", "terms", "share", "denominator")
"""Columns that answers of earlier versions lack; they are missing values there."""


class Question(BaseModel):
    """Which examples of a set are asked about; their mean, where there are several.

    Attributes:
        ids: Only these; empty for all that ``groups`` select.
        groups: Column of the set, or ``label``, to the value that it has to have.
    """

    model_config = ConfigDict(frozen=True)

    ids: tuple[str, ...] = ()
    groups: dict[str, str] = {}

    def of(self, examples: EvaluationSet) -> list[str]:
        """Ids of the examples, in the set's order.

        Raises:
            SetError: There is no such example, column or value.
        """
        table = examples.table()
        for column, value in self.groups.items():
            if column not in table:
                known = ", ".join(("label", *examples.columns))
                raise SetError(f"set {examples.name!r} has no column {column!r}; it has {known}")
            kept = table[table[column].astype(str) == value]
            if kept.empty:
                known = ", ".join(sorted(table[column].dropna().astype(str).unique())[:8])
                raise SetError(
                    f"no example of set {examples.name!r} has {column} = {value}; there are {known}"
                )
            table = kept
        if not self.ids:
            return [str(name) for name in table["example_id"]]
        examples.by_id(self.ids[:1])  # the set's own words for an id that it does not have
        known_ids = set(table["example_id"])
        unknown = [name for name in self.ids if name not in known_ids]
        if unknown:
            # Raises, unless the set has them all and only the group lacks some.
            examples.by_id(unknown)
            raise SetError(f"example {unknown[0]!r} is not in the group; leave the group out")
        wanted = set(self.ids)
        return [str(name) for name in table["example_id"] if name in wanted]


class ContributionFacts(BaseModel):
    """Everything that a stored answer says of itself.

    Attributes:
        run_digest: Of the run.
        set_digest: Of the evaluation set.
        count: How many of its examples were asked about.
        behaviour: Whose value the contributions changed.
        value: Of the final model, the mean over these examples.
        steps: Stage name to its number of steps, in training order, of those that were swept.
        steps_only: Stages whose examples have no contributions of their own, and why.
        on_samples: Stages that were trained on answers which the model had sampled, held as
            recorded.
        curvature: What stood for second derivatives, see :mod:`stagelens.derivatives.products`.
        horizon: How many steps later within their stage contributions are to the behaviour; None
            where they are to that of the final model.
        kind: What a training example is shown as; None where the task cannot show any, so that
            every place in a batch stands for itself.
        no_rest: Stages of whose losses there is no mean over the rest of a batch, and why.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    count: int
    behaviour: BehaviourFacts
    value: float
    steps: dict[str, int]
    steps_only: dict[str, str] = {}
    on_samples: tuple[str, ...] = ()
    curvature: Curvature = "exact"
    horizon: int | None = None
    kind: str | None = None
    no_rest: dict[str, str] = {}


@dataclass(frozen=True)
class Stored:
    """An answer: a table (:data:`COLUMNS`) with what it says of itself."""

    facts: ContributionFacts
    table: pd.DataFrame

    def part(self, name: str, stage: str | None = None) -> pd.DataFrame:
        """The rows of one part, of one stage or of all."""
        rows = self.table[self.table["part"] == name]
        return rows if stage is None else rows[rows["stage"] == stage]

    def batches(self, stage: str) -> pd.DataFrame:
        """The micro-batches of a stage: ``step, micro, kind, terms, share, denominator, slope``."""
        names = ["step", "position", "kind", "terms", "share", "denominator", "slope"]
        own = self.part("batch", stage)[names].rename(columns={"position": "micro"})
        # Of one process, of which earlier versions did not keep it, a count is that of the step.
        alone = own["micro"].mask(own["kind"] == "count", 0)
        own["denominator"] = own["denominator"].fillna(alone)
        return own.astype({"step": int, "micro": int, "denominator": int})

    @property
    def complete(self) -> bool:
        """Whether it holds all by which leaving training examples out is predicted.

        Answers of earlier versions lack a part.
        """
        for stage in self.facts.steps.keys() - self.facts.steps_only.keys():
            if self.part("example", stage)["slope"].isna().any():
                return False
            counted = self.facts.steps[stage] and stage not in self.facts.no_rest
            if counted and self.part("batch", stage).empty:
                return False
        return True

    def linearised(self, stage: str) -> float:
        """What the steps of a stage add up to: its effect to first order."""
        return float(self.part("step", stage)["value"].sum())


def left_open(stage: str, effect: float, linearised: float) -> str:
    """That first order is off by more than half of a stage effect; empty where it is not.

    Args:
        stage: Its name.
        effect: Its effect; NaN where it is refused.
        linearised: What its steps add up to.
    """
    if not abs(effect - linearised) > _LEFT_OPEN * abs(effect):
        return ""
    if opposite(effect, linearised):
        return (
            f"To first order, the steps of {stage} add up to the opposite sign of its effect, "
            "so first order says nothing about credit or blame, and no step is shown as either. "
            "For early or late, go by what was seen while the stage trained."
        )
    explained = "explain less than half of its effect"
    if abs(linearised) > abs(effect):
        times = f"{abs(linearised / effect):,.1f} times" if effect else "more than"
        explained = f"add up to {times} its effect"
    return (
        f"To first order, the steps of {stage} {explained}, so first order says nothing of its "
        "size there. Take contributions as a hint of where to look, not as amounts."
    )


def opposite(effect: float, linearised: float) -> bool:
    """Whether steps add up to the opposite sign of the effect, so that theirs say nothing.

    Args:
        effect: Of the stage; NaN where it is refused.
        linearised: What its steps add up to.
    """
    return bool(effect * linearised < 0)


def asked_digest(ids: Sequence[str]) -> str:
    """The same for the same examples, in any order."""
    return digest(sorted(ids))


def contributions_path(
    run: Run,
    examples: EvaluationSet,
    behaviour: str,
    ids: Sequence[str],
    since: str,
    curvature: Curvature = USUAL,
    horizon: int | None = None,
) -> Path:
    """Where the answer for these examples is stored, or would be.

    Args:
        run: The run.
        examples: The evaluation set.
        behaviour: Whose contributions.
        ids: Of the examples that are asked about.
        since: The earliest stage of the answer, which reaches from there to the last one.
        curvature: What stands for second derivatives.
        horizon: See :class:`ContributionFacts`.
    """
    known = traits(run.file.task.name)
    # Of texts that are gone on from, several may be packed into a row.
    plain = known is not None and not known.continues_text and not run.file.task.own
    plain = plain and all(stage.facts.objective is None for stage in run.stages)
    revision = _OF_PLAIN_LOSSES if plain else _CONTRIBUTIONS
    within = () if horizon is None else (horizon,)
    parts = (revision, run.digest, examples.digest, behaviour, asked_digest(ids), since, *within)
    swept = run.stages[run.stage(since).index :]
    counted = [each for stage in swept for each in rest_key(run, stage.name)][:1]
    key = digest(*parts, *key_of(curvature), *counted)[:32]
    return run.files.inside(f"results/contributions/{key}.parquet")


def as_table(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Rows of any parts as one table."""
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def save_contributions(path: Path, found: Stored) -> None:
    """Store an answer. Atomic."""
    fact_tables.write(path, found.table, found.facts)


def load_contributions(
    run: Run,
    examples: EvaluationSet,
    behaviour: str,
    ids: Sequence[str],
    since: str,
    curvature: Curvature = USUAL,
    horizon: int | None = None,
) -> Stored | None:
    """A stored answer; None where there is none that can be used.

    Args:
        run: As for :func:`contributions_path`, like all others.
        examples: The evaluation set.
        behaviour: Whose contributions.
        ids: Of the examples that are asked about.
        since: The earliest stage of the answer.
        curvature: What stands for second derivatives.
        horizon: See :class:`ContributionFacts`.
    """
    path = contributions_path(run, examples, behaviour, ids, since, curvature, horizon)
    found = fact_tables.read(path, ContributionFacts, [n for n in COLUMNS if n not in _LATER])
    if found is None:
        return None
    facts, table = found
    # A file that was copied to this name is not believed.
    stages = [stage.name for stage in run.stages[run.stage(since).index :]]
    own = (facts.run_digest, facts.set_digest, facts.behaviour.name, facts.count, [*facts.steps])
    if (*own, facts.horizon) != (run.digest, examples.digest, behaviour, len(ids), stages, horizon):
        return None
    if facts.curvature != curvature:
        return None
    return Stored(facts, table.reindex(columns=list(COLUMNS)))
