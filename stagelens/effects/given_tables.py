"""Effect tables of scores that were given by other tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .given_files import GivenFacts, behaviour_of, given, per_example
from .model_names import AFTER, FINAL, WITHOUT
from .results import BehaviourFacts, Result, ResultFacts, save_result, stored_results
from .scores import boundary_rows, stage_rows
from .stored_scores import GIVEN, SCORER

LOG = "log"
"""What tables say of scores that were added, in place of how answers were generated."""


def all_tables(run: Run, examples: EvaluationSet) -> dict[str, list[str]]:
    """Make the effect tables of all given scores that are not stored (any more).

    Returns:
        Name of every score to the models that it was given of.
    """
    found: dict[str, list[str]] = {}
    scorers: dict[str, dict[str, Any]] = {}
    for facts, _ in given(run, examples):
        found.setdefault(behaviour_of(facts.scorer).name, []).append(facts.model)
        scorers[digest(facts.scorer)] = facts.scorer
    stored = [facts.settings for facts in stored_results(run, examples.name, "scores")]
    for scorer in scorers.values():
        if not any(one.get(SCORER) == scorer and GIVEN in one for one in stored):
            tables_of(run, examples, scorer)
    order = {name: number for number, name in enumerate((FINAL, AFTER, WITHOUT))}
    return {
        name: sorted(models, key=lambda one: (order[one.partition(":")[0]], one))
        for name, models in sorted(found.items())
    }


def tables_of(run: Run, examples: EvaluationSet, scorer: Mapping[str, Any]) -> list[Result]:
    """Make and store the effect tables of a given scorer, one per estimator; none without effects.

    Scores after boundaries are stored too.
    """
    tables = given(run, examples, scorer)
    found = [(facts, per_example(examples, table)) for facts, table in tables]
    values = {facts.model: one for facts, one in found if not facts.estimator}
    kind = behaviour_of(scorer)
    common: dict[str, Any] = {
        "run_digest": run.digest,
        "set_name": examples.name,
        "set_digest": examples.digest,
        "behaviours": [BehaviourFacts.of(kind)],
    }
    own: dict[str, Any] = {SCORER: dict(scorer), GIVEN: LOG}
    rows = boundary_rows(run, examples, kind, values)
    if rows is not None:
        said = ResultFacts(kind="score-boundaries", estimator="", settings=own, **common)
        save_result(run, Result(said, rows))
    if FINAL not in values:
        return []
    ways: dict[str, dict[str, tuple[GivenFacts, pd.DataFrame]]] = {}
    for facts, one in found:
        if facts.estimator:
            way = ways.setdefault(digest(facts.estimator, facts.settings), {})
            way[facts.model.partition(":")[2]] = facts, one
    return [_effects(run, examples, values[FINAL], models, common, own) for models in ways.values()]


def _effects(
    run: Run,
    examples: EvaluationSet,
    final: pd.DataFrame,
    models: Mapping[str, tuple[GivenFacts, pd.DataFrame]],
    common: Mapping[str, Any],
    own: Mapping[str, Any],
) -> Result:
    """The effect table of the stages that models obtained in one way are without."""
    stages = [stage.name for stage in run.stages if stage.name in models]
    one = models[stages[0]][0]
    kind = behaviour_of(own[SCORER])
    blocks = [
        stage_rows(
            examples.table(), examples.name, stage, one.estimator, kind, final, models[stage][1]
        )
        for stage in stages
    ]
    trusts = [trust for stage in stages if (trust := models[stage][0].trust) is not None]
    facts = ResultFacts(
        kind="scores",
        estimator=one.estimator,
        settings={**one.settings, **own},
        stages=trusts,
        **common,
    )
    result = Result(facts, pd.concat(blocks, ignore_index=True))
    save_result(run, result)
    return result
