"""What training examples contributed to parts of the examples that are asked about.

The behaviour is a mean over evaluation examples, which are a sample, and so is what a group of
training examples contributed to it. Contributions are linear in the gradient of that mean: a sweep
for each of K parts of the evaluation examples adds up to the sweep for all, and how the parts
differ says how far the sum may be off (random groups, K. M. Wolter, Introduction to Variance
Estimation, 2007, ch. 2). That takes K sweeps whatever the number of evaluation examples, and
serves every grouping of training examples. Examples of one source are in one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.derivatives.curvature_kinds import USUAL, Curvature, key_of
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.training_rows import example_key

from .contribution_table import asked_digest

_METHOD = 2
"""Part of every key; raised when what is stored changes."""

PARTS = 8
"""Parts of the evaluation examples: their spread then has seven degrees of freedom."""
FEWEST = 4
"""With fewer sources of evaluation examples there is no interval."""


class PartsFacts(BaseModel):
    """What stored contributions to parts of a mean say of themselves.

    Attributes:
        run_digest: Of the run.
        set_digest: Of the evaluation set.
        stage: Whose examples contributed.
        behaviour: To which behaviour.
        counts: How many evaluation examples each part has.
        asked: See :func:`~.contribution_table.asked_digest`, of those of all parts.
        curvature: What stood for second derivatives.
        most: How many parts there might have been.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    stage: str
    behaviour: str
    counts: tuple[int, ...]
    asked: str
    curvature: Curvature
    most: int


@dataclass(frozen=True)
class Parts:
    """Contributions to each part.

    Attributes:
        facts: What they say of themselves.
        table: Index: ids of the stage's training examples; one column per part, ``"0"`` and on, in
            the behaviour's unit, the sum over uses.
    """

    facts: PartsFacts
    table: pd.DataFrame

    @property
    def weights(self) -> np.ndarray:
        """(K,) the share that each part has of the evaluation examples."""
        counts = np.array(self.facts.counts, float)
        return counts / counts.sum()

    def error(self, ids: Sequence[str]) -> tuple[float, float]:
        """Standard error of what training examples contributed together, and its freedom.

        Of the mean over evaluation examples, had others been drawn, as many of them.

        Args:
            ids: Of the training examples.
        """
        parts = self.table.loc[list(ids)].sum().to_numpy(float)
        count = len(parts)
        off = self.weights * (parts - self.weights @ parts)
        return float(np.sqrt(count / (count - 1) * (off**2).sum())), float(count - 1)


def parts_path(
    run: Run,
    examples: EvaluationSet,
    behaviour: str,
    ids: Sequence[str],
    stage: str,
    curvature: Curvature = USUAL,
    count: int = PARTS,
) -> Path:
    """Where contributions to parts of a mean are stored, or would be; or those to a single part.

    Args:
        run: The run.
        examples: The evaluation set.
        behaviour: Whose contributions.
        ids: Of the evaluation examples of all parts, or of the one.
        stage: Whose training examples.
        curvature: What stands for second derivatives.
        count: How many parts there may be; 1 for a single one.
    """
    parts = (_METHOD, run.digest, examples.digest, behaviour, asked_digest(ids), stage, count)
    key = digest(*parts, *key_of(curvature), *example_key(run, stage))[:32]
    return run.files.inside(f"results/contributions/parts-{key}.parquet")


def save_parts(path: Path, parts: Parts) -> None:
    """Store contributions to parts. Atomic."""
    fact_tables.write(path, parts.table.rename_axis("example_id").reset_index(), parts.facts)


def load_parts(
    run: Run,
    examples: EvaluationSet,
    behaviour: str,
    ids: Sequence[str],
    stage: str,
    curvature: Curvature = USUAL,
    count: int = PARTS,
) -> Parts | None:
    """Stored contributions to parts; None where there are none that can be used.

    Args:
        run: As for :func:`parts_path`, like all others.
        examples: The evaluation set.
        behaviour: Whose contributions.
        ids: Of the evaluation examples.
        stage: Whose training examples.
        curvature: What stands for second derivatives.
        count: How many parts there may be.
    """
    path = parts_path(run, examples, behaviour, ids, stage, curvature, count)
    found = fact_tables.read(path, PartsFacts, ("example_id",))
    if found is None:
        return None
    facts, table = found
    # A file that was copied to this name is not believed.
    own = (facts.run_digest, facts.set_digest, facts.stage, facts.behaviour, facts.asked)
    if own != (run.digest, examples.digest, stage, behaviour, asked_digest(ids)):
        return None
    if (facts.curvature, facts.most) != (curvature, count):
        return None
    return Parts(facts, table.set_index("example_id"))
