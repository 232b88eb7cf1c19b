"""What was asked of a selection, what it costs, and what came of it, on disk. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.analyses.contributions.contribution_table import Question, asked_digest
from stagelens.analyses.training_data.by_column import columns_key
from stagelens.contracts import Behaviour
from stagelens.derivatives.curvature_kinds import Curvature, key_of
from stagelens.effects.draws import DrawInterval, interval_over_draws
from stagelens.effects.results import BehaviourFacts
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.training_rows import example_key

from .halves import halves
from .proofs import KINDS, Proof, ProofFacts, TrainedOn, label_counts, load_part, proof_path
from .ranked import COLUMNS, RankingFacts

_METHOD = 3
"""Part of every key; raised when what is stored changes."""
_FOLDER = "results/selection"

TRIALS = 2
"""Draws that judge a horizon: enough to tell a good one from a bad one, not two good ones."""
PROOF = 8
"""Draws that prove a choice, unless somebody asks for another number."""


class Wanted(BaseModel):
    """Which training examples of a stage are chosen, for what, and how it is proved.

    Attributes:
        stage: Whose examples.
        set_name: The evaluation set that is to become better.
        question: Which of its examples.
        slice_name: The saved slice that these are, for people; empty for other targets.
        behaviour: Of which behaviour.
        horizons: How many steps later the target is asked; several are judged by replay.
        keep: The share of the examples that is chosen.
        per_label: Whether the same share of every label is chosen.
        by: The column of the training examples by whose groups they are valued; empty for each by
            itself.
        distinct: Whether of inputs that are nearly the same only the best is kept.
        draws: How many prove the choice; with none, the whole target ranks.
        curvature: What stands for second derivatives, see :mod:`stagelens.derivatives.products`.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    set_name: str
    question: Question = Question()
    slice_name: str = ""
    behaviour: str
    horizons: tuple[int, ...]
    keep: float = 0.5
    per_label: bool = True
    by: str = ""
    distinct: bool = False
    draws: int = 0
    curvature: Curvature = "exact"

    @property
    def trials(self) -> int:
        """How many models are replayed to judge horizons.

        Of each what both halves of the target would choose, and random examples once.
        """
        return TRIALS * (2 * len(self.horizons) + 1) if len(self.horizons) > 1 else 0

    @property
    def replays(self) -> int:
        """How many models are replayed in all, each through the stage and all later ones."""
        return self.trials + len(KINDS) * self.draws

    def sides(self, examples: EvaluationSet) -> tuple[Question, Question]:
        """The target's examples that rank, and those that judge the choice.

        Raises:
            SetError: The question names what the set does not have.
            StageLensError: There are too few of them to prove anything.
        """
        return halves(examples, self.question) if self.draws else (self.question, self.question)


def usual_horizons(steps: int) -> tuple[int, ...]:
    """A tenth of a stage, a third, and all of it: which is best depends on the learning rate."""
    return tuple(sorted({max(1, steps // 10), max(1, steps // 3), max(1, steps)}))


class Trial(BaseModel):
    """A horizon, and the target after the stage was replayed with what it chose.

    Attributes:
        horizon: In steps.
        values: The target's mean behaviour, by draw; none where it was the only horizon.
        agreement: Rank correlation between the orders by one half of the ranking examples and by
            the other; None where there are no halves.
    """

    model_config = ConfigDict(frozen=True)

    horizon: int
    values: tuple[float, ...] = ()
    agreement: float | None = None

    @property
    def mean(self) -> float:
        """Over the draws."""
        return float(np.mean(self.values)) if self.values else float("nan")


class OutcomeFacts(BaseModel):
    """What a stored outcome says of itself.

    Attributes:
        run_digest: Of the run.
        set_digest: Of the evaluation set.
        wanted: What was asked.
        ranking: What the examples were chosen from: the best horizon's.
        trials: Every horizon, the shortest first.
        random: The target's mean behaviour with as many random examples, in the draws of the
            trials; none where nothing was tried.
        of: How many examples the stage has.
        judged: How many of the target's examples judged the choice.
        alike: How many examples were passed over because a better one is nearly the same.
        behaviours: What was measured.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    wanted: Wanted
    ranking: RankingFacts
    trials: tuple[Trial, ...]
    random: tuple[float, ...] = ()
    of: int
    judged: int = 0
    alike: int = 0
    behaviours: tuple[BehaviourFacts, ...]


@dataclass(frozen=True)
class Outcome:
    """Which examples were chosen, and what replays say of the choice.

    Attributes:
        facts: What it says of itself.
        kept: The chosen examples, the most helpful first (:data:`~.ranked.COLUMNS`).
        proof: What models answered that were replayed with parts of the examples; None where
            nobody asked for a proof.
    """

    facts: OutcomeFacts
    kept: pd.DataFrame
    proof: Proof | None

    @property
    def behaviour(self) -> Behaviour:
        """What was to become better."""
        return self.facts.ranking.behaviour.behaviour()

    @property
    def agreement(self) -> float | None:
        """Of the horizon that was taken; see :class:`Trial`."""
        taken = self.facts.ranking.horizon
        return next((one.agreement for one in self.facts.trials if one.horizon == taken), None)

    @property
    def beats_random(self) -> bool | None:
        """Whether what was taken is better than random examples in the trials; None if not tried.

        Each half of the ranking examples judged what the other half would choose.
        """
        taken = self.facts.ranking.horizon
        own = next((one.mean for one in self.facts.trials if one.horizon == taken), np.nan)
        random = float(np.mean(self.facts.random)) if self.facts.random else np.nan
        if not np.isfinite([own, random]).all():
            return None
        return bool(self.behaviour.sign * (own - random) > 0)

    @property
    def ids(self) -> list[str]:
        """Of the chosen examples, the most helpful first."""
        return [str(name) for name in self.kept["example_id"]]

    def measured(self, behaviour: str) -> list[tuple[TrainedOn, int, DrawInterval]]:
        """What the stage was trained on, how many examples that are, and the mean over draws.

        Empty where nothing was proved, or the behaviour has no values.
        """
        if self.proof is None:
            return []
        sizes = {"all": self.facts.of}
        found = [
            (kind, sizes.get(kind, len(self.kept)), interval_over_draws(values, "runs"))
            for kind in KINDS
            if len(values := self.proof.values(kind, behaviour)) and np.isfinite(values).all()
        ]
        return found if len(found) == len(KINDS) else []


def outcome_path(run: Run, examples: EvaluationSet, wanted: Wanted) -> Path:
    """Where an outcome is stored, or would be.

    Args:
        run: The run.
        examples: The set that is to become better.
        wanted: What is asked; the same for the same examples, however they are named.
    """
    own = (wanted.behaviour, sorted(wanted.horizons), wanted.keep, wanted.distinct, wanted.draws)
    ids = asked_digest(wanted.question.of(examples))
    by = [wanted.by, *columns_key(run, wanted.stage)] if wanted.by else []
    kind = (wanted.per_label, *key_of(wanted.curvature), *by)
    parts = (run.digest, wanted.stage, examples.digest, ids, *own, *kind)
    key = digest(_METHOD, *parts, *example_key(run, wanted.stage))[:32]
    return run.files.inside(f"{_FOLDER}/outcome-{key}.parquet")


def save_outcome(
    run: Run, examples: EvaluationSet, facts: OutcomeFacts, kept: pd.DataFrame
) -> Path:
    """Store an outcome; replays of its proof are stored one by one. Atomic."""
    path = outcome_path(run, examples, facts.wanted)
    fact_tables.write(path, kept, facts)
    return path


def load_outcome(run: Run, examples: EvaluationSet, path: Path) -> Outcome | None:
    """A stored outcome with its proof; None where there is none that can be used in full.

    Args:
        run: The run.
        examples: The set that was to become better.
        path: See :func:`outcome_path`.
    """
    found = fact_tables.read(path, OutcomeFacts, COLUMNS)
    if found is None:
        return None
    facts, kept = found
    # A file that was copied to this name is not believed.
    if (facts.run_digest, facts.set_digest) != (run.digest, examples.digest):
        return None
    if path != outcome_path(run, examples, facts.wanted):
        return None
    if not facts.wanted.draws:
        return Outcome(facts, kept, None)
    proof = _proof(run, examples, facts, kept)
    return None if proof is None else Outcome(facts, kept, proof)


def _proof(
    run: Run, examples: EvaluationSet, facts: OutcomeFacts, kept: pd.DataFrame
) -> Proof | None:
    chosen = [str(name) for name in kept["example_id"]]
    judges = facts.wanted.sides(examples)[1].of(examples)
    own = ProofFacts(
        ranking=facts.ranking,
        kept=len(chosen),
        of=facts.of,
        behaviours=[*facts.behaviours],
        set_digest=examples.digest,
        asked=asked_digest(judges),
        chosen=asked_digest(chosen),
        labels=label_counts(facts.ranking, kept),
    )
    parts = {}
    for draw in range(facts.wanted.draws):
        for kind in KINDS:
            path = proof_path(run, own, examples, judges, chosen, kind, draw)
            part = load_part(path, own, kind, draw)
            if part is None:
                return None
            parts[kind, draw] = part
    return Proof(own, parts)


def stored_outcomes(run: Run, examples: EvaluationSet, stage: str) -> dict[Path, OutcomeFacts]:
    """File to facts of what is stored of a stage and a set, the latest first."""
    every = fact_tables.facts_of_all(run.files.inside(_FOLDER), "outcome-*.parquet", OutcomeFacts)
    return {
        file: facts
        for file, facts in every.items()
        if (facts.run_digest, facts.set_digest) == (run.digest, examples.digest)
        and facts.wanted.stage == stage
    }
