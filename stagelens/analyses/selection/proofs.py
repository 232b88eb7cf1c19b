"""What replaying a choice of training examples gave, on disk. Without torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.analyses.contributions.contribution_table import asked_digest
from stagelens.contracts import ACCURACY, Behaviour
from stagelens.derivatives.curvature_kinds import key_of
from stagelens.effects.contrasts import Spread, mean_spread
from stagelens.effects.draws import DrawInterval, interval_over_draws
from stagelens.effects.results import BehaviourFacts
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.training_rows import example_key, rest_key

from .ranked import RankingFacts

_METHOD = 3
"""Part of every key; raised when what is stored changes."""

SOURCE = "source"
"""Of a replay's table, which has one row per example of the target in the order they were asked:
the number of the source that the example shares with others, below 0 where it shares none. Beside
it one column per behaviour."""

TrainedOn = Literal["all", "chosen", "random", "worst"]
"""What the stage of a replayed model has of its examples; ``worst`` are as many as are chosen, from
the other end of the ranking."""
KINDS: tuple[TrainedOn, ...] = ("all", "chosen", "random", "worst")


class ProofFacts(BaseModel):
    """What stored replays of a choice say of themselves.

    Attributes:
        ranking: The ranking that was chosen from.
        kept: How many examples are chosen.
        of: Of how many.
        behaviours: What was measured.
        set_digest: Of the evaluation set that was measured.
        asked: See :func:`asked_digest`, of its examples.
        chosen: The same of the chosen training examples.
        labels: Label to how many of it are chosen; see :func:`label_counts`.
    """

    model_config = ConfigDict(frozen=True)

    ranking: RankingFacts
    kept: int
    of: int
    behaviours: list[BehaviourFacts]
    set_digest: str
    asked: str
    chosen: str
    labels: dict[str, int] = {}


def label_counts(ranking: RankingFacts, chosen: pd.DataFrame) -> dict[str, int]:
    """How many of each label random examples have that stand beside a choice.

    As many as the choice itself where it is made within labels, so that the two differ by which
    examples of a label they have and not by the balance of labels. Empty where labels compete: then
    their balance is part of the choice, and random examples are of whatever labels.

    Args:
        ranking: That was chosen from.
        chosen: The rows of the ranking that are kept.
    """
    if not ranking.per_label:
        return {}
    return dict(sorted(Counter(str(label) for label in chosen["label"].fillna("")).items()))


class PartFacts(BaseModel):
    """What one stored replay says of itself.

    Attributes:
        proof: That it is a part of.
        trained_on: Which part of the training examples the stage had.
        draw: Its number.
    """

    model_config = ConfigDict(frozen=True)

    proof: ProofFacts
    trained_on: TrainedOn
    draw: int


@dataclass(frozen=True)
class Proof:
    """What the models answered that were replayed with parts of a stage's examples.

    All models of a draw share its order of batches and its random numbers, so that they differ by
    the examples alone. Each draw has random examples of its own.

    Attributes:
        facts: What it says of itself.
        parts: What was trained on, and the draw, to the answers; see :data:`SOURCE`.
    """

    facts: ProofFacts
    parts: Mapping[tuple[TrainedOn, int], pd.DataFrame]

    def behaviour(self, name: str) -> Behaviour:
        """One of those measured."""
        return next(b for b in self.facts.behaviours if b.name == name).behaviour()

    def answers(self, trained_on: TrainedOn, behaviour: str) -> np.ndarray:
        """(K, N) of every draw and example; NaN where an example has no value."""
        draws = sorted(draw for kind, draw in self.parts if kind == trained_on)
        rows = [self.parts[trained_on, draw] for draw in draws]
        return np.array(
            [part.get(behaviour, pd.Series(np.nan, part.index)).to_numpy(float) for part in rows]
        )

    def values(self, trained_on: TrainedOn, behaviour: str) -> np.ndarray:
        """Means over the target's examples, by draw."""
        return pd.DataFrame(self.answers(trained_on, behaviour)).mean(axis=1).to_numpy()

    def over_draws(self, over: TrainedOn, behaviour: str) -> DrawInterval:
        """:meth:`gain` with the interval of the draws alone: of these examples, in other orders."""
        sign = self.behaviour(behaviour).sign
        difference = self.values("chosen", behaviour) - self.values(over, behaviour)
        return interval_over_draws(sign * difference, "runs")

    def over_examples(self, over: TrainedOn, behaviour: str) -> Spread:
        """:meth:`gain` with the error of the target's examples alone, by their sources."""
        sign = self.behaviour(behaviour).sign
        apart = sign * (self.answers("chosen", behaviour) - self.answers(over, behaviour))
        source = next(iter(self.parts.values()))[SOURCE].to_numpy()
        return mean_spread(apart.mean(axis=0), source, behaviour == ACCURACY.name)

    def gain(self, over: TrainedOn, behaviour: str) -> DrawInterval:
        """By how much the chosen examples are better than others, on the credit scale, paired.

        The interval is for other orders of batches and other examples of the target: the half
        widths for the two are added as variances are, which is no less than that of both together
        (A. B. Owen, The pigeonhole bootstrap, Ann. Appl. Statist. 1, 2007). NaN where either is not
        known.
        """
        drawn = self.over_draws(over, behaviour)
        low, high = self.over_examples(over, behaviour).ends()
        half = math.hypot((drawn.high - drawn.low) / 2, (high - low) / 2)
        return replace(drawn, low=drawn.mean - half, high=drawn.mean + half)


def proof_path(
    run: Run,
    facts: ProofFacts,
    examples: EvaluationSet,
    ids: list[str],
    chosen: Sequence[str],
    trained_on: TrainedOn,
    draw: int,
) -> Path:
    """Where one replay of a choice is stored, or would be.

    Args:
        run: The run.
        facts: Of the proof.
        examples: The set that is measured.
        ids: Of its examples.
        chosen: Of the training examples.
        trained_on: Which part of these.
        draw: Its number.
    """
    own = {
        # All examples are the same beside any choice, and random ones beside any of that size and
        # balance of labels.
        "all": (),
        "random": (len(chosen), *sorted(facts.labels.items())),
        "chosen": (sorted(chosen),),
        # The choice may be of other examples than the best of the ranking. Which target that was
        # made for is in its facts.
        "worst": (
            len(chosen),
            facts.ranking.model_dump_json(exclude={"curvature", "per_label", "by", "groups"}),
            *(["within labels"] if facts.ranking.per_label else []),
            *([facts.ranking.groups] if facts.ranking.by else []),
            *key_of(facts.ranking.curvature),
        ),
    }[trained_on]
    stage = facts.ranking.stage
    parts = (_METHOD, run.digest, stage, examples.digest, asked_digest(ids))
    of = (*example_key(run, stage), *rest_key(run, stage))
    key = digest(*parts, trained_on, draw, *own, *of)[:32]
    return run.files.inside(f"results/selection/proof-{key}.parquet")


def load_part(
    path: Path, facts: ProofFacts, trained_on: TrainedOn, draw: int
) -> pd.DataFrame | None:
    """The answers of one stored replay; None where there is none that can be used.

    Args:
        path: See :func:`proof_path`.
        facts: Of the proof that it is to be a part of.
        trained_on: Which part of the training examples.
        draw: Its number.
    """
    found = fact_tables.read(path, PartFacts, [SOURCE])
    # A file that was copied to this name is not believed.
    if found is None or (found[0].trained_on, found[0].draw) != (trained_on, draw):
        return None
    stored, table = found[0].proof, found[1]
    own, asked = stored.ranking, facts.ranking
    if (own.run_digest, own.stage, stored.of) != (asked.run_digest, asked.stage, facts.of):
        return None
    if (stored.set_digest, stored.asked) != (facts.set_digest, facts.asked):
        return None
    # What is beside any choice, or any of its size, may have been replayed for another ranking.
    if trained_on != "all" and stored.kept != facts.kept:
        return None
    if trained_on == "chosen" and stored.chosen != facts.chosen:
        return None
    if trained_on == "random" and stored.labels != facts.labels:
        return None
    if trained_on == "worst" and own != asked:
        return None
    return table
