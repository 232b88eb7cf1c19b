"""Found features on disk: a table that describes itself. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.effects.draws import DrawnEffects
from stagelens.effects.results import BehaviourFacts
from stagelens.estimators.registry import method_of
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.clusters import clusters
from stagelens.wording.quantiles import t_quantile

_FEATURES = 1
"""Part of every key; raised when candidates or tests change."""

COLUMNS = (
    *("stage", "kind", "name", "label", "support", "without", "mean_with", "mean_without"),
    *("difference", "low", "high", "p", "q", "noise_sd", "smallest", "evidence", "passes"),
    *("top", "left", "height", "width", "examples"),
)
"""One row per stage, feature and label; ``top`` to ``width`` place a patch, and ``examples`` are
ids of examples of the label that have the feature, those that show it most first. Further columns
list features of the same kind that the same examples have (``also``) and say how many degrees of
freedom the interval has; tables that were stored before these have none."""

MORE_COLUMNS = ("also", "freedom")


class StageFeatures(BaseModel):
    """How many features of a stage were tested, and how many passed.

    Attributes:
        stage: The stage.
        tested: Pairs of feature and label with enough support.
        passed: How many of them passed.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    tested: int
    passed: int


class FeatureFacts(BaseModel):
    """Everything that a table of features says of itself.

    Attributes:
        run_digest: Of the run.
        set_digest: Of the evaluation set.
        estimator: Whose stage effects were tested.
        settings: Of the estimator.
        noise: Digest of what was known of the training noise, see :func:`noise_key`; empty where
            it was not known.
        behaviour: Whose effects.
        stages: Stages with numbers, in training order.
        kinds: Kinds of features that were looked for.
        examples: How many examples the set has.
        sources: What examples share that intervals are clustered by, in words; empty where they
            share nothing, None where an earlier version took all to be apart.
        images: How many of them patches were taken out of; 0 for none.
        shape: (height, width) of these images in pixels; None for none.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    estimator: str
    settings: dict[str, Any]
    noise: str
    behaviour: BehaviourFacts
    stages: list[StageFeatures]
    kinds: list[str]
    examples: int
    sources: str | None = None
    images: int = 0
    shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Features:
    """A table of features (:data:`COLUMNS`) with what it says of itself."""

    facts: FeatureFacts
    table: pd.DataFrame

    def holds(self, stages: Iterable[str]) -> bool:
        """Whether all of these stages were looked at."""
        return set(stages) <= {stage.stage for stage in self.facts.stages}


OF_DRAWS = "draws "
"""How the key begins where draws of the recipe stand for the training noise."""


def noise_key(orders: pd.DataFrame | None, draws: DrawnEffects | None) -> str:
    """What is known of the training noise, as a digest; empty where nothing is.

    Args:
        orders: Effects in several orders of the batches; None where there are none.
        draws: Effects in several draws of the recipe, which come before orders; None likewise.
    """
    if draws is not None and draws.has_interval(draws.count):
        pairs = draws.table.groupby(["stage", "draw"]).size().index
        told = [[str(stage), int(draw)] for stage, draw in pairs]
        # Numbers do not say which recorded runs were given as draws; their effects do.
        total = float(draws.table["effect"].sum())
        return OF_DRAWS + digest([draws.kind, draws.pilot, draws.batches, told, total])[:16]
    if orders is None:
        return ""
    # Which orders are known is enough: the rest of the key settles their effects.
    known = orders.groupby(["stage", "order"]).size()
    return digest([[str(stage), int(order)] for stage, order in known.index])[:16]


def _path(
    run: Run, set_digest: str, estimator: str, settings: Mapping[str, Any], noise: str
) -> Path:
    parts = (
        _FEATURES,
        method_of(estimator),
        run.digest,
        set_digest,
        estimator,
        dict(settings),
        noise,
    )
    return run.files.inside(f"results/features/{digest(*parts)[:32]}.parquet")


def save_features(run: Run, found: Features) -> Path:
    """Store a table under its key. Atomic."""
    facts = found.facts
    path = _path(run, facts.set_digest, facts.estimator, facts.settings, facts.noise)
    fact_tables.write(path, found.table, facts)
    return path


def load_features(
    run: Run, set_name: str, estimator: str, settings: Mapping[str, Any], noise: str
) -> Features | None:
    """A stored table; None where there is none, or it cannot be used.

    One of an earlier version cannot where its intervals take examples to be apart that share
    sources, or where it has clusters of texts: these held the vectors of other texts.
    """
    examples = run.evaluation_set(set_name)
    set_digest = examples.digest
    path = _path(run, set_digest, estimator, settings, noise)
    found = fact_tables.read(path, FeatureFacts, COLUMNS)
    if found is None or (found[0].run_digest, found[0].set_digest) != (run.digest, set_digest):
        return None
    facts, table = found
    of_texts = {"word", "cluster"} <= set(facts.kinds)
    if facts.sources is None and (of_texts or clusters(examples) is not None):
        return None
    if "also" not in table:
        table = table.assign(also=[[] for _ in range(len(table))])
    return Features(facts, table if "freedom" in table else _with_students_t(table))


def _with_students_t(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose intervals are the normal distribution's, with those of Student's t.

    Welch's degrees of freedom are not known of it; they are at least those of the smaller side.
    """
    freedom = table[["support", "without"]].min(axis=1).to_numpy(dtype=float) - 1
    wider = t_quantile(freedom) / t_quantile(float("inf"))
    reach = (table["high"] - table["low"]) / 2 * wider
    low, high = table["difference"] - reach, table["difference"] + reach
    clear = low * high > 0
    nearer = pd.concat([low.abs(), high.abs()], axis=1).min(axis=1)
    return table.assign(
        low=low,
        high=high,
        freedom=freedom,
        evidence=nearer.where(clear & (table["evidence"] > 0), 0.0),
        passes=table["passes"] & clear,
    )
