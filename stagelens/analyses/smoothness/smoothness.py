"""How smoothly a behaviour changes with the weight of some training examples, on disk. No torch.

After the empirical metasmoothness of Engstrom et al. (*Optimizing ML training with metagradient
descent*, 2025): with y(w) the behaviour of every evaluation example where a random subset of the
stage's examples has the weight w in the loss, and h = 1 %::

    D1 = y(1 - h) - y(1),    D2 = y(1 - 2 h) - y(1 - h)
    smoothness = sum_j |D1_j| sign(D1_j) sign(D2_j) / sum_j |D1_j|

It is 1 where what the first part of the weight did to each evaluation example, the second does
again in the same direction, 0 where the one says nothing of the other, and negative where training
answers any small change with an arbitrary one: of two arbitrary changes e1, e2, D1 = e1 and
D2 = e2 - e1 point apart. Theirs is over the parameters of the trained model.

Near the edge of stability the smallest changes are smooth and the effect bends further out, so a
second scale is looked at: the *reach* is the cosine of D1 and y(0) - y(1), the change where the
subset is left out. Either alone does not do: where training is chaotic, large changes may go one
way while derivatives, which see the smallest, point anywhere.

The subset's part of the loss is weighed with the divisor kept, as for expected errors: what first
order predicts for the mean over the rest is made of the same derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.training_rows import rest_key

_METHOD = 2
"""Part of every key; raised when what is stored changes."""

WEIGHTS = (1.0, 0.99, 0.98, 0.0)
SHARE = 0.1
"""The share of the stage's examples that is weighed."""

LEAST, REACHES = 0.83, 0.86
"""From this smoothness and this reach on, first order is used. Chosen on some runs, and measured on
others, by ``tests/benchmarks/smoothness.py``, see docs/training-data.md."""

COLUMNS = {
    "example_id": "string",
    "behaviour": "string",
    "whole": "float64",
    "less": "float64",
    "least": "float64",
    "without": "float64",
}
"""One row per evaluation example and behaviour: its value with each of the weights."""


class SmoothnessFacts(BaseModel):
    """What a stored check says of itself.

    Attributes:
        run_digest: Of the run.
        set_digest: Of the evaluation set.
        stage: Whose examples were weighed.
        weighed: How many, drawn at random; ``of`` so many.
        of: See above.
        steps: How many steps were replayed: from the middle of the stage, where the horizon is
            shorter than the stage; else to the end of the run.
        horizon: How many steps of the stage later was asked; None for the final model.
        seconds: Wall time of the replays.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    stage: str
    weighed: int
    of: int
    steps: int
    horizon: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Smoothness:
    """A check: a table (:data:`COLUMNS`) with what it says of itself."""

    facts: SmoothnessFacts
    table: pd.DataFrame

    def of(self, behaviour: str) -> float:
        """The smoothness of one behaviour, from -1 to 1; NaN where nothing changed."""
        rows = self.table[self.table["behaviour"] == behaviour]
        return smoothness(*(rows[name].to_numpy(float) for name in ("whole", "less", "least")))

    def reach(self, behaviour: str) -> float:
        """Cosine of the smallest change and that without the examples; NaN for no change."""
        rows = self.table[self.table["behaviour"] == behaviour]
        return reach(*(rows[name].to_numpy(float) for name in ("whole", "less", "without")))

    def smooth(self, behaviour: str) -> bool:
        """Whether first order is used; not where nothing changed, which says nothing either."""
        return bool(self.of(behaviour) >= LEAST and self.reach(behaviour) >= REACHES)


def smoothness(whole: np.ndarray, less: np.ndarray, least: np.ndarray) -> float:
    """See the module's description.

    Args:
        whole: (J,) values at weight 1; examples without one of the three values are left out.
        less: (J,) at 1 - h.
        least: (J,) at 1 - 2 h.
    """
    first, second = less - whole, least - less
    known = np.isfinite(first) & np.isfinite(second)
    if known.sum() < np.isfinite(whole).sum():
        return -1.0  # a model that is no longer finite
    first, second = first[known], second[known]
    size = float(np.abs(first).sum())
    if not size:
        return float("nan")
    return float((np.abs(first) * np.sign(first) * np.sign(second)).sum() / size)


def reach(whole: np.ndarray, less: np.ndarray, without: np.ndarray) -> float:
    """See the module's description.

    Args:
        whole: (J,) values at weight 1; examples without one of the three values are left out.
        less: (J,) at 1 - h.
        without: (J,) at 0.
    """
    first, all_of_it = less - whole, without - whole
    known = np.isfinite(first) & np.isfinite(all_of_it)
    if known.sum() < np.isfinite(whole).sum():
        return -1.0  # a model that is no longer finite
    first, all_of_it = first[known], all_of_it[known]
    size = float(np.linalg.norm(first) * np.linalg.norm(all_of_it))
    return float(first @ all_of_it) / size if size else float("nan")


def smoothness_path(
    run: Run, stage: str, examples: EvaluationSet, horizon: int | None = None
) -> Path:
    """Where a check is stored, or would be.

    Args:
        run: The run.
        stage: Whose examples are weighed.
        examples: The evaluation set.
        horizon: How many steps later is asked; None for the final model.
    """
    parts = (_METHOD, run.digest, stage, examples.digest, SHARE, horizon, *rest_key(run, stage))
    return run.files.inside(f"results/smoothness/{digest(*parts)[:32]}.parquet")


def load_smoothness(
    run: Run, stage: str, examples: EvaluationSet, horizon: int | None = None
) -> Smoothness | None:
    """A stored check; None where there is none that can be used."""
    path = smoothness_path(run, stage, examples, horizon)
    found = fact_tables.read(path, SmoothnessFacts, COLUMNS)
    if found is None:
        return None
    facts, table = found
    own = (facts.run_digest, facts.set_digest, facts.stage, facts.horizon)
    if own != (run.digest, examples.digest, stage, horizon):
        return None  # a file that was copied to this name
    return Smoothness(facts, table)
