"""Scores that were given by other tools, as they are kept, and the effect tables made of them.

What was given lies in ``scores/``, one file per model and scorer, since nothing can compute it
again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import SCORE, Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .model_names import AFTER, FINAL, WITHOUT
from .results import BehaviourFacts, Result, ResultFacts, save_result, stored_results
from .scores import boundary_rows, stage_rows
from .stored_scores import GIVEN, SCORER

FOLDER = "scores"
LOG = "log"
"""What tables say of scores that were added, in place of how answers were generated."""


class Source(BaseModel):
    """Where scores come from.

    Attributes:
        file: Name of the log.
        sha256: Of its bytes.
        tool: That wrote it; empty for a plain table.
        tool_version: As the log has it.
        model: How the tool opened the model.
        by_id: Whether contents were not compared.
    """

    model_config = ConfigDict(frozen=True)

    file: str
    sha256: str
    tool: str = ""
    tool_version: str = ""
    model: str = ""
    by_id: bool = False


class GivenFacts(BaseModel):
    """What a file of given scores says about itself.

    Attributes:
        run_digest: Of the recorded training.
        set_digest: Of the examples.
        model: ``final``, ``after:STAGE`` or ``without:STAGE``.
        scorer: What identifies the scorer.
        estimator: How a model without a stage was obtained; empty for recorded ones.
        settings: Of the estimator.
        trust: What is known of a model without a stage.
        source: Where the scores come from.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    model: str
    scorer: dict[str, Any]
    estimator: str = ""
    settings: dict[str, Any] = {}
    trust: StageTrust | None = None
    source: Source

    @property
    def path(self) -> str:
        """The file's, in the run folder."""
        own = (self.run_digest, self.set_digest, self.model, self.scorer)
        return f"{FOLDER}/{digest('given', *own, self.estimator, self.settings)[:32]}.parquet"


def given(
    run: Run, examples: EvaluationSet, scorer: Mapping[str, Any] | None = None
) -> Iterator[tuple[GivenFacts, pd.DataFrame]]:
    """All given scores of a set as it is now, by one scorer or by all."""
    for path in sorted((run.path / FOLDER).glob("*.parquet")):
        found = fact_tables.read(path, GivenFacts, ["example_id", "sample", "value", "answer"])
        if found is None:
            continue
        facts = found[0]
        own = (facts.run_digest, facts.set_digest) == (run.digest, examples.digest)
        if own and path.name == Path(facts.path).name and scorer in (None, facts.scorer):
            yield found


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


def behaviour_of(scorer: Mapping[str, Any]) -> Behaviour:
    """The score of a given scorer, by what identifies it."""
    bounds = {name: scorer[name] for name in ("lowest", "highest") if scorer[name] is not None}
    said = scorer["settings"]
    tool = f" by {said['tool']}, task {said['task']}" if "tool" in said else ""
    return Behaviour(
        SCORE + scorer["name"],
        scorer["better"],
        scorer["unit"],
        f"{scorer['name']}{tool}, as it was logged.",
        **bounds,
    )


def per_example(examples: EvaluationSet, table: pd.DataFrame) -> pd.DataFrame:
    """One row per example, in the set's order: ``value``, its ``sd`` over samples, ``answer``.

    A sample without a score leaves its example without one, not with that of the others.
    """
    ids = examples.table([])["example_id"].tolist()
    by_example = table.groupby("example_id", sort=False)["value"]
    whole = by_example.agg(lambda own: own.mean(skipna=False))
    first = table[table["sample"] == table["sample"].min()].set_index("example_id")["answer"]
    rows = pd.DataFrame({"value": whole, "sd": by_example.std()}).reindex(ids)
    return rows.assign(answer=first.reindex(ids))
