"""Draws of a run's recipe with a model of every coalition of stages, as they are stored and read.

Each draw is a file of its own for each evaluation set. Importing this module does not import torch;
:mod:`.drawing_coalitions` makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.draws import FEWEST, DrawInterval, Kind, interval_over_draws
from stagelens.effects.results import BehaviourFacts
from stagelens.estimators.durations import STARTING, paces
from stagelens.estimators.protocol import METHOD
from stagelens.replaying.draw_plan import coalition_passes
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.clusters import CLUSTER, with_sources

from .draws import VERSION

KINDS: tuple[Kind, ...] = ("recipe", "same data")
"""Kinds of draws that train every stage anew, the one that leaves least as recorded first."""


class DrawnCoalitionFacts(BaseModel):
    """What the file of one draw says of itself.

    Attributes:
        run_digest: Of the run.
        set_digest: Of the evaluation set.
        kind: What was drawn.
        draw: Its number.
        stages: How many there are: the file has values of ``2 ** stages`` models.
        behaviours: Those of the task.
        batches: See :class:`~stagelens.effects.draws.DrawnEffects`.
        kept: What the draw has as recorded, in words.
        seen: Stage to how often it saw each example; stages without are not known.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    kind: Kind
    draw: int
    stages: int
    behaviours: list[BehaviourFacts]
    batches: int | None = None
    kept: list[str] = []
    seen: dict[str, int] = {}


@dataclass(frozen=True)
class DrawnCoalitions:
    """The coalitions of several draws on a set of N examples.

    Attributes:
        kind: What was drawn.
        facts: Of each draw, by number.
        paths: The file of each.
        labels: (N,) whether an example has a label.
        stages: Names in training order.
        clusters: (N,) the number of each example's source, below 0 where it shares none; None where
            none do.
    """

    kind: Kind
    facts: Sequence[DrawnCoalitionFacts]
    paths: Sequence[Path] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    stages: tuple[str, ...]
    clusters: np.ndarray | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """How many draws there are."""
        return len(self.facts)

    @property
    def enough(self) -> bool:
        """Whether they give an interval."""
        return self.count >= FEWEST

    @property
    def words(self) -> str:
        """``8 redraws``."""
        return f"{self.count} redraws"

    @property
    def behaviours(self) -> dict[str, Behaviour]:
        """By name: those that were measured, and accuracy where examples have labels."""
        found = {each.name: each.behaviour() for each in self.facts[0].behaviours}
        return {ACCURACY.name: ACCURACY, **found} if self.labels.any() else found

    def interval(self, values: Sequence[float] | np.ndarray) -> DrawInterval:
        """The t-interval of a number in each of these draws."""
        return interval_over_draws(values, self.kind, None, self.facts[0].batches)

    def values(self, behaviour: str) -> list[dict[int, np.ndarray]]:
        """Coalition to (N,) values, in each draw."""
        found = []
        for path, facts in zip(self.paths, self.facts, strict=True):
            names = {mask: column(mask, behaviour) for mask in range(1 << facts.stages)}
            read = fact_tables.read(path, DrawnCoalitionFacts, names.values())
            assert read is not None, "it was read a moment ago"
            found.append({mask: read[1][name].to_numpy(float) for mask, name in names.items()})
        return found


def column(mask: int, behaviour: str) -> str:
    """The column of a coalition's values of a behaviour."""
    return f"{mask:x}/{behaviour}"


FOLDER = "results/drawn-coalitions"


def draw_path(run: Run, set_digest: str, kind: Kind, number: int) -> Path:
    """Where the coalitions of one draw are stored for a set."""
    key = digest("drawn coalitions", VERSION, METHOD, run.digest, set_digest, kind)[:32]
    return run.files.inside(f"{FOLDER}/{key}/{number}.parquet")


def stored(
    run: Run, set_name: str, kind: Kind, number: int | None = None
) -> DrawnCoalitions | None:
    """The draws of one kind that are stored for a set, from 0 on; None where there are none.

    Args:
        run: The run.
        set_name: The set.
        kind: What was drawn.
        number: The draws with lower numbers only; None for all.
    """
    examples = run.evaluation_set(set_name)
    facts: list[DrawnCoalitionFacts] = []
    # Up to the first that is missing: intervals go by which draws have the data of another.
    for n in count() if number is None else range(number):
        path = draw_path(run, examples.digest, kind, n)
        one = fact_tables.facts_of(path, DrawnCoalitionFacts)
        wanted = (run.digest, examples.digest, kind, n)
        if one is None or (one.run_digest, one.set_digest, one.kind, one.draw) != wanted:
            break
        # Draws that differ in how often examples were seen are other draws.
        if facts and one.seen != facts[0].seen:
            break
        facts.append(one)
    if not facts:
        return None
    table = with_sources(examples)
    return DrawnCoalitions(
        kind,
        facts,
        [draw_path(run, examples.digest, kind, one.draw) for one in facts],
        table["label"].notna().to_numpy(),
        tuple(stage.name for stage in run.stages),
        pd.factorize(table[CLUSTER])[0] if CLUSTER in table else None,
    )


def of_recipe(run: Run, set_name: str) -> DrawnCoalitions | None:
    """The draws that say what shares are of the recipe; None where too few give an interval."""
    found = stored(run, set_name, "recipe")
    return found if found is not None and found.enough else None


def predicted_cost(run: Run, draws: int, processes: int = 1) -> tuple[int, float | None]:
    """What all coalitions of some draws take: stage passes, and seconds (None if not known)."""
    work = coalition_passes(range(1 << len(run.stages)))
    seconds = [pace.seconds for pace in paces(run).stages]
    if any(one is None for one in seconds):
        return draws * len(work), None
    rounds = -(-draws // max(processes, 1))
    return draws * len(work), STARTING + rounds * sum(seconds[index] or 0.0 for index in work)
