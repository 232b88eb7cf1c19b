"""Other models of a run scored as its own were: the same prompts, settings and scorers.

What was stored names the scorers; nothing of how they were called is kept beside that, so those
that cannot be made again from their names and settings are told, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from stagelens.contracts import REFERENCE_COLUMN, Behaviour, RunError, Scorer, TaskError
from stagelens.measuring.choices import multiple_choice
from stagelens.measuring.scorers import find_scorer
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.states import Weights

from .answers import VERSION, How, answers_of, how_of
from .prompts import prompts_of, references_of
from .scores import per_prompt
from .stored_scores import ANSWERS, GIVEN, SCORER, StoredScore, stored_scores

_CHOICE = "multiple-choice"


@dataclass(frozen=True)
class OwnScore:
    """A stored score that further models can be given.

    Attributes:
        key: See ``StoredScore.key``.
        name: What pages call it.
        behaviour: The score, under that name.
        how: How answers were generated, or chosen.
        scorer: Made again.
    """

    key: str
    name: str
    behaviour: Behaviour
    how: How
    scorer: Scorer


@dataclass(frozen=True)
class OwnScores:
    """The scores of a set that further models can be given.

    Attributes:
        found: These.
        left_out: Name of a score to why it is none of them.
    """

    found: Sequence[OwnScore]
    left_out: Mapping[str, str]

    def only(self, keys: Iterable[str]) -> list[OwnScore]:
        """Those with these keys.

        Raises:
            RunError: Further models cannot be given one of them here.
        """
        there = {each.key: each for each in self.found}
        wanted = list(keys)
        if lacking := [key for key in wanted if key not in there]:
            raise RunError(
                f"models cannot be given {len(lacking)} of the {len(wanted)} scores that were "
                "asked for: "
                + (
                    "; ".join(f"{name}: {why}" for name, why in self.left_out.items())
                    or f"no stored score has the key {lacking[0]}"
                )
                + ". Give every process that shares the work the same scorers"
            )
        return [there[key] for key in wanted]


def own_scores(run: Run, set_name: str) -> OwnScores:
    """The stored scores of a set by scorers that can be made again."""
    found, left_out = [], {}
    for name, stored in stored_scores(run, set_name).items():
        if GIVEN in stored.any.settings:
            left_out[name] = "it was added from a log, and only the tool that wrote it can score"
            continue
        try:
            scorer = _made_again(stored)
        except TaskError as error:
            left_out[name] = str(error)
            continue
        facts = dict(stored.any.settings[ANSWERS])
        if facts.pop("version", None) != VERSION:
            left_out[name] = "its answers are those of another version of StageLens"
            continue
        how = how_of(facts)
        found.append(OwnScore(stored.key, name, stored.behaviour, how, scorer))
    return OwnScores(found, left_out)


def _made_again(stored: StoredScore) -> Scorer:
    facts = stored.any.settings[SCORER]
    name, settings = facts["name"], dict(facts.get("settings") or {})
    if name == _CHOICE:
        return multiple_choice(**settings)
    given = {"as": facts.get("label"), "reference": facts.get("reference", REFERENCE_COLUMN)}
    own = settings | {key: value for key, value in given.items() if value}
    why = TaskError(
        f"the scorer {name!r} that is installed is not the one that scored: {facts} was stored"
    )
    # A direction is a setting of some scorers, and a fact of all.
    for more in ({}, {"better": facts.get("better")}):
        try:
            made = find_scorer(name, own | more)
        except TaskError as error:
            why = error if not more else why
            continue
        if made.facts == facts:
            return made
    raise why


def scored_model(
    run: Run,
    examples: EvaluationSet,
    module: nn.Module,
    weights: Weights,
    scores: Sequence[OwnScore],
) -> dict[str, np.ndarray]:
    """Key of every score to a model's (N,) scores, in the set's order; NaN where there is none.

    Args:
        run: The run.
        examples: One of its sets.
        module: Of the model's architecture; its weights are overwritten.
        weights: The model's.
        scores: Of :func:`own_scores`; answers are generated once for those that share them.
    """
    prompts, found = prompts_of(examples), {}
    answers: dict[str, pd.DataFrame] = {}
    for each in scores:
        said = repr(sorted(each.how.facts.items()))
        if said not in answers:
            answers[said] = answers_of(run, examples, each.how, module, weights)
        references = references_of(examples, each.scorer.reference)
        values = per_prompt(answers[said], each.scorer, prompts, references)["value"]
        found[each.key] = values.to_numpy(dtype=float)
    return found


def keys_by_set(run: Run, set_names: Sequence[str]) -> dict[str, list[str]]:
    """Set name to the keys of its own scores; sets without any are not there."""
    found: dict[str, Any] = {n: [one.key for one in own_scores(run, n).found] for n in set_names}
    return {name: keys for name, keys in found.items() if keys}
