"""What was measured of a merge, as it is stored. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.contrasts import Spread
from stagelens.effects.results import BehaviourFacts
from stagelens.effects.summary import stage_summary, with_accuracy
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.clusters import CLUSTER, with_sources
from stagelens.runs.sets.evaluation_set import EvaluationSet

METHOD = 1
"""Part of the key of stored tables; raise it where their numbers change."""

PARENT: Literal["parent"] = "parent"
STAGE: Literal["stage"] = "stage"

GIVEN = ("part", "name", "weight", "behaviour", "group", "n", "effect", "low", "high", "trust")
"""Columns of :func:`given`; ``trust`` is a :class:`StageTrust`."""


class Part(BaseModel):
    """A parent of a merge, or a stage on the way to it.

    Attributes:
        kind: Which of the two.
        name: Of the stage, or ``base``.
        weight: Of the parent in the merge, or of what the stage changed.
        trust: What is known of its effect.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["parent", "stage"]
    name: str
    weight: float
    trust: StageTrust


class SoupFacts(BaseModel):
    """Everything that such a table says about itself."""

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_name: str
    set_digest: str
    behaviours: list[BehaviourFacts]
    parts: list[Part]


@dataclass(frozen=True)
class Soup:
    """Effects of parents and stages: an effect table with the column ``part`` besides."""

    facts: SoupFacts
    table: pd.DataFrame

    @property
    def behaviours(self) -> dict[str, Behaviour]:
        """Those that were measured, with accuracy where there are labels."""
        known = {each.name: each.behaviour() for each in self.facts.behaviours}
        return {ACCURACY.name: ACCURACY, **known} if self.table["label"].notna().any() else known


def path_of(run: Run, examples: EvaluationSet) -> Path:
    """Where the table of a merge on a set is stored."""
    key = digest("soup", METHOD, run.digest, examples.digest)[:32]
    return run.files.inside(f"results/soups/{key}.parquet")


def load_soup(run: Run, set_name: str) -> Soup | None:
    """What is stored of a merge on a set; None where nothing is."""
    examples = run.evaluation_set(set_name)
    found = fact_tables.read(path_of(run, examples), SoupFacts, ("part", "stage", "effect"))
    if found is None or (found[0].run_digest, found[0].set_digest) != (
        run.digest,
        examples.digest,
    ):
        return None
    return Soup(*found)


def given(
    soup: Soup, behaviour: Behaviour, examples: EvaluationSet, by: str | None = None
) -> pd.DataFrame:
    """The mean effect of each part with its 95 % interval over examples, :data:`GIVEN`.

    Args:
        soup: As measured.
        behaviour: Which.
        examples: The set.
        by: Column to group by; None for all examples.
    """
    sources, rows = with_sources(examples), []
    for kind in (PARENT, STAGE):
        parts = [each for each in soup.facts.parts if each.kind == kind]
        own = soup.table[soup.table["part"] == kind].reset_index(drop=True)
        if CLUSTER in sources and CLUSTER not in own:
            own = own.merge(sources[["example_id", CLUSTER]], on="example_id", how="left")
        table = with_accuracy(own)
        summary = stage_summary(table, behaviour, [each.name for each in parts], by)
        known = {each.name: each for each in parts}
        for row in summary.to_dict("records"):
            low, high = Spread(row["effect"], row["error"], row["freedom"]).ends()
            one = known[row["stage"]]
            about = (kind, one.name, one.weight, behaviour.name, row["group"], row["n"])
            rows.append((*about, row["effect"], low, high, one.trust))
    return pd.DataFrame(rows, columns=list(GIVEN))
