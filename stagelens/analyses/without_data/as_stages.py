"""Replays without training examples in the form of stage effects, for whatever shows those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.summary import stage_summary, with_accuracy
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.clusters import clusters
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.trust.trust_columns import with_trust
from stagelens.wording.sentences import Sentence, mean_sentence

from .chosen import AT_RANDOM, DIVISORS
from .sentences import named
from .stored import WithoutData, read_without_data, stored_without_data

MOST = 12
"""Replays that are shown together: the latest."""
_CHOICE = 12
"""Characters that tell choices of examples apart."""


@dataclass(frozen=True)
class WithoutSome:
    """Replays of one set without training examples, each named like a stage.

    Attributes:
        table: An effect table whose ``stage`` is a name such as ``20 examples of sft``, with
            accuracy where there are labels.
        trust: Name to what is known of that model.
        behaviours: By name, accuracy first where there are labels.
        left_out: How many more are stored.
    """

    table: pd.DataFrame
    trust: dict[str, StageTrust]
    behaviours: dict[str, Behaviour]
    left_out: int = 0

    def means(self, behaviour: Behaviour, ids: frozenset[str] | None = None) -> pd.DataFrame:
        """``summary.stage_summary``: a row per replay.

        Args:
            behaviour: Which behaviour.
            ids: The evaluation examples that it is about; None for all.
        """
        rows = self.table[self.table["behaviour"] == behaviour.name]
        if ids is not None:
            rows = rows[rows["example_id"].isin(ids)]
        return stage_summary(rows, behaviour, list(self.trust))

    def sentences(
        self, means: pd.DataFrame, behaviour: Behaviour, noun: str, by: str | None = None
    ) -> Iterator[Sentence]:
        """Each replay as it is said of a stage, with its interval.

        Args:
            means: Of :meth:`means`; ``group`` says which examples it is of, null for all.
            behaviour: The same.
            noun: What an evaluation example is called.
            by: The column that ``group`` is a value of.
        """
        for row in means.to_dict("records"):
            trust = self.trust[str(row["stage"])]
            yield mean_sentence(row, behaviour, noun, by, trust, ends=True)


def without_some(run: Run, examples: EvaluationSet) -> WithoutSome | None:
    """What is stored of a set; None where nothing is, or the models are all refused.

    Examples that were drawn at random to hold others against are no finding, and are left out.

    Args:
        run: The run.
        examples: The evaluation set.
    """
    stored = stored_without_data(run, examples)
    files = [file for file, facts in stored.items() if not facts.words.startswith(AT_RANDOM)]
    read = (read_without_data(run, examples, path) for path in files[:MOST])
    found = [one for one in read if one is not None and one.facts.trust.trust != "refused"]
    return _as_stages(found, examples, len(files) - len(files[:MOST])) if found else None


def as_stage(found: WithoutData, examples: EvaluationSet) -> WithoutSome:
    """One replay without training examples in the form of a stage effect.

    Args:
        found: The replay; one that was refused has no numbers.
        examples: The evaluation set that it is of.
    """
    return _as_stages([found], examples)


def effect_rows(found: Sequence[WithoutData]) -> pd.DataFrame:
    """Effects as they leave the run, each row with what was left out of which it is the effect.

    Args:
        found: Replays without training examples of one stage, on one set.

    Returns:
        Rows of an effect table with trust, and ``without``: the examples in words; ``left_out``:
        how many they are; ``divisor``: ``rest`` or ``kept``; and ``choice``: the same for the same
        examples and for no others, whatever their words.
    """
    return pd.concat(
        [
            with_trust(one.table, {one.facts.stage: one.facts.trust}).assign(
                without=named(one.chosen),
                left_out=len(one.facts.ids),
                divisor=one.facts.divisor,
                choice=digest(one.facts.stage, *sorted(one.facts.ids))[:_CHOICE],
            )
            for one in found
        ],
        ignore_index=True,
    )


def _as_stages(found: list[WithoutData], examples: EvaluationSet, left_out: int = 0) -> WithoutSome:
    names = _names(found)
    tables = [one.table.assign(stage=name) for name, one in zip(names, found, strict=True)]
    table = with_accuracy(pd.concat(tables, ignore_index=True))
    sharing = clusters(examples)
    behaviours = found[0].behaviours
    if (table["behaviour"] == ACCURACY.name).any():
        behaviours = {ACCURACY.name: ACCURACY, **behaviours}
    return WithoutSome(
        table if sharing is None else sharing.joined(table),
        {
            name: one.facts.trust.model_copy(update={"stage": name})
            for name, one in zip(names, found, strict=True)
        },
        behaviours,
        left_out,
    )


def _names(found: list[WithoutData]) -> list[str]:
    """Like stages: what was left out, and of which; told apart where two would be alike."""
    names = []
    for one in found:
        divisor = "" if one.facts.divisor == "rest" else f" ({DIVISORS[one.facts.divisor]})"
        how = "" if one.facts.estimator == "replay" else f" by {one.facts.estimator}"
        names.append(f"{named(one.chosen)}{divisor}{how}")
    times, seen = Counter(names), Counter[str]()
    told = []
    for name, one in zip(names, found, strict=True):
        # The first id tells two choices of as many examples apart, whatever is replayed later.
        full = f"{name}, {one.facts.ids[0]} the first" if times[name] > 1 else name
        seen[full] += 1
        told.append(f"{full} ({seen[full]})" if seen[full] > 1 else full)
    return told
