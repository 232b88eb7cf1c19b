"""Parts of a set's examples, such that examples of one source are in the same part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stagelens.runs.schema import digest

from .clusters import CLUSTER, clusters
from .evaluation_set import EvaluationSet


def folds(examples: EvaluationSet, ids: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Parts of about the same number of sources; fewer where there are fewer sources.

    Which part an example is in depends on nothing but the set and which examples are asked about.

    Args:
        examples: The set.
        ids: Some of its examples.
        count: How many parts.

    Returns:
        Ids of each part, in the set's order.
    """
    table = examples.table()
    table = table[table["example_id"].isin(set(ids))]
    sharing = clusters(examples)
    source = "example " + table["example_id"].astype(str)
    if sharing is not None:
        number = sharing.joined(table)[CLUSTER]
        source = ("source " + number.astype(str)).where(number.notna(), source)
    names = source.unique()
    # By a digest, so that neither order nor time of the sources tells the parts apart.
    order = sorted(names, key=lambda name: digest("half", examples.digest, name))
    parts = np.array_split(np.array(order, dtype=object), min(count, len(order)) or 1)
    every = table["example_id"].astype(str).to_numpy()
    return [tuple(every[source.isin(set(part)).to_numpy()]) for part in parts]
