"""Examples that share a source: intervals of means go by sources, not by single examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pandas as pd

from .evaluation_set import EvaluationSet

CLUSTER = "cluster"
"""The column of a set that says which examples share a source."""

PROMPT = "prompt"
"""The input that examples with several answers to one question share."""


@dataclass(frozen=True)
class Clusters:
    """Which examples of a set share a source.

    Attributes:
        by: What they share, in words: ``the column cluster``, ``prompt`` or ``input``.
        sources: How many different sources there are; an example that shares none is one.
        shared: Example id to the number of its source, for those that share one because of their
            inputs; empty where the column says it.
    """

    by: str
    sources: int
    shared: pd.Series

    def joined(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows with ``example_id`` and a column :data:`CLUSTER`; null where a row is alone."""
        if CLUSTER in rows or self.shared.empty:
            return rows
        ids = rows["example_id"]
        number = self.shared.reindex(ids.astype(object).to_numpy()).to_numpy(float)
        return rows.assign(**{CLUSTER: number})

    def words(self, count: str) -> str:
        """A sentence for a page.

        Args:
            count: The examples of the set, as ``900 images``.
        """
        named = "source" if self.sources == 1 else "sources"
        return (
            f"Intervals over examples are clustered by {self.by}: {count} from {self.sources:,} "
            f"{named}."
        )


def clusters(examples: EvaluationSet) -> Clusters | None:
    """Which examples share a source; None where none do. Reads the inputs of the whole set.

    The set's own column :data:`CLUSTER` says it where there is one. Otherwise those with the same
    prompt, or the same input, share one; not so where all do, because what all share says nothing
    of who belongs together.
    """
    if CLUSTER in examples.columns:
        column = examples.table([CLUSTER])[CLUSTER]
        return Clusters(
            "the column cluster",
            column.nunique() + int(column.isna().sum()),
            pd.Series(dtype=float),
        )
    place = examples.inputs.index(PROMPT) if PROMPT in examples.inputs else None
    digests = [_digest(cells, place) for cells in examples.cells()]
    number = pd.factorize(np.array(digests, dtype=object))[0]
    times = np.bincount(number, minlength=1)
    if len(times) in (1, examples.count):
        return None
    together = times[number] > 1
    ids = examples.table([])["example_id"].astype(object).to_numpy()
    by = "input" if place is None else PROMPT
    return Clusters(by, len(times), pd.Series(number[together], ids[together], dtype=float))


def with_sources(examples: EvaluationSet) -> pd.DataFrame:
    """``example_id``, ``label`` and, where examples share a source, :data:`CLUSTER`; N rows."""
    sharing = clusters(examples)
    named = [CLUSTER] if CLUSTER in examples.columns else []
    table = examples.table(named)[["example_id", "label", *named]]
    return table if sharing is None else sharing.joined(table)


def _digest(cells: Sequence[str | bytes | None], place: int | None) -> bytes:
    """Of the cell in this place, where there is one; else of all."""
    if place is not None and cells[place] is not None:
        cells = cells[place : place + 1]
    hasher = blake2b(digest_size=16)
    for cell in cells:
        content = cell.encode(errors="surrogatepass") if isinstance(cell, str) else cell
        # With its length: two cells must not be taken for one that is longer.
        hasher.update(b"-" if content is None else f"{len(content)} ".encode())
        hasher.update(content or b"")
    return hasher.digest()
