"""Scores that were given by other tools, as they are kept. Nothing here imports torch.

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

FOLDER = "scores"


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
